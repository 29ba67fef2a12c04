"""Block devices in front of files: a loop device with direct I/O whose suspended writes leave room for reads.

Asks the kernel itself, by ioctl, because losetup cannot say everything at once. Knows nothing of what the file is.
"""

import errno
import fcntl
import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blockcow._blockcow import BusyError, DeviceError
from blockcow.errors import failure

_CONTROL = "/dev/loop-control"
_BLOCK = Path("/sys/block")

# linux/loop.h
_LOOP_CLR_FD = 0x4C01
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_READ_ONLY, _AUTOCLEAR, _PARTSCAN, _DIRECT_IO = 1, 4, 8, 16
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")  # struct loop_config around struct loop_info64

_TRIES = 50
_PAUSE = 0.02
_TAGS = 128
"""Requests that a loop device can have in hand, unless the module's parameter hw_queue_depth says otherwise."""


@dataclass
class Loop:
    """A loop device that exists as long as it is in use or its descriptor is open, in whichever process."""

    path: str
    fd: int
    writes_at_once: int | None
    """How many requests other than reads it takes at a time, the rest of its tags being for reads; None where this
    kernel has no mq-deadline: then writes that are all suspended may leave reads no tag."""

    def detach(self, timeout: float = 10.0) -> None:
        """Ends it once nobody has it open, and waits for that. Raises BusyError if that takes longer: it ends by itself
        when its last user is gone. Idempotent."""
        if self.fd < 0:
            return
        folder = _BLOCK / Path(self.path).name
        with suppress(OSError):  # another process has ended it
            fcntl.ioctl(self.fd, _LOOP_CLR_FD)
        os.close(self.fd)
        self.fd = -1
        until = time.monotonic() + timeout
        while (folder / "loop").exists():
            if time.monotonic() > until:
                raise failure(
                    BusyError, f"detach {self.path}", "it is in use; unmount it (lsblk shows where)", errno.EBUSY
                )
            time.sleep(_PAUSE)


def attach(path: str, *, sector: int, read_only: bool = False) -> Loop:
    """A loop device on a file, with sectors of ``sector`` bytes, its partitions known if this kernel reads tables.

    It has the whole sectors of the file: a file of 1000 bytes gives a device of 512. Raises DeviceError with the
    reason.
    """
    operation = f"make a loop device on {path}"
    try:
        file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            loop = _configure(file, path, sector, read_only)
        finally:
            os.close(file)
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}; it takes root and the kernel's loop module (modprobe loop)"
        raise failure(DeviceError, operation, reason, error.errno) from error
    loop.writes_at_once = _reserve_tags_for_reads(_BLOCK / Path(loop.path).name)
    return loop


def adopt(path: str, fd: int) -> Loop:
    """A loop device that another process attached, by a descriptor of it, which is taken over."""
    return Loop(path, fd, _limit(_BLOCK / Path(path).name))


def _configure(file: int, path: str, sector: int, read_only: bool) -> Loop:
    flags = _DIRECT_IO | _PARTSCAN | _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    name = os.fsencode(path)[-63:]
    config = _CONFIG.pack(file, sector, *[0] * 5, 0, 0, 0, flags, name, b"", b"", 0, 0, *[0] * 8)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno not in (errno.EBUSY, errno.EAGAIN):
                    raise
                time.sleep(_PAUSE)  # another program was quicker
                continue
            return Loop(device, fd, None)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _reserve_tags_for_reads(folder: Path) -> int | None:
    """With the scheduler ``none`` all requests share the device's tags, so that suspended writes can leave none for
    reads. mq-deadline has tags of its own, more than the device, and lets writes have only so many of them."""
    queue = folder / "queue"
    try:
        (queue / "scheduler").write_text("mq-deadline")
        (queue / "nr_requests").write_text(str(2 * _TAGS))
        (queue / "iosched" / "async_depth").write_text(str(_TAGS * 3 // 4))
    except OSError:
        return None
    return _limit(folder)


def _limit(folder: Path) -> int | None:
    try:
        return int((folder / "queue" / "iosched" / "async_depth").read_text())
    except (OSError, ValueError):
        return None
