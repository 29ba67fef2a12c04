"""The Python interface as a program uses it: one device, many threads, a backup in their midst."""

import os
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import blockcow
from blockcow import Device
from conftest import MIB, sh


def test_reads_and_writes_pass_through(image: Path) -> None:
    with Device(image) as device:
        assert (device.size, device.state, device.read_only, device.path) == (8 * MIB, "passing", False, str(image))
        assert device.pwrite(b"hello", 4095) == 5
        assert device.pwrite(bytearray(b"world"), 8191) == 5
        assert device.pread(6, 4095) == b"hello" + image.read_bytes()[4100:4101]
        device.zero(0, 512)
        device.discard(MIB, MIB)
        device.flush()
    content = image.read_bytes()
    assert (content[4095:4100], content[8191:8196], content[:512]) == (b"hello", b"world", bytes(512))
    with pytest.raises(blockcow.StateError, match="closed"):
        device.pread(1, 0)
    device.close()


def test_a_program_backs_up_its_device_while_it_writes(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with Device(image) as device:
        with device.backup(container=tmp_path / "cow", dest=tmp_path / "out.img", limit_read="8M") as backup:
            assert str(device.state) == "backing-up"
            assert not backup.wait(0)
            for offset in range(8 * MIB - 4096, -1, -65536):
                device.pwrite(b"\xff" * 4096, offset)
        status = backup.status()
        assert str(device.state) == "passing"
    assert (tmp_path / "out.img").read_bytes() == before
    assert image.read_bytes() != before
    assert (status.status, status.device, status.dest) == ("complete", str(image), str(tmp_path / "out.img"))
    assert status.blocks_copied_before_write > 0
    assert status.blocks_swept + status.blocks_copied_before_write == status.blocks_listed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.img", "out.img", "out.img.manifest"]


def test_a_small_container_drains_and_no_write_fails(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    failures: list[Exception] = []

    def write(device: Device, seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(200):
                device.pwrite(chance.randbytes(chance.randrange(1, 20_000)), chance.randrange(8 * MIB - 20_000))
        except Exception as error:
            failures.append(error)

    with Device(image) as device:
        backup = device.backup(container="memory:64K", dest=tmp_path / "out.img", limit_read="16M")
        threads = [threading.Thread(target=write, args=(device, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backup.wait(120)
        status = backup.status()
    assert failures == []
    assert (tmp_path / "out.img").read_bytes() == before
    assert status.drains > 0
    assert status.container_peak_bytes <= status.container_capacity_bytes <= 64 * 1024
    assert status.suspended_writes > 0
    assert status.suspended_us.max >= status.suspended_us.p50 > 0


def test_all_in_one_call(image: Path, tmp_path: Path) -> None:
    status = blockcow.backup(device=image, container="memory:1M", dest=tmp_path / "out.img", block_size="64K")
    assert (status.status, status.block_size) == ("complete", 65536)
    assert blockcow.verify(str(tmp_path / "out.img"), str(tmp_path / "out.img.manifest"))["damaged"] == []


def test_an_exception_cancels(image: Path, tmp_path: Path) -> None:
    with Device(image) as device:
        dest = tmp_path / "out.img"
        with pytest.raises(KeyError), device.backup(container="memory:1M", dest=dest, limit_read="1M") as backup:
            raise KeyError
        assert backup.status().status == "cancelled"
        with pytest.raises(blockcow.CancelledError):
            backup.wait()
        assert list(tmp_path.iterdir()) == [image]
        with device.backup(container="memory:1M", dest=dest):
            pass
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_a_second_backup_at_the_same_time_is_refused(image: Path, tmp_path: Path) -> None:
    with Device(image) as device:
        first = device.backup(container="memory:1M", dest=tmp_path / "a.img", limit_read="1M")
        with pytest.raises(blockcow.StateError):
            device.backup(container="memory:1M", dest=tmp_path / "b.img")
        first.cancel()
        first.ended(None)
    assert list(tmp_path.iterdir()) == [image]


def test_events_tell_of_states_and_suspended_writes(image: Path, tmp_path: Path) -> None:
    with Device(image) as device:
        backup = device.backup(container="memory:1M", dest=tmp_path / "out.img", limit_read="16M")
        device.pwrite(b"x" * 8192, 6 * MIB)
        events = list(backup.events())
    assert [(one["from"], one["to"]) for one in events if one["event"] == "state"] == [
        ("created", "active"),
        ("active", "complete"),
    ]
    suspended = [one for one in events if one["event"] == "suspended"]
    assert {"first_block": 6 * MIB // 4096, "blocks": 2}.items() <= suspended[0].items()


def test_the_block_map_accounts_for_every_block(image: Path, tmp_path: Path) -> None:
    with Device(image) as device:
        backup = device.backup(container="memory:1M", dest=tmp_path / "out.img", limit_read="2M")
        device.pwrite(b"x" * 4096, 7 * MIB)
        cells = backup.block_map(8)
        assert len(cells) <= 8
        assert sum(cells[-1][1:3]) >= 1
        backup.cancel()


def test_own_ranges(image: Path, tmp_path: Path) -> None:
    ranges = [(MIB, 4096), (3 * MIB + 5, 10)]
    blockcow.backup(device=image, container="memory:1M", dest=tmp_path / "out.img", ranges=ranges)
    content, expected = image.read_bytes(), bytearray(8 * MIB)
    for start in (MIB, 3 * MIB):
        expected[start : start + 4096] = content[start : start + 4096]
    assert (tmp_path / "out.img").read_bytes() == expected


def test_holes_and_zeroes_are_not_written(tmp_path: Path) -> None:
    source = tmp_path / "sparse.img"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(10 * MIB)
        file.write(os.urandom(MIB) + bytes(MIB))
    status = blockcow.backup(device=source, container="memory:1M", dest=tmp_path / "out.img")
    assert status.dest_written_bytes <= 2 * MIB
    assert (tmp_path / "out.img").stat().st_blocks * 512 <= 3 * MIB
    assert (tmp_path / "out.img").read_bytes() == source.read_bytes()


def test_errors_carry_what_a_program_needs(image: Path, tmp_path: Path) -> None:
    with Device(image), pytest.raises(blockcow.BlockcowError) as busy:
        Device(image)
    assert (busy.value.kind, busy.type) == ("busy", blockcow.BusyError)
    with pytest.raises(blockcow.NotFoundError) as missing:
        Device(tmp_path / "missing")
    assert (missing.value.kind, missing.value.errno, missing.value.offset) == ("not-found", 2, None)
    assert missing.value.operation == f"open the device {tmp_path}/missing"
    with Device(image) as device:
        with pytest.raises(TypeError):
            device.backup(container="memory:1M", dest=tmp_path / "x", colour="red")  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="not a policy"):
            device.backup(container="memory:1M", dest=tmp_path / "x", on_cbw_error="panic")
        with pytest.raises(ValueError, match="offset"):
            device.pread(10, 8 * MIB)


def test_a_read_only_device_can_be_backed_up_but_not_written(image: Path, tmp_path: Path) -> None:
    with Device(image, read_only=True) as device:
        with pytest.raises(blockcow.StateError, match="read-only"):
            device.pwrite(b"x", 0)
        with device.backup(container="memory:1M", dest=tmp_path / "out.img"):
            pass
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_a_file_system_of_the_callers_own_front_end_is_frozen_around_the_cut(
    image: Path, tmp_path: Path, loop_device: Callable[..., str], mount: Callable[[str], Path]
) -> None:
    point = mount(loop_device(filesystem="ext4"))
    with Device(image) as device:
        with device.backup(container="memory:1M", dest=tmp_path / "out.img", mounts=[str(point)], consistency="freeze"):
            (point / "thawed").write_bytes(b"x")
        with pytest.raises(blockcow.BusyError, match="choose a place on another device"):
            device.backup(container="memory:1M", dest=point / "out.img", mounts=[str(point)])


def test_a_freeze_that_fails_makes_no_cut_and_leaves_nothing(
    image: Path, tmp_path: Path, loop_device: Callable[..., str], mount: Callable[[str], Path]
) -> None:
    point = mount(loop_device(filesystem="ext4"))
    before = sorted(tmp_path.iterdir())
    sh("fsfreeze", "--freeze", str(point))
    try:
        with Device(image) as device:
            with pytest.raises(OSError, match="frozen already"):
                device.backup(container="memory:1M", dest=tmp_path / "out.img", mounts=[str(point)])
            assert str(device.state) == "passing"
    finally:
        sh("fsfreeze", "--unfreeze", str(point))
    assert sorted(tmp_path.iterdir()) == before


def test_image_files_are_locked_as_qemu_does(image: Path, tmp_path: Path) -> None:
    with Device(image):
        result = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 512", str(image)], capture_output=True, text=True, check=False
        )
    assert result.returncode != 0
    assert "lock" in result.stderr


def test_another_stands_in_with_the_descriptors_and_the_lock_stays(image: Path) -> None:
    first = Device(image)
    kept = [os.dup(descriptor) for descriptor in first.descriptors()]
    try:
        with Device.adopt(str(image), kept) as second:
            second.pwrite(b"adopted!", 4096)
            assert first.pread(8, 4096) == b"adopted!"
            assert second.counters()["write_bytes"] == 8
            assert (second.size, second.direct_io) == (first.size, first.direct_io)
    finally:
        for descriptor in kept:
            os.close(descriptor)
        first.close()
    with pytest.raises(blockcow.DeviceError):
        Device.adopt(str(image), [10_000])
    with pytest.raises(ValueError, match="one or two descriptors"):
        Device.adopt(str(image), [])


def test_counters_count_what_programs_ask(image: Path) -> None:
    with Device(image) as device:
        device.pwrite(bytes(512), 0)
        device.pwrite(bytes(512), 0)
        device.pread(100, 0)
        device.flush()
        device.discard(0, 4096)
        device.zero(0, 4096)
        with pytest.raises(ValueError, match="beyond the end"):
            device.pwrite(b"x", device.size)
        counters = device.counters()
    assert (counters["write_requests"], counters["write_bytes"], counters["write_errors"]) == (2, 1024, 1)
    assert (counters["read_requests"], counters["read_bytes"]) == (1, 100)
    assert (counters["flush_requests"], counters["discard_bytes"], counters["zero_bytes"]) == (1, 4096, 4096)
    assert counters["suspended_le_inf"] == 0
