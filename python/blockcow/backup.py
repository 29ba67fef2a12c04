"""One backup under way, for programs: wait, figures, events, cancel. The work itself is in the extension."""

import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from blockcow import _blockcow
from blockcow._blockcow import BlockcowError
from blockcow.inside import remove
from blockcow.status import Status

_EVENT_SECONDS = 0.5  # how often the iterator of events lets signal handlers run


class Backup:
    """An active backup, made by `Device.backup`.

    As a context manager it waits at a normal exit and cancels when an exception leaves the block.
    """

    def __init__(self, inner: _blockcow.Backup, device: str, dest: str, inside: str | None = None) -> None:
        """``inside`` is the container file to remove at the end, if it lies on the device itself."""
        self.inner = inner
        """The extension's own backup."""
        self._inside = inside
        self.left_behind: str | None = None
        """The container file, if it lies inside a file system on the device and could not be removed at the end."""
        self._names = {"device": device, "dest": dest}

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end: True once complete, False if ``timeout`` seconds came first.

        Raises the first cause if the backup is broken, CancelledError if it was cancelled.
        """
        if not self.ended(timeout):
            return False
        self.inner.raise_for_state()
        return True

    def ended(self, timeout: float | None) -> bool:
        """Waits up to ``timeout`` seconds for the end, whichever it is."""
        if not self.inner.wait(timeout):
            return False
        self._remove_inside()
        return True

    @property
    def at_rest(self) -> bool:
        """Whether it has ended and none of its I/O is under way. False after the end: I/O hangs."""
        return self.inner.at_rest

    def _remove_inside(self) -> None:
        path, self._inside = self._inside, None
        if path is None:
            return
        try:
            reason = None if remove(path, self.at_rest) else "it is not there; is its file system unmounted?"
        except BlockcowError as error:
            reason = str(error)
        if reason is not None:
            self.left_behind = path
            advice = "the next backup with the same container removes it"
            warnings.warn(f"the container {path} stays behind: {reason}; {advice}", RuntimeWarning, stacklevel=3)

    def discard(self) -> None:
        """Cancels it and removes what it made. For one whose cut failed or is not wanted any more."""
        self.cancel()
        self.ended(None)

    def kept(self) -> tuple[dict[str, int], str]:
        """Descriptors, the caller's to close, and a note, with which another process can go on with a backup that was
        prepared to be kept."""
        return self.inner.kept()

    def status(self) -> Status:
        """Figures so far."""
        return msgspec.convert({**self.inner.status(), **self._names}, Status)

    def cancel(self) -> None:
        """Ends the backup; writes go on. Nothing bears the final name. Does nothing if it has ended."""
        self.inner.cancel()

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come, until the backup ends: suspended writes, drains, changes of state."""
        while (batch := self.next_events(_EVENT_SECONDS)) is not None:
            yield from batch

    def next_events(self, timeout: float) -> list[dict[str, Any]] | None:
        """The events queued, after waiting up to ``timeout`` seconds for one; None when no more will come."""
        return self.inner.next_events(timeout)

    def block_map(self, cells: int) -> list[tuple[int, int, int, int]]:
        """For each of ``cells`` equal stretches of the device the blocks still to do, in the container, copied before
        write and gone to the destination, and copied by the sweep."""
        return self.inner.block_map(cells)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.cancel()
            self.ended(None)
            return
        self.wait()


def cut_together(backups: Sequence[Backup], timeout: float) -> float:
    """One cut for prepared backups of several devices. Returns the seconds for which writes were held; if anything
    fails, all of them are cancelled."""
    return _blockcow.cut_together([backup.inner for backup in backups], timeout)
