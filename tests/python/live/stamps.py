"""Writes sectors that say who wrote them and when, and proves that an image is what they were at one instant.

A stream writes one run of sectors after the other, each after the one before was acknowledged, to its targets in
turn. Which sectors, follows from its seed. So an image is a cut of the stream exactly if it holds the first so many
writes and nothing else, but for one that was under way. The log says when each write began and when it was
acknowledged, by the machine's monotonic clock, so the instants of several streams, and of hooks, can be compared.

As a program it is the writer, a process of its own: no kill of another and no lock of an interpreter touches it. It
knows nothing of blockcow.
"""

import argparse
import math
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

SECTOR = 512
LONGEST_RUN = 8  # sectors of one write
MOST_WRITES = 1 << 21
_MAGIC = b"stamped\n"
_HEADER = struct.Struct("<8sQQQ")  # magic, seed of the stream, number of the write, offset in the target
_TIMES = struct.Struct("<QQQ")  # when a write began, when it was acknowledged, when a later flush was: ns, 0 if never
_SECONDS = 30.0


def stamp(seed: int, number: int, offset: int) -> bytes:
    """One sector. What follows the header tells a torn sector from a whole one."""
    body = _HEADER.pack(_MAGIC, seed, number, offset)
    body += body[16:24] * ((SECTOR - len(body)) // 8 - 1)
    return body + struct.pack("<Q", zlib.crc32(body))


def number_of(sector: bytes, seed: int, offset: int) -> int:
    """The number of the write that a sector comes from, 0 if it was never written."""
    number: int = _HEADER.unpack_from(sector)[2]
    if sector == stamp(seed, number, offset):
        return number
    if not any(sector):
        return 0
    raise AssertionError(f"the sector at offset {offset} was written by nobody: {sector[:32].hex()}…")


@dataclass(frozen=True)
class Region:
    """Where a stream writes: a run of sectors of a device or file."""

    path: str
    offset: int
    sectors: int


Move = tuple[int, int, int, int]
"""One write: its number, its target, its first sector within the region, how many sectors."""


@dataclass
class Stream:
    """One sequence of writes, each acknowledged before the next begins."""

    seed: int
    targets: Sequence[Region]
    log: Path
    flush_every: int = 0

    _moves: Iterator[Move] = field(init=False, repr=False)
    _next: Move = field(init=False, repr=False)
    _held: list[list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._moves = self.moves()
        self._next = next(self._moves)
        self._held = [[0] * region.sectors for region in self.targets]

    def moves(self) -> Iterator[Move]:
        """All writes, without end."""
        random = Random(self.seed)
        number = 0
        while True:
            number += 1
            target = number % len(self.targets)
            sectors = self.targets[target].sectors
            run = random.randint(1, min(LONGEST_RUN, sectors))
            yield number, target, random.randrange(sectors - run + 1), run

    def just_before(self, number: int) -> tuple[list[list[int]], Move]:
        """Which write each sector of each target is of before this one, and this one. Quick for rising numbers."""
        if self._next[0] > number:
            self.__post_init__()
        while self._next[0] < number:
            _, target, first, run = self._next
            self._held[target][first : first + run] = [self._next[0]] * run
            self._next = next(self._moves)
        return [list(numbers) for numbers in self._held], self._next


class Log:
    """Times of the writes of one stream; in memory that the writer shares, so it is true after any kill."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(MOST_WRITES * _TIMES.size)
            self._memory = mmap.mmap(file.fileno(), 0)

    def note(self, number: int, column: int) -> None:
        """Column 0: it begins. 1: it is acknowledged. 2: it is flushed."""
        struct.pack_into("<Q", self._memory, number * _TIMES.size + column * 8, time.monotonic_ns())

    def times(self, number: int) -> tuple[int, int, int]:
        began, acknowledged, flushed = _TIMES.unpack_from(self._memory, number * _TIMES.size)
        return began, acknowledged, flushed

    def last(self, column: int) -> int:
        """The highest number that has a time in this column. Flushes are noted at the last write before them."""
        low, high = 0, MOST_WRITES
        while high - low > 1:  # writes begin in order
            middle = (low + high) // 2
            low, high = (middle, high) if self.times(middle)[0] else (low, middle)
        while low > 0 and not self.times(low)[column]:
            low -= 1
        return low


@dataclass(frozen=True)
class Found:
    """Which instants, by the monotonic clock in ns, an image can be of."""

    number: int
    torn: bool
    earliest: float
    latest: float


def find(stream: Stream, images: Sequence[Callable[[int, int], bytes]]) -> Found:
    """Fails unless the images, one a target and read by ``(length, offset)``, are one cut of the stream."""
    held = [_numbers(stream.seed, region, image) for region, image in zip(stream.targets, images, strict=True)]
    last = max(max(numbers) for numbers in held)
    expected, (number, target, first, run) = stream.just_before(max(last, 1))
    torn = number == last and held[target][first : first + run] != [last] * run
    for sector in range(first, first + run):
        if number == last == held[target][sector]:
            expected[target][sector] = last
    for target, region in enumerate(stream.targets):
        wrong = [at for at in range(region.sectors) if held[target][at] != expected[target][at]]
        assert not wrong, (
            f"{len(wrong)} sectors are not of one cut; the last write is {last}, but sector {wrong[0]} of "
            f"{region.path} is of {held[target][wrong[0]]} and should be of {expected[target][wrong[0]]}"
        )
    log = Log(stream.log)
    return Found(
        number=last,
        torn=torn,
        earliest=log.times(last)[0] if last else 0,
        latest=log.times(last if torn else last + 1)[1] or math.inf,
    )


def _numbers(seed: int, region: Region, read: Callable[[int, int], bytes]) -> list[int]:
    content = read(region.sectors * SECTOR, region.offset)
    assert len(content) == region.sectors * SECTOR, f"{region.path} ends early"
    return [number_of(content[at : at + SECTOR], seed, at + region.offset) for at in range(0, len(content), SECTOR)]


def assert_one_instant(found: Sequence[Found], before: int = 0, after: float = math.inf) -> None:
    """There is an instant that all of them are of, later than ``before`` and earlier than ``after``."""
    earliest = max(before, *(each.earliest for each in found))
    latest = min(after, *(each.latest for each in found))
    assert earliest <= latest, f"no instant fits: {found}, between hooks {before} and {after}"


def find_flushed(stream: Stream, images: Sequence[Callable[[int, int], bytes]]) -> int:
    """Fails unless each sector holds what was last flushed there, or something written later; counts what was flushed.

    For a device whose daemon was killed: writes that were not flushed may be there or not.
    """
    log = Log(stream.log)
    flushed, begun = log.last(2), log.last(0)
    lowest, _ = stream.just_before(flushed + 1)
    for region, image, least in zip(stream.targets, images, lowest, strict=True):
        for sector, number in enumerate(_numbers(stream.seed, region, image)):
            assert least[sector] <= number <= begun, (
                f"sector {sector} of {region.path} holds write {number}; {least[sector]} was flushed, {begun} begun"
            )
    return flushed


def reader(path: str | os.PathLike[str]) -> Callable[[int, int], bytes]:
    """Reads an image file, or a file in an image that is mounted."""

    def read(length: int, offset: int) -> bytes:
        with Path(path).open("rb", buffering=0) as file:
            file.seek(offset)
            content = bytearray()
            while len(content) < length and (piece := file.read(length - len(content))):
                content += piece
            return bytes(content)

    return read


@dataclass
class Writer:
    """The process that writes a stream, from ``with`` until the end of its block or ``stop``."""

    stream: Stream
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    error: str = field(default="", init=False)

    def __enter__(self) -> Self:
        self.begin()
        self.wait_for(1)
        return self

    def begin(self) -> None:
        """Starts it. Its first write may be suspended."""
        regions = [f"{region.path}:{region.offset}:{region.sectors}" for region in self.stream.targets]
        options = [f"--seed={self.stream.seed}", f"--log={self.stream.log}", f"--flush-every={self.stream.flush_every}"]
        command = [sys.executable, __file__, *options, *regions]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.stop()
        elif self.process is not None:
            self.process.kill()  # not waited for: what it writes to may hang

    def written(self) -> int:
        return Log(self.stream.log).last(1)

    def wait_for(self, number: int) -> None:
        """Until this write is acknowledged."""
        log, deadline = Log(self.stream.log), time.monotonic() + _SECONDS
        while not log.times(number)[1]:
            assert self.process is not None
            assert self.process.poll() is None, f"the writer ended: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline, f"write {number} is not acknowledged after {_SECONDS:.0f} s"
            time.sleep(0.001)

    def stop(self, *, may_fail: bool = False) -> int:
        """Ends it, fails if one of its writes failed; the number of its last write that was acknowledged."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.error = self.process.communicate(timeout=_SECONDS)[1]
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
            assert may_fail or self.process.returncode == 0, f"a write failed: {self.error}"
            self.process = None
        return self.written()


def _write(stream: Stream) -> None:
    """The program: writes until it is told to end or a write fails."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    log = Log(stream.log)
    files = [os.open(region.path, os.O_WRONLY | os.O_DIRECT) for region in stream.targets]
    buffer = mmap.mmap(-1, LONGEST_RUN * SECTOR)
    for number, target, first, run in stream.moves():
        if stopped or number >= MOST_WRITES:
            return
        offset = stream.targets[target].offset + first * SECTOR
        length = run * SECTOR
        buffer[:length] = b"".join(stamp(stream.seed, number, at) for at in range(offset, offset + length, SECTOR))
        log.note(number, 0)
        with memoryview(buffer) as view, view[:length] as piece:
            if os.pwrite(files[target], piece, offset) != length:
                sys.exit(f"write {number} to {stream.targets[target].path} at offset {offset} was short")
        log.note(number, 1)
        if stream.flush_every and number % stream.flush_every == 0:
            for file in files:
                os.fdatasync(file)
            log.note(number, 2)


def _region(text: str) -> Region:
    path, offset, sectors = text.rsplit(":", 2)
    return Region(path, int(offset), int(sectors))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--flush-every", type=int, default=0)
    parser.add_argument("targets", type=_region, nargs="+")
    options = parser.parse_args()
    _write(Stream(options.seed, options.targets, options.log, options.flush_every))
