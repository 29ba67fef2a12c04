"""Keeps this process at work when memory is short, as far as it is permitted, and says how far that is.

A process that serves a device must not wait for memory that can only be had by writing to that device. Called once,
before other threads are started: they inherit what is set here, and so do child processes, but for the locked memory.
"""

import ctypes
import os
import resource
from dataclasses import asdict, dataclass
from pathlib import Path

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_IO_FLUSHER, _PR_GET_IO_FLUSHER = 57, 58
_CAP_IPC_LOCK = 14
_OOM = Path("/proc/self/oom_score_adj")
_NEVER_KILLED = -1000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Footing:
    """What the kernel granted; each field is ``"yes"`` or the reason why not."""

    memory_locked: str
    """No page of this process, or of what it will map, is ever taken away."""
    io_flusher: str
    """Memory that the kernel allocates for this process never waits for I/O of file systems or block devices."""
    spared_by_oom_killer: str
    """Others are killed before it when memory runs out."""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def brace() -> Footing:
    """Asks for all of it, and leaves the current folder for ``/``, which is on no device that could be served."""
    os.chdir("/")
    return Footing(_lock_memory(), _become_io_flusher(), _spare_from_oom_killer())


def memory_available() -> int | None:
    """Bytes that programs can still have without swapping, as the kernel estimates; None where it does not say."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _lock_memory() -> str:
    # Under a limit, what is mapped later would fail instead of being left unlocked.
    if not _may_lock_everything():
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return f"needs CAP_IPC_LOCK, or an unlimited RLIMIT_MEMLOCK instead of {limit} bytes"
    # All that is there now, so that no code is read from a disk later; of what comes, each page once it is touched.
    for flags in (_MCL_CURRENT, _MCL_FUTURE | _MCL_ONFAULT):
        if _libc.mlockall(flags) != 0:
            return f"mlockall: {os.strerror(ctypes.get_errno())}"
    return "yes"


def _may_lock_everything() -> bool:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


def _become_io_flusher() -> str:
    if _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0:
        return "yes"
    return f"needs CAP_SYS_RESOURCE (prctl: {os.strerror(ctypes.get_errno())})"


def _spare_from_oom_killer() -> str:
    try:
        _OOM.write_text(f"{_NEVER_KILLED}\n", encoding="ascii")
    except OSError as error:
        return f"needs CAP_SYS_RESOURCE (oom_score_adj {_OOM.read_text(encoding='ascii').strip()}: {error.strerror})"
    return "yes"
