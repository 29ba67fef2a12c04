"""The container is a file in the very file system that is being backed up, which is mounted and written meanwhile."""

import errno
import fcntl
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from attached import Attached, attach, mounted
from blockcow import BlockcowError, ContainerError, Device, ExistsError, TrespassError, _blockcow, inside
from blockcow.container import resolve
from blockcow.node import find
from blockcow.plan import make_plan
from conftest import MIB, sh

KINDS = ["ext4", "xfs"]
PATIENCE = 60.0
_FIFREEZE, _FITHAW, _FITRIM = 0xC0045877, 0xC0045878, 0xC0185879

Attach = Callable[..., Attached]


@pytest.fixture
def attached(root: None, tmp_path: Path, cleanup: ExitStack) -> Attach:
    def make(filesystem: str, *options: str, start: int = 0, size: int = 400 * MIB) -> Attached:
        return attach(cleanup, tmp_path, filesystem, *options, start=start, size=size)

    return make


@contextmanager
def frozen(point: Path) -> Iterator[None]:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, _FITHAW, 0)
    finally:
        os.close(fd)


def whole(device: Device) -> bytearray:
    return bytearray().join(device.pread(MIB, offset) for offset in range(0, device.size, MIB))


def assert_clean(filesystem: str, volume: str | Path, cleanup: ExitStack) -> None:
    if filesystem == "ext4":
        sh("e2fsck", "-fn", str(volume))
        return
    with ExitStack() as stack:  # a frozen xfs has a log to replay
        mounted(stack, str(volume), "-o", "nouuid" + (",loop" if Path(volume).is_file() else ""))
    sh("xfs_repair", "-n", str(volume))


def fill(point: Path, name: str, size: int, seed: int) -> None:
    with (point / name).open("wb") as file:
        file.write(random.Random(seed).randbytes(size))
        os.fsync(file.fileno())


