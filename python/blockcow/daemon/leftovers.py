"""Container files that an earlier daemon left inside a file system of an attached device: removed once that is mounted.

Only names and the kernel's table of mounts are looked at here; the file is `inside`'s business.
"""

import logging
import select
import threading
from pathlib import Path

from blockcow._blockcow import BlockcowError
from blockcow.daemon.served import Served
from blockcow.daemon.uses import mounts_on
from blockcow.inside import clean

log = logging.getLogger(__name__)

_MOUNTS = Path("/proc/self/mountinfo")
_CHANGED = select.POLLPRI | select.POLLERR


def remove_when_mounted(served: Served, lock: threading.RLock) -> None:
    """Starts to watch, if there is anything to remove. ``lock`` guards the state."""
    if served.folder.leftovers():
        threading.Thread(target=_watch, args=(served, lock), name="leftovers", daemon=True).start()


def _watch(served: Served, lock: threading.RLock) -> None:
    with _MOUNTS.open(encoding="utf-8", errors="surrogateescape") as table:
        changes = select.poll()
        changes.register(table, _CHANGED)
        while _remove(served, lock):
            changes.poll()


def _remove(served: Served, lock: threading.RLock) -> bool:
    """Removes those whose file system is mounted where it was, from a device that is served. Whether some are left."""
    points = [point for loop in served.loops() for point in mounts_on(loop)]
    with lock:  # no backup makes the same file meanwhile
        left = served.folder.leftovers()
        for path in list(left):
            if any(Path(path).is_relative_to(point) for point in points) and _is_gone(path, served):
                left.remove(path)
        served.folder.remember(left)
    return bool(left)


def _is_gone(path: str, served: Served) -> bool:
    if path in served.state.containers:  # a backup has made it anew, and removes it
        return True
    try:
        if clean(path):
            log.info("the container %s, left by a daemon that was killed, is removed", path)
    except BlockcowError as error:
        log.warning("%s", error)
        return False
    return True
