"""What `blockcow demo` does, without the screen: a device file with content, writers at full speed, the proof.

The writers stand still only while the device is copied and the cut is made, so that the copy is exact. Before the cut
they write behind the file system, after it they write everywhere, over the file system too.
"""

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockcow import _blockcow, programs

_CHUNK = 1024 * 1024
_BLOCK = 4096
_SECTOR = 512
_LONGEST_WRITE = 64 * 1024


def make_device(path: Path, size: int, seed: int) -> int:
    """Fills a file with content; returns where the writers may write without harming the file system in it.

    Three quarters are ext4 with files, the rest noise; all of it is noise where mkfs.ext4 is missing.
    """
    noise = random.Random(seed).randbytes(2 * _CHUNK)
    with path.open("wb") as file:
        for offset in range(0, size, _CHUNK):
            start = (offset // _CHUNK * 4099) % _CHUNK
            file.write(noise[start : start + min(_CHUNK, size - offset)])
    end = size * 3 // 4 // _CHUNK * _CHUNK
    if programs.where("mkfs.ext4") is None:
        return 0
    content = path.with_suffix(".content")
    _make_files(content, end * 6 // 10, noise)
    options = ["-q", "-F", "-E", "nodiscard", "-d", str(content), str(path), f"{end // 1024}k"]
    result = programs.run("mkfs.ext4", options)
    if result is None or result.returncode != 0:
        raise RuntimeError(f"mkfs.ext4 failed: {result.stderr.strip() if result else 'it is missing'}")
    return end


def _make_files(folder: Path, total: int, noise: bytes) -> None:
    folder.mkdir()
    length = 300_007
    for number in range(total // length):
        place = folder / f"folder{number % 8}"
        place.mkdir(exist_ok=True)
        start = number * 997 % _CHUNK
        (place / f"file{number}.txt").write_bytes(b"file %d\n" % number + noise[start : start + length])


class Writers:
    """Threads that write, discard and zero at random places of a device until stopped."""

    def __init__(self, device: _blockcow.Device, region: tuple[int, int], threads: int, seed: int) -> None:
        self.region = region
        self._device = device
        self._running = threading.Event()
        self._running.set()
        self._stopping = False
        self._turns = [threading.Lock() for _ in range(threads)]
        self._counts = [0] * threads
        self.failure: Exception | None = None
        """The first write that failed; the promise is that none does."""
        self._threads = [
            threading.Thread(target=self._write_on, args=(number, random.Random(seed + number)), daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def writes(self) -> int:
        """How many writes, discards and zeroes have been done."""
        return sum(self._counts)

    def pause(self) -> None:
        """Returns when no write is in flight; none begins before `resume`."""
        self._running.clear()
        for turn in self._turns:
            turn.acquire()

    def resume(self) -> None:
        """Lets the writers go on."""
        for turn in self._turns:
            turn.release()
        self._running.set()

    def stop(self) -> None:
        """Ends the threads. Idempotent; not while paused."""
        self._stopping = True
        self._running.set()
        for thread in self._threads:
            thread.join()

    def _write_on(self, number: int, chance: random.Random) -> None:
        noise = chance.randbytes(2 * _LONGEST_WRITE)
        try:
            while not self._stopping:
                self._running.wait()
                with self._turns[number]:
                    self._write_once(chance, noise)
                self._counts[number] += 1
        except Exception as error:
            self.failure = self.failure or error

    def _write_once(self, chance: random.Random, noise: bytes) -> None:
        start, end = self.region
        length = chance.randrange(_SECTOR, min(_LONGEST_WRITE, end - start) + 1, _SECTOR)
        offset = chance.randrange(start, end - length + 1, _SECTOR)
        kind = chance.random()
        if kind < 0.1:
            self._device.discard(offset, length)
        elif kind < 0.2:
            self._device.zero(offset, length)
        else:
            begin = chance.randrange(_LONGEST_WRITE)
            self._device.pwrite(memoryview(noise)[begin : begin + length], offset)


@dataclass(frozen=True)
class Comparison:
    """Two files, byte for byte."""

    first_difference: int | None
    """Offset of the first differing byte; None if they are equal."""
    differing_blocks: int
    """Blocks of 4 KiB that differ."""


def compare(one: Path, other: Path) -> Comparison:
    """Compares all bytes and the sizes of two files."""
    first, blocks = None, 0
    for offset, left, right in _pairs(one, other):
        if left == right:
            continue
        for start in range(0, max(len(left), len(right)), _BLOCK):
            mine, yours = left[start : start + _BLOCK], right[start : start + _BLOCK]
            if mine == yours:
                continue
            blocks += 1
            if first is None:
                same = next((at for at, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b), len(mine))
                first = offset + start + min(same, len(yours))
    return Comparison(first, blocks)


def _pairs(one: Path, other: Path) -> Iterator[tuple[int, bytes, bytes]]:
    with one.open("rb") as left, other.open("rb") as right:
        offset = 0
        while (mine := left.read(_CHUNK)) + (yours := right.read(_CHUNK)):
            yield offset, mine, yours
            offset += _CHUNK


def check_filesystem(image: Path) -> bool | None:
    """Whether e2fsck finds the file system in ``image`` clean; None where e2fsck is missing."""
    result = programs.run("e2fsck", ["-f", "-n", str(image)])
    return None if result is None else result.returncode == 0
