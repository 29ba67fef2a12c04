"""Makes and removes the container file inside a protected file system, in a process of its own. Standard library only.

Run by `inside`. A process, because a thread that waits for the file system waits for the process that serves its
device; if they are one, a kill cannot end it.

``make PATH BYTES`` answers with the extents and with what was written to some blocks of them, and waits for a line on
its input; nothing bears the name before. ``remove PATH`` removes what ``make`` made, and nothing else. Each answer is a
line of JSON; of a failure it holds ``errno`` and ``reason``.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import struct
import sys
from typing import Any, NamedTuple

MARK = "trusted.blockcow"
"""The extended attribute that tells our file from others. Only root can set it."""
MARK_VALUE = b"container 1"

_GETFLAGS, _SETFLAGS, _FSGETXATTR, _FIEMAP = 0x80086601, 0x40086602, 0x801C581F, 0xC020660B
_IMMUTABLE = 0x10
_UNFIT = {
    0x4: "it is compressed",
    0x800: "it is encrypted",
    0x4000: "its data go through the journal (data=journal, or chattr +j on the folder)",
    0x100000: "it is under fs-verity",
    0x800000: "it may be copied on write",
    0x10000000: "its data lie in the inode",
}
_REALTIME = 0x1

_FIEMAP_SYNC = 0x1
_FIEMAP_HEAD, _FIEMAP_EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
_FIEMAP_BATCH = 512
_LAST, _UNWRITTEN, _MERGED = 0x1, 0x800, 0x1000
_MOST_EXTENTS = 100_000

_libc = ctypes.CDLL(None, use_errno=True)


class Extent(NamedTuple):
    """A run of the file, and where it lies on the file system's block device; bytes."""

    logical: int
    physical: int
    length: int


class UnfitError(Exception):
    """This place cannot hold the container; says why."""


def make(path: str, length: int) -> None:
    """Allocates the file, prints where it lies, and gives it its name once that was found true."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 - pathlib would be slow to import, and is not needed
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    os.setxattr(fd, MARK, MARK_VALUE)
    _require_plain(fd)
    block = os.fstatvfs(fd).f_bsize
    length = -(-length // block) * block
    _allocate(fd, length)
    extents = extents_of(fd, length)
    samples = [sample for extent in extents for sample in _write_samples(fd, extent, block)]
    os.fsync(fd)
    _require_same(extents, extents_of(fd, length))
    _say({"extents": extents, "samples": samples})
    if sys.stdin.readline() != "keep\n":
        return  # without a name it goes with this process
    os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=True)
    try:
        _set_immutable(fd, True)
        os.fsync(fd)
        os.fsync(folder_fd)
        _check(_libc.syncfs(folder_fd), "sync the file system")
        _require_same(extents, extents_of(fd, length))
        _require_heard(_say({"made": True}))
    except BaseException:
        _set_immutable(fd, False)
        if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder_fd)):  # not what another has made meanwhile
            os.unlink(name, dir_fd=folder_fd)
        raise


def remove(path: str) -> None:
    """Removes our file; says whether there was one. Whoever calls knows that no backup uses it any more."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 - as above
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            _say({"removed": False})
            return
        raise
    ours = is_marked(fd)
    if ours:
        _set_immutable(fd, False)
        os.unlink(name, dir_fd=folder_fd)
        os.fsync(folder_fd)
    _say({"removed": ours})


def is_marked(file: int | str) -> bool:
    """Whether an open file, or the file at a path, is one that `make` made."""
    try:
        return os.getxattr(file, MARK) == MARK_VALUE
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def extents_of(fd: int, length: int) -> list[Extent]:
    """The extents of all ``length`` bytes, by FIEMAP. Raises UnfitError if one is not plainly on the device."""
    extents: list[Extent] = []
    position = 0
    while position < length:
        batch = _fiemap(fd, position, length - position)
        if not batch:
            raise UnfitError(f"it has a hole at {position}, although it was allocated")
        for logical, physical, size, flags in batch:
            if logical != position:
                raise UnfitError(f"it has a hole at {position}, although it was allocated")
            if flags & ~(_LAST | _UNWRITTEN | _MERGED):
                raise UnfitError(f"its bytes at {logical} are not plainly on the device (FIEMAP flags {flags:#x})")
            wanted = min(size, length - position)
            _append(extents, Extent(logical, physical, wanted))
            position += wanted
        if len(extents) > _MOST_EXTENTS:
            raise UnfitError(
                f"it would lie in more than {_MOST_EXTENTS} pieces; the file system is too fragmented for it"
            )
    return extents


