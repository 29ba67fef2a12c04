"""What is mounted, from /proc/self/mountinfo. Only reads; freezing is the business of consistency."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount point."""

    point: str
    source: str
    filesystem: str
    device: tuple[int, int]
    """Major and minor of the file system; of no block device for btrfs, tmpfs and the like."""
    options: tuple[str, ...] = ()
    """Those of the file system, not of the mount point."""


def mounted() -> list[Mount]:
    """All mounts that this process sees."""
    return parse(_MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))


def parse(text: str) -> list[Mount]:
    """The mounts in the text of a mountinfo file."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, (filesystem, source, *options) = before.split(" "), after.split(" ")
        major, minor = fields[2].split(":")
        number = (int(major), int(minor))
        mounts.append(Mount(_plain(fields[4]), _plain(source), filesystem, number, tuple("".join(options).split(","))))
    return mounts


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field)


def of_device(mounts: list[Mount], device: tuple[int, int]) -> list[Mount]:
    """Those of ``mounts`` whose file system lies on the block device with this major and minor."""
    return [mount for mount in mounts if device in (mount.device, _source_device(mount))]


def _source_device(mount: Mount) -> tuple[int, int] | None:
    # btrfs shows an anonymous number; its source names one of its devices
    if mount.device[0] != 0 or not mount.source.startswith("/dev/"):
        return None
    try:
        number = Path(mount.source).stat().st_rdev
    except OSError:
        return None
    return os.major(number), os.minor(number)
