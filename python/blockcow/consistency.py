"""Brings file systems to rest around the cut: dirty pages written, or frozen, and always thawed again.

Knows nothing of devices and backups: a caller says which mount points, and makes the cut inside `quiesced`.
"""

import ctypes
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blockcow import thaw_guard
from blockcow.units import format_time

POLICIES = ("auto", "freeze", "sync", "none")
_FIFREEZE = 0xC0045877
_CANNOT_FREEZE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)
_ADVICE = {
    errno.EBUSY: "it is frozen already; thaw it with fsfreeze -u",
    errno.EPERM: "that needs root; run as root, or choose the consistency sync",
    errno.EOPNOTSUPP: "it cannot be frozen; choose the consistency auto or sync",
}

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def quiesced(policy: str, mounts: Sequence[str], timeout: float, outside: Sequence[str] = ()) -> Iterator[None]:
    """Holds the file systems at ``mounts`` at rest while the block runs, for at most ``timeout`` seconds.

    ``none`` does nothing; ``sync`` writes dirty pages first; ``freeze`` also stops writers; ``auto`` freezes where the
    file system can. A path of ``outside`` must not lie in one of them: the cut would wait for itself. Thaws whatever
    happens, even if this process is killed. Raises OSError, ValueError, TimeoutError.
    """
    if policy not in POLICIES:
        raise ValueError(f"{policy!r} is not a consistency: choose one of {', '.join(POLICIES)}")
    if policy == "none" or not mounts:
        yield
        return
    with ExitStack() as stack:
        descriptors = _open_each_once(stack, mounts)
        if policy != "sync":
            _refuse_inside(descriptors, outside)
        for descriptor, point in descriptors.items():
            _syncfs(descriptor, point)
        if policy != "sync":
            stack.enter_context(_frozen(descriptors, required=policy == "freeze", timeout=timeout))
        yield


def _open_each_once(stack: ExitStack, mounts: Sequence[str]) -> dict[int, str]:
    """Descriptors of the mount points, one a file system even if it is mounted in several places."""
    descriptors: dict[int, str] = {}
    seen = set()
    for point in mounts:
        descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        device = os.fstat(descriptor).st_dev
        if device not in seen:
            seen.add(device)
            descriptors[descriptor] = point
    return descriptors


def _refuse_inside(descriptors: dict[int, str], outside: Sequence[str]) -> None:
    for path in outside:
        here = Path(path).absolute()
        device = (here if here.is_dir() else here.parent).stat().st_dev
        for descriptor, point in descriptors.items():
            if os.fstat(descriptor).st_dev == device:
                raise ValueError(f"cannot freeze {point}: {path} lies in it; choose another place")


def _syncfs(descriptor: int, point: str) -> None:
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"sync the file system: {os.strerror(number)}", point)


@contextmanager
def _frozen(descriptors: dict[int, str], *, required: bool, timeout: float) -> Iterator[None]:
    guard = _start_guard(list(descriptors), timeout)
    frozen: list[int] = []
    try:
        for descriptor, point in descriptors.items():
            _freeze(descriptor, point, required, frozen)
        yield
    finally:
        late = _thaw_all(frozen, guard)
    if late:
        raise TimeoutError(f"the freeze lasted longer than {format_time(timeout)} and was ended before the cut")


def _start_guard(descriptors: list[int], timeout: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", thaw_guard.__file__, str(timeout), *map(str, descriptors)]
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors, start_new_session=True
    )
    if guard.stdout is None or guard.stdout.read(1) != b".":
        guard.kill()
        guard.communicate()
        raise OSError(errno.ECHILD, "start the process that thaws file systems in an emergency")
    return guard


def _freeze(descriptor: int, point: str, required: bool, frozen: list[int]) -> None:
    frozen.append(descriptor)  # before the call: an exception right behind it must still thaw
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
    except OSError as error:
        frozen.remove(descriptor)
        if error.errno in _CANNOT_FREEZE and not required:
            return
        reason = _ADVICE.get(error.errno or 0, error.strerror)
        raise OSError(error.errno, f"freeze the file system: {reason}", point) from error


def _thaw_all(frozen: list[int], guard: subprocess.Popen[bytes]) -> bool:
    """Thaws and dismisses the guard. Whether the guard had thawed before, because time was up."""
    try:
        for descriptor in frozen:
            _thaw(descriptor)
    except OSError:
        guard.communicate()  # end of file on its input: it tries all of them once more
        raise
    guard.communicate(b".")
    return guard.returncode != 0


def _thaw(descriptor: int) -> None:
    try:
        fcntl.ioctl(descriptor, thaw_guard.FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the guard was first, or the freeze did not happen
            raise
