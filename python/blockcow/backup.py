"""One backup under way, for programs: wait, figures, events, cancel. The work itself is in the extension."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import msgspec

from blockcow import _blockcow
from blockcow.status import Status

_EVENT_SECONDS = 0.5  # how often the iterator of events lets signal handlers run


class Backup:
    """An active backup, made by `Device.backup`.

    As a context manager it waits at a normal exit and cancels when an exception leaves the block.
    """

    def __init__(self, inner: _blockcow.Backup, device: str, dest: str) -> None:
        self._inner = inner
        self._names = {"device": device, "dest": dest}

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end: True once complete, False if ``timeout`` seconds came first.

        Raises the first cause if the backup is broken, CancelledError if it was cancelled.
        """
        if not self._inner.wait(timeout):
            return False
        self._inner.raise_for_state()
        return True

    def ended(self, timeout: float | None) -> bool:
        """Waits up to ``timeout`` seconds for the end, whichever it is."""
        return self._inner.wait(timeout)

    def status(self) -> Status:
        """Figures so far."""
        return msgspec.convert({**self._inner.status(), **self._names}, Status)

    def cancel(self) -> None:
        """Ends the backup; writes go on. Nothing bears the final name. Does nothing if it has ended."""
        self._inner.cancel()

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come, until the backup ends: suspended writes, drains, changes of state."""
        while (batch := self.next_events(_EVENT_SECONDS)) is not None:
            yield from batch

    def next_events(self, timeout: float) -> list[dict[str, Any]] | None:
        """The events queued, after waiting up to ``timeout`` seconds for one; None when no more will come."""
        return self._inner.next_events(timeout)

    def block_map(self, cells: int) -> list[tuple[int, int, int, int]]:
        """For each of ``cells`` equal stretches of the device the blocks still to do, in the container, copied before
        write and gone to the destination, and copied by the sweep."""
        return self._inner.block_map(cells)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.cancel()
            self._inner.wait(None)
            return
        self.wait()