def _append(extents: list[Extent], new: Extent) -> None:
    """Joins what is one run but for its state: allocated, or allocated and written."""
    if extents and extents[-1].physical + extents[-1].length == new.physical:
        last = extents.pop()
        new = Extent(last.logical, last.physical, last.length + new.length)
    extents.append(new)


def _fiemap(fd: int, start: int, length: int) -> list[tuple[int, int, int, int]]:
    buffer = bytearray(_FIEMAP_HEAD.size + _FIEMAP_BATCH * _FIEMAP_EXTENT.size)
    _FIEMAP_HEAD.pack_into(buffer, 0, start, length, _FIEMAP_SYNC, 0, _FIEMAP_BATCH, 0)
    fcntl.ioctl(fd, _FIEMAP, buffer)
    found = []
    for index in range(_FIEMAP_HEAD.unpack_from(buffer)[3]):
        fields = _FIEMAP_EXTENT.unpack_from(buffer, _FIEMAP_HEAD.size + index * _FIEMAP_EXTENT.size)
        logical, physical, size, flags = fields[0], fields[1], fields[2], fields[5]
        if logical < start:  # an extent that began earlier
            logical, physical, size = start, physical + start - logical, size - (start - logical)
        found.append((logical, physical, size, flags))
    return found


def _require_plain(fd: int) -> None:
    flags = _flags(fd)
    for flag, reason in _UNFIT.items():
        if flags & flag:
            raise UnfitError(reason)
    attributes = bytearray(28)
    fcntl.ioctl(fd, _FSGETXATTR, attributes)
    if struct.unpack_from("=L", attributes)[0] & _REALTIME:
        raise UnfitError("it would lie on the file system's realtime device")


def _allocate(fd: int, length: int) -> None:
    space = os.fstatvfs(fd)
    free = space.f_bavail * space.f_frsize
    if length > free:
        raise UnfitError(f"it needs {length} bytes and the file system has {free} left; give a smaller container size")
    fallocate = _libc.fallocate  # not posix_fallocate, which writes where the file system cannot allocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    _check(fallocate(fd, 0, 0, length), "allocate it")
    os.fsync(fd)


def _write_samples(fd: int, extent: Extent, block: int) -> list[tuple[int, int, str]]:
    """Writes chance to the first and the last block of an extent: where on the device, how many bytes, their digest."""
    samples = []
    with mmap.mmap(-1, block) as buffer:  # on a page, as direct I/O wants it
        for offset in {0, extent.length - block}:
            buffer[:] = os.urandom(block)
            if os.pwrite(fd, buffer, extent.logical + offset) != block:
                raise OSError(errno.EIO, "write to the file")
            samples.append((extent.physical + offset, block, hashlib.blake2b(buffer).hexdigest()))
    return samples


def _require_same(before: list[Extent], now: list[Extent]) -> None:
    if before != now:
        raise UnfitError("the file system moved it while it was being looked at")


def _require_heard(heard: bool) -> None:
    if not heard:
        raise UnfitError("nobody waits for it any more")


def _flags(fd: int) -> int:
    return int(struct.unpack("=L", fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4])[0])


def _set_immutable(fd: int, on: bool) -> None:
    flags = _flags(fd)
    flags = flags | _IMMUTABLE if on else flags & ~_IMMUTABLE
    fcntl.ioctl(fd, _SETFLAGS, struct.pack("=Q", flags))


def _check(returned: int, operation: str) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{operation}: {os.strerror(number)}")


def _say(answer: dict[str, Any]) -> bool:
    """Whether somebody still listens."""
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def _run(arguments: list[str]) -> None:
    try:
        match arguments:
            case ["make", path, length]:
                make(path, int(length))
            case ["remove", path]:
                remove(path)
    except UnfitError as error:
        _say({"errno": None, "reason": str(error)})
    except OSError as error:
        _say({"errno": error.errno, "reason": error.strerror})


if __name__ == "__main__":
    _run(sys.argv[1:])
