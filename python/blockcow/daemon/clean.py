"""Removes what a keeper and worker left that were killed, or that gave up. Touches nothing that a live one holds."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from blockcow import loop, mounts
from blockcow._blockcow import BlockcowError
from blockcow.daemon.folders import RunFolder, State
from blockcow.daemon.frozen import thaw
from blockcow.daemon.uses import mounts_on
from blockcow.inside import clean as clean_inside

_SECONDS = 20.0


def clean(folder: RunFolder) -> list[str]:
    """Cleans up after a dead daemon, whose lock the caller holds. Says what was found, in words for people."""
    found: list[str] = []
    try:
        state = folder.read()
    except FileNotFoundError:
        state = State(name=folder.name)
    except (OSError, ValueError) as error:
        found.append(f"{folder.path}/state.json cannot be read: {error}")
        state = State(name=folder.name)
    _processes(folder, found)
    for place in state.places:
        if place.file is not None:
            loops = loop.on_file(place.file)
            _unmount(place.file, found)  # first: until then a loop device waits for whoever serves its file
            for path in loops:
                _loop(path, folder.path / "thaw", found)
    broken = [path.removesuffix(".partial") for path in state.partials if _remove(path)]
    found += [f"{path}: the backup is broken; what there was of it is removed" for path in broken]
    left = [path for path in dict.fromkeys((*folder.leftovers(), *state.containers)) if not _container(path, found)]
    for path in state.sockets:
        _remove(path)
    folder.remember(left)
    shutil.rmtree(folder.path, ignore_errors=True)
    return found


def _processes(folder: RunFolder, found: list[str]) -> None:
    """Nobody holds the lock, so both are gone; their numbers may belong to others by now and are let alone."""
    if folder.pid("keeper") is not None:
        found.append(f"{folder.name}: keeper and worker were killed")


def _unmount(file: str, found: list[str]) -> None:
    while any(mount.point == file for mount in mounts.mounted()):
        command = ["umount", "--force", "--lazy", file] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", file]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            found.append(f"{file} cannot be unmounted: {done.stderr.strip()}")
            return
        found.append(f"{file}: unmounted")


def _loop(path: str, spare: Path, found: list[str]) -> None:
    """Ends the loop device on our file; one that is in use ends with its last user."""
    advice = "is still mounted from it: unmount it, then attach and mount again"
    found += [f"{path} is gone, but {point} {advice}" for point in mounts_on(path)]
    try:
        ended = _detach(path)
        if not ended and thaw(path, spare):
            found.append(f"{path}: its file system was frozen, as it is for a cut, and is thawed")
            ended = not mounts_on(path) and _detach(path)
        found.append(f"{path}: detached" if ended else f"{path}: still in use; it ends with its last user")
    except OSError as error:
        found.append(f"{path} cannot be detached: {error.strerror or error}")


def _detach(path: str) -> bool:
    try:
        loop.adopt(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)).detach(1.0)
    except BlockcowError:
        return False
    return True


def _container(path: str, found: list[str]) -> bool:
    """Whether it is removed. Where it is not seen its file system may only not be mounted."""
    reason = "it is not there, is its file system unmounted?"
    try:
        if clean_inside(path):
            found.append(f"{path}: the container is removed")
            return True
    except BlockcowError as error:
        reason = str(error)
    found.append(f"{path}: the container stays until its file system is attached and mounted there again ({reason})")
    return False


def _remove(path: str) -> bool:
    try:
        Path(path).unlink()
    except OSError:
        return False
    return True


def wait_for_worker(folder: RunFolder, seconds: float) -> bool:
    """Waits until nobody holds the folder; a worker that was killed may need a moment to be gone."""
    until = time.monotonic() + seconds
    while folder.is_live():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