def back_up_at_rest(
    at: Attached, dest: Path, size: int, **options: object
) -> tuple[_blockcow.Backup, inside.InsideFile, bytearray]:
    """What `Device.backup` does, with the device's bytes at the cut read by the test."""
    path = str(at.mount / "cow")
    plan = make_plan(
        find(at.device.path),
        path,
        dest,
        container_size=size,
        mounts=[str(at.mount)],
        **options,  # type: ignore[arg-type]
    )
    assert (plan.container.kind, plan.container.offset) == ("inside", at.origin)
    file = inside.make(path, size, at.origin, at.device.pread)
    with frozen(at.mount):
        expected = whole(at.device)
        backup = at.device._prepare(**plan.arguments(file.sections))
        backup.cut(PATIENCE)
    for offset, length in file.sections:
        start, end = -(-offset // 4096) * 4096, (offset + length) // 4096 * 4096
        expected[start:end] = bytes(max(end - start, 0))
    return backup, file, expected


def overwrite(point: Path, stop: threading.Event, failures: list[Exception]) -> None:
    """Writes over old files in place, makes and deletes others, until told to stop."""
    chance = random.Random(1)
    try:
        with (point / "old").open("r+b") as old:
            size = os.fstat(old.fileno()).st_size
            while not stop.is_set():
                for _ in range(1024):
                    os.pwrite(old.fileno(), chance.randbytes(4096), chance.randrange(size // 4096) * 4096)
                os.fdatasync(old.fileno())
                fill(point, "new", 100_000, 1)
                (point / "new").unlink()
    except OSError as error:
        failures.append(error)


@pytest.mark.parametrize("filesystem", KINDS)
@pytest.mark.parametrize("start", [0, 2049], ids=["whole-device", "partition-at-an-odd-sector"])
def test_the_image_is_the_device_at_the_cut_less_the_container(
    attached: Attach, tmp_path: Path, cleanup: ExitStack, filesystem: str, start: int
) -> None:
    at = attached(filesystem, start=start)
    fill(at.mount, "old", 32 * MIB, 7)
    backup, file, expected = back_up_at_rest(
        at, tmp_path / "image", MIB, staging_size="64K", limit_read="32M", cbw_timeout="60s"
    )
    stop, failures = threading.Event(), list[Exception]()
    writer = threading.Thread(target=overwrite, args=(at.mount, stop, failures))
    writer.start()
    assert backup.wait(PATIENCE)
    stop.set()
    writer.join()
    status = backup.status()
    assert (status["status"], failures) == ("complete", []), status
    assert status["drains"] > 0
    assert status["container_peak_bytes"] <= MIB
    assert (tmp_path / "image").read_bytes() == expected
    assert inside.remove(file.path, backup.at_rest)
    assert not Path(file.path).exists()
    sh("umount", str(at.mount))
    assert_clean(filesystem, at.volume, cleanup)
    sh("mount", at.volume, str(at.mount))
    with (tmp_path / "volume").open("wb") as volume:
        volume.write(expected[at.origin :])
    assert_clean(filesystem, tmp_path / "volume", cleanup)


@pytest.mark.parametrize("filesystem", KINDS)
def test_in_a_fragmented_file_system_it_lies_in_many_pieces(
    attached: Attach, tmp_path: Path, cleanup: ExitStack, filesystem: str
) -> None:
    at = attached(filesystem, size={"ext4": 128, "xfs": 330}[filesystem] * MIB)
    many = at.mount / "many"
    many.mkdir()
    count = 0
    try:
        while True:
            (many / str(count)).write_bytes(b"x" * 128 * 1024)
            count += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC
    for number in range(0, count, 2):
        (many / str(number)).unlink()
    sh("sync", "-f", str(at.mount))
    fill(at.mount, "old", 20 * MIB, 7)
    backup, file, expected = back_up_at_rest(at, tmp_path / "image", 24 * MIB, staging_size="1M", limit_read="32M")
    assert len(file.sections) > 50
    stop, failures = threading.Event(), list[Exception]()
    writer = threading.Thread(target=overwrite, args=(at.mount, stop, failures))
    writer.start()
    assert backup.wait(PATIENCE)
    stop.set()
    writer.join()
    assert (backup.status()["status"], failures) == ("complete", [])
    assert backup.status()["container_peak_bytes"] > 2 * MIB
    assert (tmp_path / "image").read_bytes() == expected
    assert inside.remove(file.path, backup.at_rest)


@pytest.mark.parametrize("filesystem", KINDS)
@pytest.mark.parametrize("consistency", ["freeze", "sync"])
def test_from_the_api_the_file_is_there_during_the_backup_and_gone_after_it(
    attached: Attach, tmp_path: Path, cleanup: ExitStack, filesystem: str, consistency: str
) -> None:
    at = attached(filesystem)
    fill(at.mount, "old", 8 * MIB, 3)
    place = at.mount / "cow"
    options = {"mounts": [str(at.mount)], "consistency": consistency, "container_size": "64M", "limit_read": "4M"}
    with at.device.backup(container=place, dest=tmp_path / "image", **options) as backup:  # type: ignore[arg-type]
        assert place.stat().st_size == 64 * MIB
        for forbidden in (place.unlink, lambda: os.truncate(place, 0), lambda: place.open("r+b")):
            with pytest.raises(PermissionError):
                forbidden()
        fill(at.mount, "old", 8 * MIB, 4)
        assert not any(place.read_bytes()[4096 : 1 * MIB]), "what others wrote cannot be read from it"
    assert backup.status().status == "complete"
    assert not place.exists()


@pytest.mark.parametrize("filesystem", KINDS)
def test_trim_leaves_it_alone(attached: Attach, tmp_path: Path, filesystem: str) -> None:
    at = attached(filesystem)
    fill(at.mount, "old", 16 * MIB, 7)
    fill(at.mount, "gone", 16 * MIB, 8)
    backup, file, expected = back_up_at_rest(at, tmp_path / "image", 24 * MIB, staging_size="64K", limit_read="16M")
    fill(at.mount, "old", 4 * MIB, 9)
    (at.mount / "gone").unlink()
    sh("sync", "-f", str(at.mount))
    fd = os.open(at.mount, os.O_RDONLY)
    trimmed = struct.unpack("=QQQ", fcntl.ioctl(fd, _FITRIM, struct.pack("=QQQ", 0, 1 << 62, 0)))[1]
    os.close(fd)
    assert trimmed > 100 * MIB
    assert backup.wait(PATIENCE)
    assert backup.status()["status"] == "complete"
    assert (tmp_path / "image").read_bytes() == expected
    assert inside.remove(file.path, backup.at_rest)


@pytest.mark.parametrize("filesystem", KINDS)
@pytest.mark.parametrize("how", ["write", "discard", "zero"])
def test_whoever_writes_to_its_blocks_breaks_the_backup_and_harms_nothing(
    attached: Attach, tmp_path: Path, cleanup: ExitStack, filesystem: str, how: str
) -> None:
    at = attached(filesystem)
    fill(at.mount, "old", 16 * MIB, 7)
    backup, file, _ = back_up_at_rest(at, tmp_path / "image", 8 * MIB, staging_size="64K", limit_read="1M")
    fill(at.mount, "old", 4 * MIB, 8)  # in place or not, the container is in use now
    offset = file.sections[-1][0]
    if how == "write":
        fd = os.open(at.loop, os.O_WRONLY)
        os.pwrite(fd, b"\x77" * 4096, offset)
        os.fsync(fd)
        os.close(fd)
    elif how == "discard":
        at.device.discard(offset, 4096)
    else:
        at.device.zero(offset, 4096)
    assert backup.wait(PATIENCE)
    with pytest.raises(TrespassError, match="the part of the device that holds the container"):
        backup.raise_for_state()
    assert not (tmp_path / "image").exists()
    if how != "discard":
        assert at.device.pread(4096, offset) == (b"\x77" if how == "write" else b"\0") * 4096
    assert inside.remove(file.path, backup.at_rest)
    sh("umount", str(at.mount))
    assert_clean(filesystem, at.volume, cleanup)
    sh("mount", at.volume, str(at.mount))


def test_other_file_systems_are_refused_with_the_reason(attached: Attach, tmp_path: Path, cleanup: ExitStack) -> None:
    at = attached("btrfs")
    with pytest.raises(ContainerError, match=r"it lies in btrfs, where a file does not keep its place.*ext4 and xfs"):
        make_plan(find(at.device.path), at.mount / "cow", tmp_path / "image", mounts=[str(at.mount)])
    memory = mounted(cleanup, "none", "-t", "tmpfs")
    with pytest.raises(ContainerError, match="it lies in tmpfs, where a file does not keep its place"):
        resolve(str(memory / "cow"), find(at.device.path), "/nowhere/image", "1M", (), [str(memory)])
    with pytest.raises(BlockcowError, match="lies in the file system mounted at"):
        make_plan(find(at.device.path), "memory:1M", at.mount / "image", mounts=[str(at.mount)])


def test_a_wrong_mapping_is_found_before_anything_is_written_there(attached: Attach) -> None:
    at = attached("ext4")
    for origin in (4096, 64 * MIB):
        with pytest.raises(ContainerError, match="is not on the device at .*, where its file system says it lies"):
            inside.make(str(at.mount / "cow"), MIB, origin, at.device.pread)
    assert [entry.name for entry in at.mount.iterdir()] == ["lost+found"]


def test_data_that_go_through_the_journal_first_are_refused(attached: Attach, tmp_path: Path) -> None:
    at = attached("ext4")
    sh("umount", str(at.mount))
    sh("mount", "-o", "data=journal", at.volume, str(at.mount))
    with pytest.raises(ContainerError, match="mounted with data=journal"):
        make_plan(find(at.device.path), at.mount / "cow", tmp_path / "image", mounts=[str(at.mount)])


def test_without_extents_or_space_it_is_refused_and_leaves_nothing(attached: Attach) -> None:
    at = attached("ext4", "-O", "^extents,^64bit,^huge_file,^has_journal")
    with pytest.raises(ContainerError, match="allocate it: Operation not supported"):
        inside.make(str(at.mount / "cow"), MIB, 0, at.device.pread)
    with pytest.raises(ContainerError, match="needs 1073741824 bytes and the file system has .* left"):
        inside.make(str(at.mount / "cow"), 1024 * MIB, 0, at.device.pread)
    assert [entry.name for entry in at.mount.iterdir()] == ["lost+found"]


def test_a_file_of_somebody_else_is_kept_and_one_of_ours_replaced(attached: Attach, tmp_path: Path) -> None:
    at = attached("ext4")
    options = {"mounts": [str(at.mount)], "container_size": "4M"}
    theirs = at.mount / "theirs"
    theirs.write_bytes(b"precious")
    with pytest.raises(ExistsError, match="exists already, and is never overwritten"):
        at.device.backup(
            container=theirs,
            dest=tmp_path / "image",
            force=["container-exists"],
            **options,  # type: ignore[arg-type]
        )
    with pytest.raises(ExistsError, match="File exists"):
        inside.make(str(theirs), MIB, 0, at.device.pread)
    assert not inside.clean(str(theirs))
    assert not inside.clean(str(at.mount / "nothing"))
    assert theirs.read_bytes() == b"precious"
    ours = at.mount / "cow"
    inside.make(str(ours), MIB, 0, at.device.pread)
    with at.device.backup(container=ours, dest=tmp_path / "image", **options):  # type: ignore[arg-type]
        assert ours.stat().st_size == 4 * MIB
    assert not ours.exists()


def test_what_cannot_start_leaves_no_file(attached: Attach, tmp_path: Path) -> None:
    at = attached("ext4")
    with pytest.raises(ValueError, match="do not hold one whole block"):
        at.device.backup(
            container=at.mount / "cow",
            dest=tmp_path / "image",
            container_size="1M",
            block_size="1M",
            mounts=[str(at.mount)],
        )
    assert not (at.mount / "cow").exists()


SERVER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from attached import loop_over, mounted
from blockcow import Device
from test_inside import fill

stack, device = ExitStack(), Device(sys.argv[1])
point = mounted(stack, loop_over(stack, device, Path(sys.argv[3])))
fill(point, "old", 16 << 20, 7)
backup = device.backup(
    container=point / "cow", container_size="8M", dest=sys.argv[2], mounts=[str(point)], limit_read="1M",
    staging_size="64K",
)
fill(point, "flushed", 4 << 20, 8)
print(point, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("filesystem", KINDS)
def test_what_a_kill_leaves_is_found_and_cleaned(
    root: None, tmp_path: Path, cleanup: ExitStack, filesystem: str
) -> None:
    image = tmp_path / "device.img"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    sh(f"mkfs.{filesystem}", "-q", str(image))
    command = [sys.executable, "-c", SERVER, str(image), str(tmp_path / "image"), str(tmp_path / "front")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as server:
        assert server.stdout is not None
        left = server.stdout.readline().split()
        server.kill()
    assert len(left) == 1, "the backup began"
    sh("umount", *left)
    Path(*left).rmdir()
    sh("umount", str(tmp_path / "front" / "file"))
    point = mounted(cleanup, str(image), "-o", "loop")
    assert random.Random(8).randbytes(4 * MIB) == (point / "flushed").read_bytes()
    with pytest.raises(PermissionError):
        (point / "cow").unlink()
    assert inside.clean(str(point / "cow"))
    assert not inside.clean(str(point / "cow"))
    assert not (point / "cow").exists()
    sh("umount", str(point))
    assert_clean(filesystem, image, cleanup)
    sh("mount", "-o", "loop", str(image), str(point))
