"""Serves a device by FUSE and loop, or by NBD, in a process of its own, and backs it up again and again while told to.

Run by `frontends.py`. ``serve.py fuse|nbd DEVICE PLACE`` prints where programs find the device. Then it reads lines:
``backup`` begins a row of backups without a pause, ``idle`` ends it and prints how many bytes they read.
"""

import socket
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import blockcow
from blockcow import loop
from blockcow._blockcow import FuseExport, NbdServer


class Backups:
    """Backups of one device, one after the other, until they are stopped."""

    def __init__(self, device: blockcow.Device, place: Path) -> None:
        self._device, self._place = device, place
        self._current: blockcow.Backup | None = None
        self._stopped = False
        self._done_bytes = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        image = self._place / "image"
        while not self._stopped:
            for leftover in self._place.glob("image*"):
                leftover.unlink()
            self._current = self._device.backup(container=self._place / "container", dest=image)
            with suppress(blockcow.CancelledError):
                self._current.wait()
            self._done_bytes += self._current.status().done_bytes

    def stop(self) -> int:
        self._stopped = True
        while self._thread.is_alive():
            if self._current:
                self._current.cancel()
            self._thread.join(0.01)
        return self._done_bytes


def serve(kind: str, device: blockcow.Device, place: Path, stack: ExitStack) -> str:
    """Where programs find it."""
    if kind == "fuse":
        point = place / "file"
        point.touch()
        served = FuseExport.mount(device, str(point))
        stack.callback(served.close)
        made = loop.attach(str(point), sector=device.logical_block_size)
        stack.callback(made.detach)
        return made.path
    path = place / "socket"
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen()
    server = NbdServer([("device", device)])
    stack.callback(server.close)
    server.serve(listener.fileno())
    return f"nbd+unix:///?socket={path}"


def main(kind: str, path: str, place: str) -> None:
    with ExitStack() as stack:
        device = stack.enter_context(blockcow.Device(path))
        print(serve(kind, device, Path(place), stack), flush=True)
        backups: Backups | None = None
        for line in sys.stdin:
            if line == "backup\n":
                backups = Backups(device, Path(place))
            elif backups:
                print(backups.stop(), flush=True)
                backups = None


if __name__ == "__main__":
    main(*sys.argv[1:])
