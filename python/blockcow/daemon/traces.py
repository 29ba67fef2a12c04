"""What backups under way would leave behind if nobody went on: on record in the state, removed by the next worker.

After a death of keeper and worker `clean` removes it.
"""

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from blockcow._blockcow import BlockcowError
from blockcow.daemon.served import Served, keep_state
from blockcow.inside import clean
from blockcow.plan import Plan

log = logging.getLogger(__name__)


class Traces:
    """Unfinished files and container files, of all backups of a daemon. ``lock`` guards the state."""

    def __init__(self, served: Served, lock: threading.RLock) -> None:
        self._served, self._lock = served, lock

    def add(self, plan: Plan, inside: str | None) -> None:
        """Before a backup makes them. ``inside`` is its container file on the device itself."""
        with self._lock:
            state = self._served.state
            state.partials += partials(plan)
            state.containers += [inside] if inside is not None else []
            keep_state(self._served)

    def forget(self, plan: Plan, inside: str | None, *, files: bool = True) -> None:
        """After it has removed them, or given them their final names; ``files`` only if these are gone as well."""
        with self._lock:
            state = self._served.state
            for path in partials(plan) if files else ():
                _drop(state.partials, path)
            if inside is not None:
                _drop(state.containers, inside)
            keep_state(self._served)

    def remove_all_but(self, going_on: Iterable[tuple[Plan, str | None]]) -> None:
        """Removes what a dead worker left of other backups than these, even of those that it had only begun."""
        kept = list(going_on)
        state = self._served.state
        with self._lock:
            files = set(state.partials) - {path for plan, _ in kept for path in partials(plan)}
            containers = set(state.containers) - {inside for _, inside in kept}
        if not files and not containers:
            return
        for path in files:
            with suppress(OSError):
                Path(path).unlink(missing_ok=True)
        stay = [path for path in containers if not _is_removed(path)]
        with self._lock:
            state.partials = [path for path in state.partials if path not in files]
            state.containers = [path for path in state.containers if path not in containers]
            keep_state(self._served)
            if stay:
                self._served.folder.remember_also(*stay)


def partials(plan: Plan) -> list[str]:
    """The files that a backup writes before they bear their final names."""
    files = [plan.dest] if plan.dest_is_file else []
    return [f"{path}.partial" for path in [*files, plan.manifest]]


def _drop(paths: list[str], path: str) -> None:
    with suppress(ValueError):
        paths.remove(path)


def _is_removed(container: str) -> bool:
    try:
        clean(container)
    except BlockcowError:
        log.exception("the container %s stays behind", container)
        return False
    return True
