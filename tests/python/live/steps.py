"""Stops processes at their durable steps, by ptrace and a seccomp filter, and kills them there. Holds no test.

A durable step is a system call that changes what outlives the process: files that appear, get names, are synced or go;
locks, flags, mounts, loop devices, freezes. Each has a name, such as ``fsync image.partial``. A program and all that it
starts run under the tracer, untouched but for the stops: see ptrace(2), seccomp(2).
"""

import ctypes
import errno
import os
import platform
import re
import signal
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
_TRACE_EVENTS = (
    1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7 | 1 << 20
)  # sysgood, forks, clone, exec, seccomp, exitkill
_EVENT_SECCOMP = 7
_WALL, _WNOTHREAD = 0x40000000, 0x20000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80

_NAMELESS = os.O_TMPFILE & ~os.O_DIRECTORY
_FLAGS = {2: 1, 257: 2}
"""Which argument of the calls that open says whether they may create."""
_LOCKS = {37: "lock", 38: "lock"}  # F_OFD_SETLK, F_OFD_SETLKW
_IOCTLS = {
    0x40086602: "flags",
    0xC0045877: "freeze",
    0xC0045878: "thaw",
    0x4C82: "loop-get-free",
    0x4C0A: "loop-configure",
    0x4C00: "loop-set",
    0x4C01: "loop-clear",
}
_CALLS = {
    2: "create",  # open, if it may create
    257: "create",  # openat, likewise
    16: "ioctl",
    72: "fcntl",
    73: "lock",  # flock
    74: "fsync",
    75: "fdatasync",
    77: "truncate",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    87: "unlink",
    165: "mount",
    166: "umount",
    258: "mkdir",
    263: "unlink",
    264: "rename",
    265: "link",
    285: "allocate",
    306: "syncfs",
    316: "rename",
}
_BY_PATH = {"create": 1, "rename": 3, "unlink": 1, "mkdir": 1, "mount": 1, "umount": 0, "link": 3}
"""Which argument names the file; of renames the new name. Below, where the older calls without a folder have it."""
_OLD = {2: 0, 82: 1, 83: 0, 84: 0, 87: 0}
_LOOP = re.compile(r"/dev/loop\d+$")
_DIGITS = re.compile(r"(?<![A-Za-z])\d+|[0-9a-f]{8,}")


def need_tracing() -> None:
    """Skips loudly where this cannot be done."""
    if platform.machine() != "x86_64":
        pytest.skip("the tracer knows the system calls of x86_64 only")
    if os.geteuid() != 0:
        pytest.skip("needs root, for a seccomp filter on programs that may gain rights: run the tests as root")


