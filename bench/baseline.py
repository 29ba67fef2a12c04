"""Copy-before-write in pure Python: what the engine is measured against.

The engine's algorithm with the standard library's means: threads, os.pread and os.pwrite, bytearrays as bitmaps and
conditions to wait on. It is meant to be right, and as quick as plain Python can be. It writes no manifest, knows no
discards and keeps no deadline: the first error breaks the backup, and the writes go on.
"""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

BLOCK = 4096
EXTENT = 1 << 20
BLOCKS_PER_EXTENT = EXTENT // BLOCK
ZERO_BLOCK = bytes(BLOCK)

Run = tuple[int, int]
"""A half-open run of block numbers, or of bytes."""


class Gate:
    """Two bits a block: who may copy it, and whether it is copied. A write goes when all its blocks are."""

    def __init__(self, blocks: int) -> None:
        self._claimed = bytearray(blocks)
        self._copied = bytearray(blocks)
        self._changed = threading.Condition()

    def admit(self, start: int, end: int) -> bool:
        return self._copied.find(0, start, end) < 0

    def uncopied(self, start: int, end: int) -> int:
        return self._copied.count(0, start, end)

    def claim(self, start: int, end: int) -> list[Run]:
        """The runs that nobody had claimed; they are the caller's to copy now."""
        runs = []
        with self._changed:
            while (start := self._claimed.find(0, start, end)) >= 0:
                taken = self._claimed.find(1, start, end)
                stop = end if taken < 0 else taken
                self._claimed[start:stop] = b"\1" * (stop - start)
                runs.append((start, stop))
                start = stop
        return runs

    def mark_copied(self, runs: Iterable[Run]) -> None:
        with self._changed:
            for start, end in runs:
                self._copied[start:end] = b"\1" * (end - start)
            self._changed.notify_all()

    def wait_copied(self, start: int, end: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.admit(start, end))

    def open(self) -> None:
        """Lets every write go, now and later."""
        with self._changed:
            self._claimed[:] = self._copied[:] = b"\1" * len(self._copied)
            self._changed.notify_all()


