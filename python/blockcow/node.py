"""A block device or image file named by a path: what it is, how large, and its identity. Opens nothing."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from blockcow._blockcow import NotFoundError
from blockcow.errors import failure

SYS_DEV = Path("/sys/dev/block")
SECTOR = 512
"""The kernel's unit in /sys, whatever the device's own sector is."""


@dataclass(frozen=True)
class Node:
    """What a path leads to. Two paths to one device or file give equal ``key``."""

    path: str
    """As the user wrote it."""
    is_block: bool
    key: tuple[str, int, int]
    """``("block", major, minor)`` or ``("file", st_dev, st_ino)``."""
    size: int

    @property
    def sysfs(self) -> Path:
        """Where the kernel describes a block device. Meaningless for a file."""
        return (SYS_DEV / f"{self.key[1]}:{self.key[2]}").resolve()


def key_of(info: os.stat_result) -> tuple[str, int, int]:
    """The identity of a device or file from its stat result."""
    if stat.S_ISBLK(info.st_mode):
        return "block", os.major(info.st_rdev), os.minor(info.st_rdev)
    return "file", info.st_dev, info.st_ino


def find(path: str | os.PathLike[str], role: str = "device") -> Node:
    """The node at ``path``. Raises NotFoundError, OSError, or ValueError if it is neither."""
    name = os.fspath(path)
    try:
        info = Path(name).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = "no such file or device; 'blockcow devices' lists what there is"
        raise failure(NotFoundError, f"open the {role} {name}", reason, error.errno) from error
    if stat.S_ISDIR(info.st_mode):
        raise ValueError(f"the {role} {name} is a directory: name a block device or an image file")
    if not (stat.S_ISBLK(info.st_mode) or stat.S_ISREG(info.st_mode)):
        raise ValueError(f"the {role} {name} is neither a block device nor a file")
    key = key_of(info)
    if not stat.S_ISBLK(info.st_mode):
        return Node(name, False, key, info.st_size)
    return Node(name, True, key, int((SYS_DEV / f"{key[1]}:{key[2]}" / "size").read_text(encoding="ascii")) * SECTOR)


def find_if_there(path: str | os.PathLike[str], role: str) -> Node | None:
    """The node at ``path``, or None where nothing is."""
    return find(path, role) if os.path.lexists(path) else None
