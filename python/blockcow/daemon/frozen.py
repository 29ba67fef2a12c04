"""File systems that a killed daemon left frozen on a loop device: thawed, also when they are mounted nowhere any more.

A frozen file system outlives its unmounting: out of sight it keeps its device for ever, until somebody thaws it.
"""

import fcntl
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from blockcow import thaw_guard
from blockcow.daemon.uses import folders_on

_KINDS = ("ext4", "xfs", "btrfs", "f2fs", "ext3", "ext2")
_SECONDS = 20.0


def thaw(loop: str, spare: Path) -> bool:
    """Thaws what is in use on the loop device, by mounting it once more, at the folder ``spare`` that is made for that.

    Nothing is read from the device: the file system is in memory, and only its own kind finds it there. Whether one was
    frozen.
    """
    spare.mkdir(exist_ok=True)
    devices = [f"/dev/{folder.name}" for folder in folders_on(loop)]
    thawed = [device for device in devices if any(_mount_and_thaw(device, kind, spare) for kind in _KINDS)]
    spare.rmdir()
    return bool(thawed)


def _mount_and_thaw(device: str, kind: str, spare: Path) -> bool:
    if not _done("mount", "--types", kind, device, str(spare)):
        return False
    try:
        return _thaw(spare)
    finally:
        _done("umount", "--lazy", str(spare))


def _thaw(point: Path) -> bool:
    descriptor = os.open(point, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # it is not frozen
            fcntl.ioctl(descriptor, thaw_guard.FITHAW, 0)
            return True
    finally:
        os.close(descriptor)
    return False


def _done(*command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    return done.returncode == 0
