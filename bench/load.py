"""Write load on a device: threads that write 4 KiB at random places at full speed until told to stop.

Knows only `pwrite`, so that every contestant gets the same script.
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


class Load:
    """Runs while its block does. The same offsets in the same order every time, a list for each thread."""

    def __init__(self, device: Writable, size: int) -> None:
        self._device = device
        self._payloads = [os.urandom(WRITE) for _ in range(_PAYLOADS)]
        self._written = [0] * THREADS
        self._stop = False
        self._threads = [threading.Thread(target=self._write, args=[number, size]) for number in range(THREADS)]

    @property
    def writes(self) -> int:
        """How many writes have been acknowledged."""
        return sum(self._written)

    def _write(self, number: int, size: int) -> None:
        offsets = [block * WRITE for block in Random(number).choices(range(size // WRITE), k=1 << 16)]
        while True:
            for turn, offset in enumerate(offsets):
                if self._stop:
                    return
                self._device.pwrite(self._payloads[turn % _PAYLOADS], offset)
                self._written[number] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()
