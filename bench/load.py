"""Write load on a device: threads that write 4 KiB at random places at full speed, each a given number of times.

Each flushes at its end. Knows only `pwrite` and `flush`, so that every contestant gets the same script.
"""

import os
import threading
from random import Random
from types import TracebackType
from typing import Protocol, Self

THREADS = 4
WRITE = 4096
_PAYLOADS = 64


class Writable(Protocol):
    """What the load needs of a device."""

    def pwrite(self, data: bytes, offset: int, /) -> int: ...
    def flush(self) -> None: ...


class Load:
    """Begins with its block and has ended when that is left. The same writes in the same order every time."""

    def __init__(self, device: Writable, size: int, writes: int) -> None:
        self._device = device
        self._payloads = [os.urandom(WRITE) for _ in range(_PAYLOADS)]
        each = writes // THREADS
        self._threads = [threading.Thread(target=self._write, args=[number, size, each]) for number in range(THREADS)]

    def _write(self, number: int, size: int, writes: int) -> None:
        offsets = [block * WRITE for block in Random(number).choices(range(size // WRITE), k=writes)]
        for turn, offset in enumerate(offsets):
            self._device.pwrite(self._payloads[turn % _PAYLOADS], offset)
        self._device.flush()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for thread in self._threads:
            thread.join()
