"""The keeper: holds the descriptors that must not close, and starts the worker again when it dies. Does no device I/O.

Run as ``python -I -S keeper.py FOLDER CONFIG LOCK-FD REPORT-FD LOG``, and imports nothing of blockcow: it is small,
stays in memory and has nothing to update while it runs. What a worker stores it hands to the next one.

Messages between both are packets of JSON, descriptors beside them. From the worker: ``store`` (with ``name`` and
``note``), ``drop``, ``ready``, ``failed``, ``restart``, ``bye``; the first two are answered. To a new worker: one
``item`` for each thing stored, then ``begin``.
"""

import array
import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

MOST_BYTES = 180_000
"""Of one message; the kernel's own limit on a packet is a little higher."""
MOST_DESCRIPTORS = 200
WORKER = ("-P", "-m", "blockcow.daemon.worker")

_MOST_DEATHS = 10  # in a row, none of them ready
_PAUSE = 0.1  # seconds, more after each death that came before it was ready
_LOG_BYTES = 1 << 20
_LOCK_ALL = 3  # MCL_CURRENT | MCL_FUTURE


def send(link: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Sends one message. Raises OSError, also for one that is too long."""
    data = json.dumps(message).encode()
    if len(data) > MOST_BYTES or len(descriptors) > MOST_DESCRIPTORS:
        raise OSError(errno.EMSGSIZE, f"a message of {len(data)} bytes and {len(descriptors)} descriptors is too long")
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    link.sendmsg([data], beside)


def receive(link: socket.socket, flags: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and the descriptors beside it; None when the other end is closed."""
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
    data, beside, state, _ = link.recvmsg(MOST_BYTES, room, flags | socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, content in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    if not data:
        return None
    if state & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        for number in numbers:
            os.close(number)
        raise OSError(errno.EMFILE, "descriptors were lost on their way: too many open files")
    return json.loads(data), list(numbers)


class Log:
    """Takes what the worker writes to its stderr to a file of bounded size. Without a file the worker keeps ours."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self.is_terminal = path is None
        """Whether somebody watches, who may press Ctrl-C."""

    def write(self, data: bytes) -> None:
        """Appends; the older half goes when it is too long. A log that cannot be written is no reason to stop."""
        if self._path is None:
            with contextlib.suppress(OSError):
                os.write(2, data)
            return
        with contextlib.suppress(OSError):
            with open(self._path, "ab") as file:  # noqa: PTH123 - pathlib is not needed for anything else here
                file.write(data)
                full = file.tell() > _LOG_BYTES // 2
            if full:
                os.replace(self._path, f"{self._path}.1")  # noqa: PTH105 - as above

    def say(self, text: str) -> None:
        """A line of the keeper's own."""
        self.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} keeper: {text}\n".encode())


class Items:
    """Named descriptors with a note each, in the order in which they came."""

    def __init__(self) -> None:
        self._items: dict[str, tuple[str, list[int]]] = {}

    def store(self, name: str, note: str, descriptors: list[int]) -> None:
        """Keeps them, in the place of what has the name."""
        self.drop(name)
        self._items[name] = (note, descriptors)

    def drop(self, name: str) -> None:
        """Lets go of what has the name, if anything."""
        for number in self._items.pop(name, ("", []))[1]:
            os.close(number)

    def hand_over(self, link: socket.socket) -> None:
        """Sends all of them."""
        for name, (note, descriptors) in self._items.items():
            send(link, {"do": "item", "name": name, "note": note}, tuple(descriptors))

    def close(self) -> None:
        """Closes all, the lock that came first at last."""
        for name in reversed(list(self._items)):
            self.drop(name)


class Keeper:
    """Supervises one worker after the other until one says bye."""

    def __init__(self, folder: str, config: str, lock: int, report: int, log: Log) -> None:
        self._folder, self._config, self._report, self._log = folder, config, report, log
        self._items = Items()
        self._items.store("lock", "", [lock])
        self._restarts = self._deaths = 0
        self._ready = self._ever_ready = self._restarting = False
        self._ending: dict[str, Any] | None = None
        self._wake, wake_up = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(
                number, lambda _number, _frame: None
            )  # a handler, so that no child inherits that it is ignored

    def run(self) -> int:
        """Returns the exit code."""
        while self._ending is None:
            self._one_worker()
            if self._ending is None and not self._go_on():
                return 1
        if self._ending.get("do") == "failed":
            self._tell({"error": self._ending["error"]})
        self._items.close()
        if self._ending.get("do") == "bye":
            shutil.rmtree(self._folder, ignore_errors=True)
        return int(self._ending.get("exit_code", 0))

    def _go_on(self) -> bool:
        """After a death: whether to start another."""
        self._deaths = 0 if self._ready else self._deaths + 1
        if self._ever_ready and self._deaths < _MOST_DEATHS:
            self._restarts += 1
            time.sleep(_PAUSE * self._deaths)
            return True
        why = "the worker died before it was ready"
        if self._ever_ready:
            why += f", {self._deaths} times in a row; programs get errors now. Clean up: blockcow detach --clean"
        self._log.say(why)
        self._tell({"error": {"kind": "internal", "message": f"{why}; see {self._folder}/log", "exit_code": 1}})
        self._items.close()
        return False

    def _one_worker(self) -> None:
        """Runs a worker to its end."""
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (link, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MOST_BYTES)
        self._ready = self._restarting = False
        command = [sys.executable, *WORKER, self._folder, self._config, str(theirs.fileno())]
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        _write(f"{self._folder}/worker.pid", f"{worker.pid}\n")
        begin = {"do": "begin", "restarts": self._restarts, "keeper": os.getpid(), "first": not self._ever_ready}
        try:
            self._items.hand_over(link)
            send(link, begin)
        except OSError as error:
            self._log.say(f"the worker does not take what is kept for it: {error}")
            worker.kill()
        self._serve(worker, link)
        link.close()

    def _serve(self, worker: "subprocess.Popen[bytes]", link: socket.socket) -> None:
        """Does what the worker asks until it is dead."""
        errors = worker.stderr.fileno() if worker.stderr is not None else -1
        poll = select.poll()
        for number in (self._wake, link.fileno(), errors):
            poll.register(number, select.POLLIN)
        while worker.poll() is None:
            for number, _ in poll.poll(1000):
                if number == self._wake:
                    self._pass_on(os.read(self._wake, 64), worker)
                elif number == errors:
                    self._copy(errors, poll)
                elif not self._answer(link):
                    poll.unregister(number)
        with contextlib.suppress(OSError):  # what it sent before it died still counts
            while self._answer(link):
                pass
        os.set_blocking(errors, False)
        self._copy(errors, poll)
        if worker.stderr is not None:
            worker.stderr.close()
        if self._ending is None:
            how = "has made room for a new one" if self._restarting else f"died with status {worker.returncode}"
            self._log.say(f"the worker {worker.pid} {how}")

    def _copy(self, errors: int, poll: select.poll) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(errors, 65536):
                self._log.write(data)
                return
        with contextlib.suppress(KeyError):
            poll.unregister(errors)

    def _pass_on(self, signals: bytes, worker: "subprocess.Popen[bytes]") -> None:
        if signal.SIGTERM in signals or (signal.SIGINT in signals and self._log.is_terminal):
            worker.send_signal(signal.SIGTERM)

    def _answer(self, link: socket.socket) -> bool:
        """Does one thing; False when the worker has closed its end, or nothing is there."""
        try:
            received = receive(link, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self._log.say(f"a message of the worker was lost: {error}")
            _reply(link, {"error": str(error)})
            return True
        if received is None:
            return False
        message, descriptors = received
        match message["do"]:
            case "store":
                self._items.store(message["name"], message["note"], descriptors)
                _reply(link, {})
            case "drop":
                self._items.drop(message["name"])
                _reply(link, {})
            case "ready":
                self._ready = self._ever_ready = True
                self._tell({"ready": message["report"]})
                _notify_systemd("READY=1")
            case "restart":
                self._restarting = True
            case "failed" | "bye":
                self._ending = message
        return True

    def _tell(self, report: dict[str, Any]) -> None:
        """Tells whoever started us, once."""
        report_fd, self._report = self._report, -1
        if report_fd < 0:
            return
        with contextlib.suppress(OSError):
            os.write(report_fd, json.dumps(report).encode())
        os.close(report_fd)


def _reply(link: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a worker that is gone needs no answer
        send(link, message)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - as above
        file.write(text)


def _notify_systemd(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.connect("\0" + address[1:] if address.startswith("@") else address)
        link.sendall(state.encode())


def _stay_in_memory(log: Log) -> None:
    """So that it needs nothing from a disk that may be the one that it guards."""
    if os.geteuid() != 0:  # a limit on locked memory would make later allocations fail
        return
    if ctypes.CDLL(None, use_errno=True).mlockall(_LOCK_ALL) != 0:
        log.say(f"it cannot be locked in memory: {os.strerror(ctypes.get_errno())}")
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", "-1000\n")


def main() -> int:
    """Runs until the worker says bye, or no worker can be had any more."""
    folder, config, lock, report, path = sys.argv[1:]
    log = Log(path or None)
    os.chdir("/")
    os.set_inheritable(int(lock), False)
    if int(report) >= 0:
        os.set_inheritable(int(report), False)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _write(f"{folder}/keeper.pid", f"{os.getpid()}\n")
    _stay_in_memory(log)
    return Keeper(folder, config, int(lock), int(report), log).run()


if __name__ == "__main__":
    sys.exit(main())
