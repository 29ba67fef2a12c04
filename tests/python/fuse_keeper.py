"""A server of a file in a process of its own, that can be stopped, or killed and replaced. Holds no test."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).with_name("fuse_server.py")
PATIENCE = 60


class Keeper:
    """Keeps the descriptors of a server, and starts another server when that one is gone."""

    def __init__(self, device: Path, mountpoint: Path) -> None:
        mountpoint.touch(0o600)
        self._arguments = [str(device), str(mountpoint)]
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        self._theirs = theirs
        self._server = self._start(self._arguments, [])
        message, self.descriptors, _, _ = socket.recv_fds(self._socket, 65536, 64)
        kept = json.loads(message)
        self.note, self._of_device = kept["note"], kept["device"]

    def _start(self, arguments: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SERVER), *arguments]
        return subprocess.Popen(command, stdin=self._theirs.fileno(), pass_fds=descriptors)

    def stop(self) -> None:
        """Whoever reads or writes the file waits from now on."""
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._server.kill()
        self._server.wait(PATIENCE)

    def restart(self, *, wait: bool = True) -> None:
        device, fuse = self.descriptors[: self._of_device], self.descriptors[self._of_device :]
        lists = [",".join(map(str, numbers)) for numbers in (device, fuse)]
        self._server = self._start([*self._arguments, self.note, *lists], self.descriptors)
        if wait:
            assert self._socket.recv(1) == b"!"

    def forget(self) -> None:
        """Drops what is said on the socket by servers nobody waited for."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(1):
                pass
        except BlockingIOError:
            pass
        self._socket.settimeout(PATIENCE)

    def close_descriptors(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def end(self) -> None:
        self.kill()
        self.close_descriptors()
        self._socket.close()
        self._theirs.close()
