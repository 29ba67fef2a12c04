"""One backup of a daemon, of one device or several that are cut together: its parts, figures and events."""

import threading
import time
from collections import deque
from typing import Any

import msgspec

from blockcow.backup import Backup
from blockcow.plan import Plan
from blockcow.status import Percentiles, Status

_MOST_EVENTS = 10_000


class Part:
    """The backup of one device."""

    def __init__(self, plan: Plan, backup: Backup | None, last: Status | None = None) -> None:
        self.plan, self.backup, self._last = plan, backup, last
        self.kept_as: str | None = None
        self.inside: str | None = None
        self.left_behind: str | None = None

    def status(self) -> Status:
        """Its figures now."""
        backup = self.backup
        if self._last is not None or backup is None:
            return self._last or broken(self.plan, "it was never started", 0)
        return backup.status()

    def end(self) -> None:
        """Nothing changes any more, but that I/O may still hang."""
        self._last = self.status()
        if self.backup is None or self.backup.at_rest:
            self.backup = None

    @property
    def hangs(self) -> bool:
        """Whether it has ended, but I/O of it has not come back."""
        return self.over and self.backup is not None and not self.backup.at_rest

    @property
    def over(self) -> bool:
        """Whether the figures are the last ones."""
        return self._last is not None


class Entry:
    """One backup, of one device or several."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        self.id, self.parts = name, parts
        self.began = time.monotonic()
        self.cut_made = False
        self.events: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)
        self._changed = threading.Condition()
        self._count = 0

    def add(self, events: list[dict[str, Any]], part: Part) -> None:
        """Numbers events and keeps the newest."""
        with self._changed:
            for event in events:
                self._count += 1
                self.events.append({"seq": self._count, "device": part.plan.device.path, **event})
            self._changed.notify_all()

    def wake(self) -> None:
        """Something other than an event has changed."""
        with self._changed:
            self._changed.notify_all()

    def after(self, seq: int, timeout: float) -> list[dict[str, Any]]:
        """Events with higher numbers, after waiting for one if need be."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > seq or self.over, timeout)
            return [event for event in self.events if event["seq"] > seq]

    @property
    def over(self) -> bool:
        """Whether every part has ended and been cleaned up."""
        return all(part.over for part in self.parts)

    def status(self) -> dict[str, Any]:
        """As `GET /backups/ID` answers."""
        parts = [part.status() for part in self.parts]
        states = [part.status for part in parts]
        order = ("broken", "cancelled", "active", "created", "complete")
        whole = next(state for state in order if state in states)
        warnings = [text for part in self.parts for text in part.plan.warnings()]
        return {
            "id": self.id,
            "status": whole,
            "over": self.over,
            "warnings": warnings,
            "parts": [msgspec.to_builtins(part) for part in parts],
        }


def broken(plan: Plan, cause: str, restarts: int) -> Status:
    """The figures of a backup of which nothing else is known."""
    return Status(
        status="broken",
        device=plan.device.path,
        dest=plan.dest,
        device_bytes=plan.device.size,
        block_size=plan.block_size or 0,
        done_bytes=0,
        blocks_listed=0,
        blocks_swept=0,
        blocks_copied_before_write=0,
        suspended_writes=0,
        suspended_now=0,
        suspended_us=Percentiles(0, 0, 0, 0),
        hold_us=0,
        container_capacity_bytes=plan.capacity_bytes,
        container_used_bytes=0,
        container_peak_bytes=0,
        drains=0,
        draining=False,
        dest_written_bytes=0,
        zero_bytes=0,
        cut_at=None,
        duration_s=0.0,
        digest=None,
        error=cause,
        events_dropped=0,
        worker_restarts=restarts,
    )
