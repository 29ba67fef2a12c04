"""The backups of a daemon: prepared, cut, watched, cancelled, and taken up again by the next worker.

A backup here is of one device or of several that are cut together. What its devices' parts are made of is the engine's.
"""

import logging
import os
import threading
import time
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from blockcow._blockcow import BusyError, ExistsError, NotFoundError, StateError
from blockcow.backup import Backup, cut_together
from blockcow.daemon import errand
from blockcow.daemon.entry import Entry, Part, broken
from blockcow.daemon.served import Served
from blockcow.daemon.traces import Traces
from blockcow.device import Device
from blockcow.errors import failure
from blockcow.plan import Plan
from blockcow.status import Status

log = logging.getLogger(__name__)

_MOST_ENDED = 20  # backups that are remembered
_EVENT_SECONDS = 0.5
_CLEANING_SECONDS = 60.0
_LEASE_SECONDS = 900.0  # for which a prepared backup waits for its cut


class Asked(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The options of `blockcow.Options` as they are typed: what else is sent is refused before anything is done."""

    container_size: str | int | UnsetType | None = UNSET
    capacity: str | int | UnsetType = UNSET
    drain: str | int | UnsetType = UNSET
    cbw_timeout: str | float | UnsetType = UNSET
    on_cbw_error: str | UnsetType = UNSET
    consistency: str | UnsetType = UNSET
    block_size: str | int | UnsetType | None = UNSET
    limit_read: str | int | UnsetType | None = UNSET
    ranges: list[tuple[int, int]] | UnsetType | None = UNSET
    manifest: str | UnsetType | None = UNSET
    staging_size: str | int | UnsetType | None = UNSET
    nbd_timeout: str | float | UnsetType = UNSET
    force: list[str] | UnsetType = UNSET


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked for one device."""

    device: str
    container: str
    dest: str
    options: Asked = msgspec.field(default_factory=Asked)


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /backups``."""

    backups: list[Wanted]
    id: str | None = None
    cut: bool = True
    """False: only prepare; ``POST /backups/ID/cut`` makes the cut."""


class _Kept(msgspec.Struct):
    """The note beside what the keeper holds of one part."""

    id: str
    device: str
    plan: Plan
    note: str
    names: list[str]
    inside: str | None
    restarts: int
    """Of the worker, when the backup began."""


class _Ended(msgspec.Struct):
    """The note on one part of a backup that has ended."""

    plan: Plan
    status: Status


class Backups:
    """All of them."""

    def __init__(self, served: Served) -> None:
        self._served, self._store = served, served.store
        self._entries: dict[str, Entry] = {}
        self.lock = threading.RLock()
        """Guards what is known here, and the state."""
        self._traces = Traces(served, self.lock)
        self._cleaned = threading.Event()

    def find(self, name: str) -> Entry:
        """The backup of that id. Raises NotFoundError."""
        with self.lock:
            if (entry := self._entries.get(name)) is not None:
                return entry
        raise failure(NotFoundError, f"find the backup {name}", "there is none of that id here")

    def all(self) -> list[Entry]:
        """Those under way and the newest that have ended."""
        with self.lock:
            return list(self._entries.values())

    def hanging(self) -> list[str]:
        """Destinations of backups that have ended, where I/O has not come back."""
        return [part.plan.dest for entry in self.all() for part in entry.parts if part.hangs]

    def under_way(self) -> list[Entry]:
        """Those that have not ended."""
        return [entry for entry in self.all() if not entry.over]

    @property
    def restarts(self) -> int:
        """How often the worker was replaced so far."""
        return self._store.restarts

    def prepare(self, request: Request) -> Entry:
        """Does all that comes before the cut. What the next worker needs is with the keeper when this returns."""
        name = request.id or os.urandom(8).hex()
        if not request.backups:
            raise ValueError("name at least one device to back up")
        if not name.isalnum() or len(name) > 64:
            raise ValueError(f"{name!r} is no id: use up to 64 letters and digits")
        with self.lock:
            if name in self._entries:
                raise failure(ExistsError, f"start the backup {name}", "a backup of that id is here already")
        if not self._cleaned.wait(_CLEANING_SECONDS):
            reason = "what a worker that died left behind is still being removed; try again later"
            raise failure(BusyError, f"start the backup {name}", reason)
        plans = [(self._served.device(wanted.device), self.plan(wanted)) for wanted in request.backups]
        self._require_one_policy([plan for _, plan in plans])
        parts: list[Part] = []
        try:
            for number, (device, plan) in enumerate(plans):
                parts.append(self._prepare(name, number, device, plan))
        except BaseException:
            for part in parts:
                self._discard(part)
            raise
        entry = Entry(name, parts)
        with self.lock:
            self._entries[name] = entry
        for part in parts:
            self._watch(entry, part)
        return entry

    def plan(self, wanted: Wanted) -> Plan:
        """What a backup would be; nothing is done. Raises what forbids it."""
        device = self._served.device(wanted.device)
        place = self._served.place(device)
        others = [loop for loop in self._served.loops() if loop != place.loop]
        options = {"container": wanted.container, "dest": wanted.dest, **msgspec.to_builtins(wanted.options)}
        return errand.plan(place.device, place.loop, others, self._served.folder.path, options)

    @staticmethod
    def _require_one_policy(plans: list[Plan]) -> None:
        if len({(plan.consistency, plan.cbw_timeout) for plan in plans}) > 1:
            raise ValueError(
                "devices that are cut together have one consistency and one cbw_timeout: give the same to all"
            )

    def _prepare(self, name: str, number: int, device: Device, plan: Plan) -> Part:
        inside = plan.container.path if plan.container.kind == "inside" else None
        self._traces.add(plan, inside)
        try:
            backup = device.prepare(plan, keep=True)
        except BaseException:
            self._traces.forget(plan, inside)
            raise
        part = Part(plan, backup)
        part.inside, part.kept_as = inside, f"backup:{name}:{number}"
        try:
            descriptors, note = backup.kept()
            kept = _Kept(name, device.path, plan, note, list(descriptors), inside, self.restarts)
            try:
                self._store.store(part.kept_as, msgspec.json.encode(kept).decode(), list(descriptors.values()))
            finally:
                for descriptor in descriptors.values():
                    os.close(descriptor)
        except BaseException:
            self._discard(part)
            raise
        return part

    def _discard(self, part: Part) -> None:
        if part.backup is not None:
            part.backup.discard()
        self._let_go(part)

    def cut(self, entry: Entry) -> None:
        """Makes the cut of a prepared backup. Whatever fails, it is cancelled."""
        with self.lock:
            if entry.cut_made or entry.over:
                raise failure(StateError, "make the cut", "it was made before, or the backup has ended")
            entry.cut_made = True
        backups = [part.backup for part in entry.parts if part.backup is not None]
        plans = [part.plan for part in entry.parts]
        mounts = [point for plan in plans for point in plan.mounts]
        outside = [str(Path(path)) for plan in plans for path in plan.outside()]
        try:
            with errand.at_rest(plans[0].consistency, mounts, 2 * plans[0].cbw_timeout, outside):
                cut_together(backups, plans[0].cbw_timeout)
        except BaseException:
            self.cancel(entry)
            raise

    def cancel(self, entry: Entry) -> None:
        """Ends a backup."""
        for part in entry.parts:
            if (backup := part.backup) is not None:
                backup.cancel()

    def resume(self) -> None:
        """Goes on with what a dead worker left, before programs go on. What cannot go on is broken."""
        for item in sorted(self._store.items):
            if item.startswith("ended:"):
                self._remember(item.removeprefix("ended:"), self._store.items[item].note)
        groups: dict[str, list[Part]] = {}
        for item in sorted(self._store.items):
            if item.startswith("backup:"):
                kept = msgspec.json.decode(self._store.items[item].note, type=_Kept)
                groups.setdefault(kept.id, []).append(self._resume(item, kept))
        for name, parts in groups.items():
            entry = Entry(name, parts)
            entry.cut_made = True
            self._entries[name] = entry
            if any(part.over for part in parts):
                self.cancel(entry)

    def watch_resumed(self) -> None:
        """The rest of it, which may take its time: threads, files, what the keeper holds for nothing. No backup is
        prepared before."""
        resumed = [(entry, part) for entry in self.all() for part in entry.parts if part.kept_as is not None]
        going_on = [(entry, part) for entry, part in resumed if not part.over]
        for entry, part in going_on:
            self._watch(entry, part)
        try:
            self._traces.remove_all_but([(part.plan, part.inside) for _, part in going_on])
            for entry, part in resumed:
                if part.over:
                    self._settle(entry)
        finally:
            self._cleaned.set()

    def _resume(self, item: str, kept: _Kept) -> Part:
        device = self._served.device(kept.device)
        kept_descriptors = dict(zip(kept.names, self._store.items[item].descriptors, strict=True))
        try:
            export = kept.plan.open_dest()
            inner = device._resume(kept_descriptors, kept.note, dest_export=export)  # noqa: SLF001 - the extension's, for us
            part = Part(kept.plan, Backup(inner, kept.plan.device.path, kept.plan.dest, kept.inside))
        except Exception as error:  # whatever it is, programs go on
            cause = f"the worker died during the backup, and it cannot go on: {error}"
            log.exception("the backup %s is broken", kept.id)
            part = Part(kept.plan, None, broken(kept.plan, cause, self.restarts - kept.restarts))
        part.kept_as, part.inside = item, kept.inside
        return part

    def _watch(self, entry: Entry, part: Part) -> None:
        threading.Thread(target=self._follow, args=(entry, part), name="backup", daemon=True).start()

    def _follow(self, entry: Entry, part: Part) -> None:
        backup = part.backup
        while backup is not None and (batch := backup.next_events(_EVENT_SECONDS)) is not None:
            if batch:
                entry.add(batch, part)
            elif backup.ended(0):
                break  # I/O that hangs is not waited for
            if not entry.cut_made and time.monotonic() - entry.began > _LEASE_SECONDS:
                self.cancel(entry)
        if backup is not None:
            backup.ended(None)
            part.left_behind = backup.left_behind
        part.end()
        if part.status().status != "complete":
            self.cancel(entry)  # of a group all or none: a part that is broken breaks the others
        self._settle(entry)

    def _settle(self, entry: Entry) -> None:
        """After the end of the last part: what was kept for it goes, its figures stay."""
        try:
            with self.lock:
                if entry.over:
                    note = msgspec.json.encode([_Ended(part.plan, part.status()) for part in entry.parts]).decode()
                    self._store.store(f"ended:{entry.id}", note)
                    for part in entry.parts:
                        self._let_go(part)
                    self._forget_oldest()
        except OSError:
            log.exception("the keeper does not answer")
        entry.wake()

    def _let_go(self, part: Part) -> None:
        kept_as, part.kept_as = part.kept_as, None
        if kept_as is not None:
            self._store.drop(kept_as)
            self._traces.forget(part.plan, part.inside, files=not part.hangs)  # what hangs is still to be cleaned up
            if part.left_behind is not None:
                self._served.folder.remember_also(part.left_behind)

    def _forget_oldest(self) -> None:
        with self.lock:
            ended = [entry for entry in self._entries.values() if entry.over]
            for entry in ended[:-_MOST_ENDED]:
                del self._entries[entry.id]
                self._store.drop(f"ended:{entry.id}")

    def _remember(self, name: str, note: str) -> None:
        ended = msgspec.json.decode(note, type=list[_Ended])
        entry = Entry(name, [Part(one.plan, None, one.status) for one in ended])
        entry.cut_made = True
        self._entries[name] = entry