def _statement(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _filter() -> bytes:
    """A BPF program that stops at the calls above and lets all others through, without a word."""
    load, equal, masked, give = 0x20, 0x15, 0x45, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000

    def if_argument(number: int, index: int, tests: list[tuple[int, int]]) -> bytes:
        body = _statement(load, 16 + 8 * index)
        for code, value in tests:
            body += _statement(code, value, 0, 1) + _statement(give, trace)
        body += _statement(give, allow)
        return _statement(equal, number, 0, len(body) // 8) + body

    program = _statement(load, 0)
    for number, flags in _FLAGS.items():
        program += if_argument(number, flags, [(masked, os.O_CREAT | _NAMELESS)])
    program += if_argument(16, 1, [(equal, request) for request in _IOCTLS])
    program += if_argument(72, 1, [(equal, command) for command in _LOCKS])
    for number in sorted(set(_CALLS) - {*_FLAGS, 16, 72}):
        program += _statement(equal, number, 0, 1) + _statement(give, trace)
    return program + _statement(give, allow)


def _exec_under_filter(command: Sequence[str], environment: Mapping[str, str], output: int) -> NoReturn:
    """The child's part, between fork and exec."""
    program = _filter()
    buffer = ctypes.create_string_buffer(program)
    description = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setsid()
    _LIBC.ptrace(_TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    if _LIBC.prctl(22, 2, ctypes.create_string_buffer(description), 0, 0) != 0:
        os._exit(126)
    os.execve(command[0], list(command), dict(environment))  # noqa: S606 - no shell is wanted


@dataclass(frozen=True)
class Step:
    """One durable step of one process."""

    pid: int
    name: str
    after: bool
    """Whether the call is over; else it has not begun."""


@dataclass
class Run:
    """A program that ran under the tracer."""

    steps: list[str]
    """The names of the steps that began, in order."""
    status: int | None = None
    """Exit code of the program itself, negative for a signal."""
    output: str = ""


class Tracer:
    """Runs one program and all that it starts. ``at_step`` is called before and after each step, and may kill."""

    def __init__(self, scratch: Path, at_step: Callable[[Step], None]) -> None:
        self._scratch, self._at_step = str(scratch), at_step
        self.run = Run([])
        self._inside: dict[int, str] = {}
        self.alive: set[int] = set()
        """All processes and threads under the tracer."""
        self.program_ended = threading.Event()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> threading.Thread:
        """Runs it on a thread of its own, which ends when the last process under the tracer has ended."""
        thread = threading.Thread(target=self.execute, args=(command, environment), daemon=True)
        thread.start()
        return thread

    def execute(self, command: Sequence[str], environment: Mapping[str, str]) -> Run:
        """Runs it on this thread until the last process under the tracer has ended."""
        output = os.memfd_create("output")
        child = os.fork()
        if child == 0:
            try:
                _exec_under_filter(command, environment, output)
            finally:
                os._exit(127)
        os.waitpid(child, os.WUNTRACED | _WNOTHREAD)
        self._request(_SETOPTIONS, child, _TRACE_EVENTS)
        self.alive.add(child)
        self._request(_CONT, child, 0)
        while self.alive:
            try:
                pid, status = os.waitpid(-1, _WALL | _WNOTHREAD)
            except ChildProcessError:
                break
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                self.alive.discard(pid)
                self._inside.pop(pid, None)
                if pid == child:
                    self.run.status = os.waitstatus_to_exitcode(status)
                    self.program_ended.set()
            else:
                self.alive.add(pid)
                self._stopped(pid, status)
        with os.fdopen(output, "rb") as file:
            file.seek(0)
            self.run.output = file.read().decode(errors="replace")
        return self.run

    def _request(self, request: int, pid: int, data: int) -> None:
        if _LIBC.ptrace(request, pid, None, data) < 0:
            number = ctypes.get_errno()
            if number != errno.ESRCH:  # it was killed meanwhile
                raise OSError(number, os.strerror(number), f"ptrace({request:#x})")

    def _stopped(self, pid: int, status: int) -> None:
        event, stop = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            name = self._name(pid)
            if name is None:
                return self._request(_CONT, pid, 0)
            self._inside[pid] = name
            self.run.steps.append(name)
            self._at_step(Step(pid, name, after=False))
            return self._request(_SYSCALL, pid, 0)
        if stop == _SYSCALL_STOP:
            # The first such stop after the one by the filter is the entry on some kernels, the exit on this one.
            if self._is_exit(pid) and (name := self._inside.pop(pid, None)):
                self._at_step(Step(pid, name, after=True))
                return self._request(_CONT, pid, 0)
            return self._request(_SYSCALL, pid, 0)
        quiet = event or stop in {signal.SIGTRAP, signal.SIGSTOP}
        return self._request(_CONT, pid, 0 if quiet else stop)

    def _info(self, pid: int) -> bytes:
        buffer = ctypes.create_string_buffer(88)
        size = _LIBC.ptrace(_GET_SYSCALL_INFO, pid, ctypes.c_void_p(88), buffer)
        return buffer.raw if size > 0 else b""

    def _is_exit(self, pid: int) -> bool:
        info = self._info(pid)
        return bool(info) and info[0] == 2

    def _name(self, pid: int) -> str | None:
        """``None``: the call concerns nothing in the scratch folder and nothing of the whole machine."""
        info = self._info(pid)
        if not info:
            return None
        number, *arguments = struct.unpack_from("7Q", info, 24)
        call = _CALLS[number]
        if call == "ioctl":
            what = _IOCTLS[arguments[1] & 0xFFFFFFFF]
            return f"{what} {self._of_descriptor(pid, arguments[0])}"
        if call == "fcntl":
            call = "lock"
        if call in _BY_PATH:
            path = self._text(pid, arguments[_OLD.get(number, _BY_PATH[call])])
            if call == "create" and arguments[_FLAGS[number]] & _NAMELESS:
                call = "create-nameless"
            if "/" not in path and call in {"create", "rename", "unlink", "link"}:
                folder = arguments[0 if call in {"create", "unlink"} else 2] if number not in _OLD else 2**32 - 100
                path = f"{self._descriptor_path(pid, folder & 0xFFFFFFFF)}/{path}"
        else:
            path = self._descriptor_path(pid, arguments[0])
        if self._scratch not in path and not _LOOP.match(path):
            return None
        return f"{call} {self._short(path)}"

    def _of_descriptor(self, pid: int, descriptor: int) -> str:
        return self._short(self._descriptor_path(pid, descriptor))

    def _descriptor_path(self, pid: int, descriptor: int) -> str:
        where = "cwd" if descriptor == 2**32 - 100 else f"fd/{descriptor}"
        try:
            return str(Path(f"/proc/{pid}/{where}").readlink())
        except OSError:
            return "?"

    def _short(self, path: str) -> str:
        """The path below the scratch folder, with numbers and chance left out, so that runs can be compared."""
        if _LOOP.match(path):
            return "a loop device"
        path = path.removesuffix(" (deleted)").split(self._scratch)[-1].lstrip("/") or "."
        return _DIGITS.sub("N", path)

    def _text(self, pid: int, address: int) -> str:
        try:
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(address)
                return memory.read(256).split(b"\0")[0].decode(errors="replace")
        except (OSError, OverflowError, ValueError):
            return "?"


def kill(pids: Iterable[int]) -> None:
    """kill -9 of processes or their threads."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
