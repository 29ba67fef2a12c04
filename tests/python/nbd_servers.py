"""NBD servers that nobody here wrote, for the tests, and programs that write meanwhile. Holds no test."""

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from urllib.parse import quote

import pytest

from blockcow import Device

_START = 20.0  # seconds
_BLOCK = 4096


@dataclass
class Server:
    """A server in the foreground, with the URI of its default export."""

    process: subprocess.Popen[bytes]
    uri: str

    def named(self, name: str) -> str:
        """The URI of an export of another name."""
        return self.uri.replace(":///", f":///{name}")

    def stop(self) -> None:
        """Lets it stand still."""
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kills it at once."""
        self.process.kill()
        self.process.wait()


class Servers:
    """Starts servers in a folder; they end with the stack."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        self._folder, self._cleanup, self._count = folder, cleanup, 0

    def nbdkit(self, *arguments: str, tcp: bool = False) -> Server:
        """nbdkit with filters, plugin and settings, on a unix socket or a TCP port of this machine."""
        name = self._name()
        if tcp:
            port = _free_port()
            listen, uri = ["--ipaddr", "127.0.0.1", "--port", str(port)], f"nbd://127.0.0.1:{port}/"
        else:
            listen, uri = ["--unix", f"{name}.sock"], self._uri(name)
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--pidfile", f"{name}.pid", *listen, *arguments]
        return Server(self._start(command, name), uri)

    def qemu(self, image: Path, *options: str) -> Server:
        """qemu-nbd in front of an image file."""
        name = self._name()
        command = ["qemu-nbd", "--format=raw", f"--socket={self._folder / name}.sock", f"--pid-file={name}.pid"]
        return Server(self._start([*command, *options, str(image)], name), self._uri(name))

    def _name(self) -> str:
        self._count += 1
        return f"nbd{self._count}"

    def _uri(self, name: str) -> str:
        return f"nbd+unix:///?socket={quote(str(self._folder / name))}.sock"

    def _start(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        if which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        process = subprocess.Popen(command, cwd=self._folder, stdin=subprocess.DEVNULL)
        self._cleanup.callback(_end, process)
        deadline = time.monotonic() + _START
        # Written when it listens. Trying to connect would count as a client.
        while not (self._folder / f"{name}.pid").exists():
            assert process.poll() is None, f"{command} ended: {process.returncode}"
            assert time.monotonic() < deadline, f"{command} does not listen"
            time.sleep(0.01)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Load:
    """Threads that write all over a device; each owns every so-manyth block, so that the outcome is known."""

    def __init__(self, device: Device, threads: int = 4) -> None:
        self._device, self._over = device, threading.Event()
        self._blocks = device.size // _BLOCK
        self._written: list[dict[int, bytes]] = [{} for _ in range(threads)]
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(threads)]

    def _write(self, number: int) -> None:
        chance = random.Random(number)
        count = len(self._written)
        while not self._over.is_set():
            block = chance.randrange(self._blocks // count) * count + number
            data = chance.randbytes(64) * (_BLOCK // 64)
            try:
                self._device.pwrite(data, block * _BLOCK)
            except Exception as error:
                self.failures.append(error)
                return
            self._written[number][block] = data

    def writes(self) -> int:
        """How many blocks were written so far."""
        return sum(len(written) for written in self._written)

    def wait_for_more(self) -> None:
        """Returns when each thread has written something new: none of them hangs."""
        for written in self._written:
            before, deadline = len(written), time.monotonic() + 60
            while len(written) <= before and len(written) < self._blocks // len(self._written):
                assert time.monotonic() < deadline, "a program hangs"
                time.sleep(0.01)

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends, within bounded time."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a program hangs"

    def check(self, before: bytes) -> None:
        """No write failed, and the device holds what was written."""
        assert self.failures == []
        expected = bytearray(before)
        for written in self._written:
            for block, data in written.items():
                expected[block * _BLOCK : (block + 1) * _BLOCK] = data
        assert self._device.pread(len(expected), 0) == bytes(expected)


@contextmanager
def loaded(device: Device, before: bytes) -> Iterator[Load]:
    """A load while the block runs, and the check after it."""
    load = Load(device)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    load.check(before)


def content(size: int) -> bytes:
    """Random bytes with stretches of zeroes."""
    mib = 1024 * 1024
    return b"".join(bytes(mib) if index % 4 == 3 else os.urandom(mib) for index in range(size // mib))
