"""File systems that a killed daemon left frozen on a loop device: thawed, also when they are mounted nowhere any more.

A frozen file system outlives its unmounting: out of sight it keeps its device for ever, until somebody thaws it.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from blockcow import programs, thaw_guard
from blockcow.daemon.uses import folders_on

_KINDS = ("ext4", "xfs", "btrfs", "f2fs", "ext3", "ext2")


def thaw(loop: str, spare: Path) -> bool:
    """Thaws what is in use on the loop device, by mounting it once more, at the folder ``spare`` that is made for that.

    Nothing is read from the device: the file system is in memory, and only its own kind finds it there. Whether one was
    frozen. Raises TimeoutError if mounting hangs.
    """
    spare.mkdir(exist_ok=True)
    devices = [f"/dev/{folder.name}" for folder in folders_on(loop)]
    thawed = [device for device in devices if any(_mount_and_thaw(device, kind, spare) for kind in _KINDS)]
    spare.rmdir()
    return bool(thawed)


def _mount_and_thaw(device: str, kind: str, spare: Path) -> bool:
    mounted = programs.run("mount", ["--types", kind, device, str(spare)])
    if mounted is None or mounted.returncode != 0:
        return False
    try:
        return _thaw(spare)
    finally:
        programs.run("umount", ["--lazy", str(spare)])


def _thaw(point: Path) -> bool:
    descriptor = os.open(point, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # it is not frozen
            fcntl.ioctl(descriptor, thaw_guard.FITHAW, 0)
            return True
    finally:
        os.close(descriptor)
    return False
