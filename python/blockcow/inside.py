"""A container file inside the very file system that is being backed up: makes it, proves where it lies, removes it.

The file is allocated in full and never written through its file system: its extents are resolved once, and the engine
writes to those places of the device. For the file system they stay unwritten, so what is read from the file is zeroes,
not other files' old blocks. It is immutable meanwhile: nobody truncates, defragments or removes it by accident. If the
file system writes or discards there all the same, the engine sees that and breaks the backup.

FIEMAP speaks of the file system's block device. That this is the device, at the offset that sysfs gives, is not taken
on trust: chance is written to the first and last block of every extent through the file system, and must be read back
from the device at the mapped place.
"""

import contextlib
import errno
import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockcow import inside_file, mounts, sysfs
from blockcow._blockcow import BlockcowError, BusyError, ContainerError, ExistsError, NotFoundError
from blockcow.errors import failure
from blockcow.node import SECTOR

FILE_SYSTEMS = ("ext4", "xfs")
"""Where an allocated file stays in its place."""
_SECONDS = 300.0

Read = Callable[[int, int], bytes]
"""Reads so many bytes of the device from an offset."""


@dataclass(frozen=True)
class InsideFile:
    """A container file that is there and does not move."""

    path: str
    sections: Sequence[tuple[int, int]]
    """Offsets and lengths on the device."""


def origin_of(path: str, own_mounts: Sequence[str]) -> int:
    """Where the file system in which ``path`` lies begins on the device. It is one of ``own_mounts``.

    Raises ContainerError for a file system that cannot hold the container.
    """
    number = Path(path).absolute().parent.stat().st_dev
    known = {mount.point: mount for mount in mounts.mounted()}
    point = next((point for point in own_mounts if Path(point).stat().st_dev == number), None)
    mount = known.get(str(Path(point).resolve())) if point is not None else None
    if mount is None:
        raise _failure(path, "it lies in no file system on the device; name another place")
    if mount.filesystem not in FILE_SYSTEMS:
        kinds = " and ".join(FILE_SYSTEMS)
        reason = f"it lies in {mount.filesystem}, where a file does not keep its place; that needs {kinds}"
        raise _failure(path, f"{reason}. Choose a place outside the device, or memory:256M")
    if "data=journal" in mount.options:
        raise _failure(path, "its file system is mounted with data=journal, so data have two places; choose another")
    return _offset(sysfs.folder_of(mount.device))


def _offset(folder: Path) -> int:
    """Where a loop device, or a partition of it, begins in the file behind the loop device."""
    disk = sysfs.disk_of(folder)
    if disk is not None:
        return int(sysfs.text(folder / "start")) * SECTOR + _offset(disk)
    return int(sysfs.text(folder / "loop" / "offset") or 0)


def make(path: str, length: int, origin: int, read: Read) -> InsideFile:
    """Makes the file, ``length`` bytes long, in the file system that begins at ``origin`` on the device.

    What an earlier backup left at ``path`` is removed first. Returns when the file and its flag are on the disk. Raises
    a BlockcowError; then nothing is left.
    """
    clean(path)
    with _process(path, "create", "make", path, str(length)) as child:
        found = child.answer()
        _prove(path, found["samples"], origin, read)
        child.tell("keep\n")
        child.answer()
    return InsideFile(path, [(origin + physical, size) for _, physical, size in found["extents"]])


def clean(path: str) -> bool:
    """Removes the container file that a backup left at ``path``, its flag first. False: nothing of ours is there.

    The caller knows that no backup uses it any more.
    """
    with _process(path, "remove", "remove", path) as child:
        return bool(child.answer()["removed"])


def remove(path: str, at_rest: bool) -> bool:
    """Removes the container file of a backup, which is `at_rest` or not; False if it is not there."""
    if not at_rest:
        reason = "I/O of the backup that used it hangs, and its blocks may not go to other files before that has ended"
        raise _failure(path, reason, errno.EBUSY, verb="remove", kind=BusyError)
    return clean(path)


def _prove(path: str, samples: Sequence[Sequence[Any]], origin: int, read: Read) -> None:
    for physical, length, digest in samples:
        offset = origin + physical
        if hashlib.blake2b(read(length, offset)).hexdigest() != digest:
            reason = f"what was written to it is not on the device at {offset}, where its file system says it lies"
            raise _failure(path, f"{reason}; choose a place outside the device")


class _Child:
    """The process that touches the file system. This one never waits for it beyond a time limit."""

    def __init__(self, path: str, verb: str, arguments: Sequence[str]) -> None:
        self._path, self._verb = path, verb
        self._until = time.monotonic() + _SECONDS
        command = [sys.executable, "-I", "-S", inside_file.__file__, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def answer(self) -> dict[str, Any]:
        """Its next answer. Raises what it says went wrong."""
        line = self._line()
        found: dict[str, Any] = json.loads(line) if line else {"errno": None, "reason": "it was interrupted; try again"}
        if "reason" not in found:
            return found
        kinds: dict[int, type[BlockcowError]] = {errno.EEXIST: ExistsError, errno.ENOENT: NotFoundError}
        kind = kinds.get(found["errno"] or 0, ContainerError)
        raise _failure(self._path, found["reason"], found["errno"], verb=self._verb, kind=kind)

    def _line(self) -> bytes:
        output, line = self._process.stdout, b""
        while output is not None and not line.endswith(b"\n"):
            left = self._until - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                reason = f"the file system gave no answer within {_SECONDS:.0f} s"
                raise _failure(self._path, reason, errno.ETIMEDOUT, verb=self._verb)
            piece = os.read(output.fileno(), 1 << 16)
            if not piece:
                return b""
            line += piece
        return line

    def tell(self, text: str) -> None:
        """Says how to go on."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(text.encode())

    def end(self) -> None:
        """Lets it end, or kills it. One that hangs in the file system is not waited for."""
        try:
            self._process.communicate(timeout=max(self._until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextlib.contextmanager
def _process(path: str, verb: str, *arguments: str) -> Iterator[_Child]:
    child = _Child(path, verb, arguments)
    try:
        yield child
    finally:
        child.end()


def _failure(
    path: str,
    reason: str,
    number: int | None = None,
    *,
    verb: str = "create",
    kind: type[BlockcowError] = ContainerError,
) -> BlockcowError:
    return failure(kind, f"{verb} the container {path} inside the file system", reason, number)