class Container:
    """A file of slots, each for one block, and an index from block to slot. When full, takers wait for the drain."""

    def __init__(self, path: Path, size: int) -> None:
        slots = size // BLOCK
        self.capacity = max(1, slots * 9 // 10)
        self.draining = False
        self._drain = max(1, slots // 4)
        self._free = deque(range(slots))
        self._in_use = 0
        self._index: defaultdict[int, dict[int, int]] = defaultdict(dict)
        self._open = False
        self._changed = threading.Condition()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(self._fd, size)

    def take(self, wanted: int) -> list[int]:
        """Slots for ``wanted`` blocks, all or (once the container is open) none. Waits, holding nothing, when full."""
        if not wanted:
            return []
        with self._changed:
            while not self._open and (self.draining or self._in_use + wanted > self.capacity):
                self.draining = True
                self._changed.wait()
            if self._open:
                return []
            self._in_use += wanted
            return [self._free.popleft() for _ in range(wanted)]

    def give_back(self, slots: Iterable[int]) -> None:
        with self._changed:
            free = len(self._free)
            self._free.extend(slots)
            self._in_use -= len(self._free) - free
            if self._in_use <= self.capacity - min(self._drain, self.capacity):
                self.draining = False
                self._changed.notify_all()

    def put(self, block: int, slots: list[int], data: memoryview) -> None:
        """Stores the blocks from ``block`` on, neighbouring slots in one write."""
        for _, neighbours in groupby(enumerate(slots), key=lambda pair: pair[1] - pair[0]):
            run = list(neighbours)
            (first, slot), (last, _) = run[0], run[-1]
            write_all(self._fd, data[first * BLOCK : (last + 1) * BLOCK], slot * BLOCK)
        with self._changed:
            for number, slot in enumerate(slots, block):
                self._index[number // BLOCKS_PER_EXTENT][number] = slot

    def fullest(self) -> int | None:
        """The extent that holds most slots."""
        with self._changed:
            return max(self._index, key=lambda extent: len(self._index[extent]), default=None)

    def collect(self, extent: int) -> dict[int, int]:
        """Takes an extent's blocks out of the index; their slots are the caller's to give back."""
        with self._changed:
            return self._index.pop(extent, {})

    def read_into(self, view: memoryview, slot: int) -> None:
        read_into(self._fd, view, slot * BLOCK)

    def open(self) -> None:
        """Nobody waits for a slot any more: the backup is over."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def close(self) -> None:
        os.close(self._fd)


class Destination:
    """An image under a temporary name until it is published; zeroes are left as holes."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.digests: dict[int, bytes] = {}
        os.ftruncate(self._fd, size)

    def write(self, extent: int, data: bytearray) -> None:
        self.digests[extent] = blake2b(data).digest()
        view = memoryview(data)
        for start, end in data_runs(data):
            write_all(self._fd, view[start:end], extent * EXTENT + start)

    def publish(self) -> None:
        os.fsync(self._fd)
        self._partial.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)

    def close(self) -> None:
        os.close(self._fd)


class Backup:
    """One backup: a gate in front of the writes, and a thread that sweeps the device behind it."""

    def __init__(self, fd: int, size: int, container: Path, container_size: int, dest: Path) -> None:
        self.cause: OSError | None = None
        self._fd = fd
        self._size = size
        self._blocks = -(-size // BLOCK)
        self._gate = Gate(self._blocks)
        self._container = Container(container, container_size)
        self._piece = min(BLOCKS_PER_EXTENT, self._container.capacity)
        self._destination = Destination(dest, size)
        self._swept = bytearray(-(-size // EXTENT))
        self._thread = threading.Thread(target=self._sweep, name="sweep")

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> None:
        """Waits for the end and raises the first cause if the backup broke."""
        self._thread.join()
        if self.cause is not None:
            raise self.cause

    def close(self) -> None:
        """Closes the files. Only when it has ended, and no write is in flight."""
        self._container.close()
        self._destination.close()

    def before_write(self, offset: int, length: int) -> None:
        """Sees to it that the old blocks are safe."""
        start, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        if self._gate.admit(start, end):
            return
        try:
            for at in range(start, end, self._piece):
                self._copy(at, min(at + self._piece, end))
        except OSError as cause:
            self._break(cause)
        self._gate.wait_copied(start, end)

    def _copy(self, start: int, end: int) -> None:
        # Slots first and claims second: who waits for a slot must hold nothing that the drain waits for.
        slots = self._container.take(self._gate.uncopied(start, end))
        for run in self._gate.claim(start, end):
            blocks = run[1] - run[0]
            view = memoryview(bytearray(blocks * BLOCK))
            read_into(self._fd, view[: self._bytes(*run)], run[0] * BLOCK)
            self._container.put(run[0], slots[:blocks], view)
            del slots[:blocks]
            self._gate.mark_copied([run])
        self._container.give_back(slots)

    def _sweep(self) -> None:
        try:
            while self.cause is None and (extent := self._next_extent()) is not None:
                self._sweep_extent(extent)
            if self.cause is None:
                self._destination.publish()
        except OSError as cause:
            self._break(cause)
        self._container.open()

    def _next_extent(self) -> int | None:
        if self._container.draining and (fullest := self._container.fullest()) is not None:
            return fullest
        unswept = self._swept.find(0)
        return None if unswept < 0 else unswept

    def _sweep_extent(self, extent: int) -> None:
        start = extent * BLOCKS_PER_EXTENT
        end = min(start + BLOCKS_PER_EXTENT, self._blocks)
        data = bytearray(self._bytes(start, end))
        view = memoryview(data)
        runs = self._gate.claim(start, end)
        for first, last in runs:
            at = (first - start) * BLOCK
            read_into(self._fd, view[at : at + self._bytes(first, last)], first * BLOCK)
        self._gate.mark_copied(runs)
        self._gate.wait_copied(start, end)
        slots = self._container.collect(extent)
        for block, slot in slots.items():
            at = (block - start) * BLOCK
            self._container.read_into(view[at : at + BLOCK], slot)
        self._destination.write(extent, data)
        self._container.give_back(slots.values())
        self._swept[extent] = 1

    def _bytes(self, start: int, end: int) -> int:
        """How many bytes a run of blocks has; the device's last block may be short."""
        return min(end * BLOCK, self._size) - start * BLOCK

    def _break(self, cause: OSError) -> None:
        if self.cause is None:
            self.cause = cause
        self._gate.open()
        self._container.open()


class Flights:
    """Counts the writes in flight, and holds new ones for the cut."""

    def __init__(self) -> None:
        self.holding = False
        self._in_flight = 0
        self._changed = threading.Condition()

    def enter(self) -> None:
        with self._changed:
            if self.holding:
                self._changed.wait_for(lambda: not self.holding)
            self._in_flight += 1

    def leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            if self.holding:
                self._changed.notify_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the block runs no write is in flight."""
        with self._changed:
            self.holding = True
            self._changed.wait_for(lambda: self._in_flight == 0)
            yield
            self.holding = False
            self._changed.notify_all()


class Device:
    """A file or block device that programs reach through here, so that a backup can stand in front of it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        self._flights = Flights()
        self._backup: Backup | None = None

    def pwrite(self, data: bytes, offset: int) -> int:
        self._flights.enter()
        try:
            if self._backup is not None:
                self._backup.before_write(offset, len(data))
            write_all(self._fd, data, offset)
        finally:
            self._flights.leave()
        return len(data)

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def backup(self, container: Path, container_size: int, dest: Path) -> Backup:
        """Makes the cut: holds new writes, lets those in flight end, arms the gate, and goes on."""
        backup = Backup(self._fd, self._size, container, container_size, dest)
        with self._flights.held():
            if self._backup is not None:
                self._backup.close()
            self._backup = backup
        backup.start()
        return backup

    def close(self) -> None:
        if self._backup is not None:
            self._backup.close()
        os.close(self._fd)


def data_runs(data: bytearray) -> Iterator[Run]:
    """The stretches of bytes that are not blocks of zeroes."""
    start = None
    for at in range(0, len(data), BLOCK):
        if data.startswith(ZERO_BLOCK, at):
            if start is not None:
                yield start, at
            start = None
        elif start is None:
            start = at
    if start is not None:
        yield start, len(data)


def read_into(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        length = os.preadv(fd, [view[done:]], offset + done)
        if not length:
            raise OSError(f"unexpected end at offset {offset + done}")
        done += length


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
