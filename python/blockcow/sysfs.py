"""Facts on block devices from /sys: partitions, holders, loop files, swap. No opinion on what they mean."""

import os
from dataclasses import dataclass
from pathlib import Path

from blockcow import mounts
from blockcow.node import SECTOR, SYS_DEV, key_of

FILE_SYSTEM = "fuse.blockcow"
"""What the mount of a file in front of a device is called."""

_CLASS = Path("/sys/class/block")
_SWAPS = Path("/proc/swaps")


@dataclass(frozen=True)
class Partition:
    """A partition that the kernel knows."""

    name: str
    number: tuple[int, int]
    start: int
    size: int


def text(path: Path) -> str:
    """The content of a sysfs file, or an empty string where it is absent."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(folder: Path) -> tuple[int, int]:
    """Major and minor of the device that a sysfs folder describes."""
    major, minor = text(folder / "dev").split(":")
    return int(major), int(minor)


def partitions(folder: Path) -> list[Partition]:
    """The partitions of a whole disk, by start."""
    found = [
        Partition(
            f"/dev/{entry.name}",
            number(entry),
            int(text(entry / "start")) * SECTOR,
            int(text(entry / "size")) * SECTOR,
        )
        for entry in folder.iterdir()
        if (entry / "partition").exists()
    ]
    return sorted(found, key=lambda partition: partition.start)


def disk_of(folder: Path) -> Path | None:
    """The folder of the disk that a partition is on, or None for a whole disk."""
    return folder.parent if (folder / "partition").exists() else None


def holders(folder: Path) -> list[str]:
    """Devices made of this one: ``/dev/mapper/x``, ``/dev/md0``."""
    try:
        names = sorted(entry.name for entry in (folder / "holders").iterdir())
    except OSError:
        return []
    return [_mapped_name(name) for name in names]


def _mapped_name(name: str) -> str:
    mapped = text(_CLASS / name / "dm" / "name")
    return f"/dev/mapper/{mapped}" if mapped else f"/dev/{name}"


def all_devices() -> list[Path]:
    """The sysfs folders of all block devices that hold anything, in the order of their names."""
    folders = sorted(_CLASS.iterdir(), key=lambda entry: (entry.name.rstrip("0123456789"), len(entry.name), entry.name))
    return [folder.resolve() for folder in folders if text(folder / "size") not in ("", "0")]


def loops_on() -> dict[tuple[str, int, int], str]:
    """Backing file of each loop device in use, as a node's key, with the device's name."""
    found = {}
    # Our own files are never a device, and whoever asks for their attributes waits while their server is replaced.
    ours = {mount.point for mount in mounts.mounted() if mount.filesystem == FILE_SYSTEM}
    for loop in _CLASS.glob("loop*"):
        backing = text(loop / "loop" / "backing_file")
        try:
            info = Path(backing).stat() if backing and backing not in ours else None
        except OSError:  # deleted: nobody can name it any more
            continue
        if info is not None:
            found[("file", info.st_dev, info.st_ino)] = f"/dev/{loop.name}"
    return found


def loops_over(path: str | os.PathLike[str]) -> list[Path]:
    """The sysfs folders of the loop devices on the file with this very name. Asks only sysfs: the file may hang."""
    name = os.path.abspath(path)  # noqa: PTH100 - resolve() would look at the file
    return [loop.resolve() for loop in _CLASS.glob("loop*") if text(loop / "loop" / "backing_file") == name]


def swaps() -> list[tuple[str, int, int]]:
    """Keys of the nodes that are swap space."""
    found = []
    for line in text(_SWAPS).splitlines()[1:]:
        path = line.split()[0].encode().decode("unicode_escape")
        try:
            found.append(key_of(Path(path).stat()))
        except OSError:  # deleted
            continue
    return found


def folder_of(device: tuple[int, int]) -> Path:
    """The sysfs folder of a device by major and minor."""
    return (SYS_DEV / f"{device[0]}:{device[1]}").resolve()
