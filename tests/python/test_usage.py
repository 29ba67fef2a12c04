"""Who uses a device or image, and that each use is refused with its reason. Real loop devices, mounts and processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from blockcow import BusyError, lsblk, mounts, openers
from blockcow.discovery import discover
from blockcow.node import find
from blockcow.preflight import check_device
from blockcow.usage import Survey
from conftest import MIB, Run, assert_one_error, sh

Loop = Callable[..., str]
_TWO_PARTITIONS = "label: gpt\nsize=4M\nsize=4M\n"


def kinds(path: str | Path) -> list[str]:
    return [use.kind for use in Survey().uses(find(path))]


def open_in_other_process(path: str | Path, mode: str, cleanup: ExitStack) -> int:
    code = f"import sys; f = open({str(path)!r}, {mode!r}); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    cleanup.callback(process.communicate)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process.pid


def test_an_idle_loop_device_has_no_use(loop_device: Loop) -> None:
    assert kinds(loop_device()) == []


def test_mounted(loop_device: Loop, mount: Callable[[str], Path]) -> None:
    device = loop_device(filesystem="ext4")
    point = mount(device)
    with pytest.raises(BusyError, match=f"it is mounted at {point}; unmount it first") as caught:
        check_device(device)
    assert (caught.value.kind, caught.value.operation) == ("busy", f"open the device {device}")


def test_btrfs_has_no_device_number_of_its_own_and_is_found(loop_device: Loop, mount: Callable[[str], Path]) -> None:
    device = loop_device(128 * MIB, filesystem="btrfs")
    mount(device)
    assert kinds(device) == ["mounted"]


def test_a_mounted_partition_keeps_its_disk_busy_but_not_its_neighbour(
    loop_device: Loop, mount: Callable[[str], Path]
) -> None:
    device = loop_device(table=_TWO_PARTITIONS)
    sh("mkfs.ext4", "-q", f"{device}p1")
    mount(f"{device}p1")
    assert (kinds(device), kinds(f"{device}p1"), kinds(f"{device}p2")) == (["mounted"], ["mounted"], [])
    with pytest.raises(BusyError, match=f"its partition {device}p1 is mounted at"):
        check_device(device)


def test_open_for_writing_by_another_process(loop_device: Loop, image: Path, cleanup: ExitStack) -> None:
    device = loop_device()
    pids = {path: open_in_other_process(path, "r+b", cleanup) for path in (device, image)}
    for path, pid in pids.items():
        with pytest.raises(BusyError, match=rf"it is open for writing by process {pid} \(python"):
            check_device(path)


def test_open_for_reading_does_not_matter(loop_device: Loop, image: Path, cleanup: ExitStack) -> None:
    device = loop_device()
    for path in (device, image):
        open_in_other_process(path, "rb", cleanup)
        assert kinds(path) == []


def test_a_writer_of_the_whole_disk_keeps_its_partition_busy(loop_device: Loop, cleanup: ExitStack) -> None:
    device = loop_device(table=_TWO_PARTITIONS)
    open_in_other_process(device, "r+b", cleanup)
    assert kinds(f"{device}p1") == ["open"]


def test_an_image_behind_a_loop_device_is_busy_and_names_it(loop_device: Loop, tmp_path: Path) -> None:
    device = loop_device()
    with pytest.raises(BusyError, match=f"the backing file of {device}; name that loop device instead"):
        check_device(tmp_path / "disk0.img")


def test_swap(loop_device: Loop, cleanup: ExitStack) -> None:
    device = loop_device()
    sh("mkswap", device)
    tried = subprocess.run(["swapon", device], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this machine allows no swap: {tried.stderr.strip()}")
    cleanup.callback(sh, "swapoff", device)
    with pytest.raises(BusyError, match="it is in use as swap; run swapoff first"):
        check_device(device)


def test_held_by_device_mapper(loop_device: Loop, cleanup: ExitStack) -> None:
    device = loop_device()
    name = f"blockcow-test-{os.getpid()}"
    table = f"0 2048 linear {device} 0"
    tried = subprocess.run(["dmsetup", "create", name], input=table, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this machine has no device mapper: {tried.stderr.strip()}")
    cleanup.callback(sh, "dmsetup", "remove", "--retry", name)
    with pytest.raises(BusyError, match=f"it is held by /dev/mapper/{name}"):
        check_device(device)


def test_mountinfo_with_spaces_and_optional_fields() -> None:
    text = "36 35 98:0 /m\\040n /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/my\\040root rw,errors=continue\n"
    assert mounts.parse(text) == [mounts.Mount("/mnt 2", "/dev/my root", "ext3", (98, 0), ("rw", "errors=continue"))]


def test_a_process_is_listed_once_however_often_it_opens_a_file(image: Path) -> None:
    with image.open("r+b"), image.open("r+b"):
        mine = [one for one in openers.writers() if one.key == find(image).key]
    assert [one.pid for one in mine] == [os.getpid()]


def test_devices_as_a_table_and_as_json(
    loop_device: Loop, mount: Callable[[str], Path], image: Path, blockcow: Run, tmp_path: Path
) -> None:
    busy, idle = loop_device(filesystem="ext4"), loop_device(3 * MIB)
    point = mount(busy)
    table = blockcow("devices", image, "missing.img")
    assert (table.returncode, table.stderr) == (0, "")
    lines = {line.split()[0]: line for line in table.stdout.splitlines()}
    assert "can be backed up now" in lines[idle]
    assert "3 MiB" in lines[idle]
    assert f"no: it is mounted at {point}; unmount it first" in lines[busy]
    assert "can be backed up now" in lines[str(image)]
    assert "no such file" in lines["missing.img"]
    rows = [msgspec.json.decode(line) for line in blockcow("devices", "--json", image).stdout.splitlines()]
    found = {row["name"]: row for row in rows}
    assert all((row["message_type"], row["schema"]) == ("device", 1) for row in rows)
    assert found[busy]["use"] == [f"it is mounted at {point}"]
    assert (found[busy]["can_backup"], found[busy]["type"], found[busy]["content"]) == (False, "loop", "ext4")
    assert (found[idle]["can_backup"], found[idle]["size"], found[idle]["reason"]) == (True, 3 * MIB, "")
    assert found[busy]["model"] == str(tmp_path / "disk0.img")
    assert (found[str(image)]["type"], found[str(image)]["size"]) == ("image", 8 * MIB)


def test_without_lsblk_devices_says_so_and_goes_on(loop_device: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, lsblk.Description]:
        raise LookupError("the program lsblk (package util-linux) is missing")

    device = loop_device()
    monkeypatch.setattr(lsblk, "describe", missing)
    inventory = discover()
    assert inventory.warnings == ["the program lsblk (package util-linux) is missing; models are not shown"]
    assert [found.can_backup for found in inventory.devices if found.name == device] == [True]


def test_a_busy_device_ends_the_command_with_exit_code_11(
    loop_device: Loop, mount: Callable[[str], Path], blockcow: Run
) -> None:
    device = loop_device(filesystem="ext4")
    point = mount(device)
    result = blockcow("backup", "--device", device, "--container", "memory:1M", "--dest", "x.img")
    assert_one_error(result, 11, device, f"mounted at {point}", "unmount it first")
