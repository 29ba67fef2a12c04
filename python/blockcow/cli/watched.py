"""A backup under way as `blockcow backup` watches it: its own, or one that a daemon makes."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import msgspec

from blockcow._blockcow import ExistsError, NotFoundError, StateError
from blockcow.backup import Backup
from blockcow.daemon.client import Client, DaemonGoneError
from blockcow.errors import failure
from blockcow.status import Status

_EVENT_SECONDS = 0.2


class Watched(Protocol):
    """One backup, of one device or of several with one cut."""

    def ended(self, seconds: float) -> bool:
        """Waits so long for the end, at most."""

    def statuses(self) -> list[Status]:
        """The figures of each device."""

    def events(self) -> list[dict[str, Any]]:
        """Those that are there."""

    def last_events(self, seconds: float) -> list[dict[str, Any]]:
        """Those that came with the end, which is waited for no longer than that."""

    def cancel(self) -> None:
        """Ends it."""


class Own:
    """Made in this process."""

    def __init__(self, backups: Sequence[Backup]) -> None:
        self._backups = backups

    def ended(self, seconds: float) -> bool:
        """As in `Watched`."""
        until = time.monotonic() + seconds
        over = [backup.ended(max(until - time.monotonic(), 0.0)) for backup in self._backups]
        if any(status.status in ("broken", "cancelled") for status in self.statuses()):
            self.cancel()  # of a group all or none
        return all(over)

    def statuses(self) -> list[Status]:
        """As in `Watched`."""
        return [backup.status() for backup in self._backups]

    def events(self) -> list[dict[str, Any]]:
        """As in `Watched`."""
        found: list[dict[str, Any]] = []
        for backup in self._backups:
            while batch := backup.next_events(0.0):
                found += batch
        return found

    def last_events(self, seconds: float) -> list[dict[str, Any]]:
        """As in `Watched`."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + seconds
        for backup in self._backups:
            while time.monotonic() < deadline and (batch := backup.next_events(_EVENT_SECONDS)) is not None:
                found += batch
        return found

    def cancel(self) -> None:
        """As in `Watched`."""
        for backup in self._backups:
            backup.cancel()


class Attached:
    """Made by a daemon, which may get another worker meanwhile. If the daemon is gone, the backup is broken."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._path = client, f"/backups/{name}"
        self._seq = 0
        self._answer: dict[str, Any] = {}
        self._gone = False

    def start(self, request: dict[str, Any], hooks: Callable[[], AbstractContextManager[None]] | None) -> list[str]:
        """Has it prepared, then cut, inside the hooks. Returns warnings; raises what the daemon says went wrong."""
        try:
            self._answer = self._client.post("/backups", {**request, "cut": hooks is None})
        except ExistsError as error:  # a worker may have died before it could answer, and another taken it up
            try:
                self._answer = self._client.get(self._path)
            except NotFoundError:
                raise error from None  # it is the destination that exists
        warnings: list[str] = self._answer.get("warnings", [])
        if hooks is None:
            return warnings
        try:
            with hooks():
                self._cut()
        except BaseException:
            self.cancel()
            raise
        return warnings

    def _cut(self) -> None:
        try:
            self._ask(lambda: self._client.post(f"{self._path}/cut"))
        except (StateError, NotFoundError):
            self._look()  # the cut was made and the answer lost, or it has ended
            if self._answer["status"] == "created":
                raise

    def _ask(self, question: Callable[[], dict[str, Any]]) -> None:
        """Keeps the answer, or that there will be no other any more."""
        if self._gone:
            return
        try:
            self._answer = question()
        except DaemonGoneError as error:
            self._lose(error)

    def _lose(self, error: DaemonGoneError) -> None:
        self._gone = True
        for part in self._answer.get("parts", []):
            if part["status"] in ("created", "active"):
                part.update(status="broken", error=error.strerror)
        self._answer.update(over=True, status="broken")

    def _look(self) -> None:
        try:
            self._ask(lambda: self._client.get(self._path))
        except NotFoundError as error:
            reason = "the worker died before the cut, and nothing was made; start it again"
            raise failure(StateError, "make the backup", reason) from error

    def ended(self, seconds: float) -> bool:
        """As in `Watched`."""
        until = time.monotonic() + seconds
        while True:
            self._look()
            if self._answer["over"]:
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(max(min(0.05, until - time.monotonic()), 0.0))

    def statuses(self) -> list[Status]:
        """As in `Watched`."""
        return [msgspec.convert(part, Status) for part in self._answer["parts"]]

    def events(self) -> list[dict[str, Any]]:
        """As in `Watched`."""
        if self._gone:
            return []
        try:
            text = self._client.text(f"{self._path}/events", since=self._seq, follow=0)
        except DaemonGoneError as error:
            self._lose(error)
            return []
        lines: list[dict[str, Any]] = [msgspec.json.decode(line) for line in text.splitlines()]
        found = [line for line in lines if "seq" in line]
        if found:
            self._seq = found[-1]["seq"]
        return found

    def last_events(self, seconds: float) -> list[dict[str, Any]]:
        """As in `Watched`."""
        self.ended(seconds)
        return self.events()

    def cancel(self) -> None:
        """As in `Watched`."""
        with suppress(NotFoundError):
            self._ask(lambda: self._client.delete(self._path))
