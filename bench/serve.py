"""Serves a device by FUSE and loop, or by NBD, in a process of its own, and backs it up when told to.

Run by `servers.py`. ``serve.py fuse|nbd DEVICE PLACE`` prints where programs find the device. Then it reads lines, each
an object of JSON with what `Device.backup` takes; for each it prints ``cut`` when the cut was made, and at the end of
the backup an object with the fields of `latency.Outcome`.
"""

import json
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import blockcow
from blockcow import loop
from blockcow._blockcow import FuseExport, NbdServer
from latency import Outcome

_LOOK_EVERY = 0.02


def outcome_of(backup: blockcow.Backup, began: float) -> Outcome:
    """Waits for the end, and looks at the container meanwhile."""
    fill: list[tuple[float, int]] = []
    first_full = None
    while not backup.ended(_LOOK_EVERY):
        status = backup.status()
        fill.append((time.time() - began, status.container_used_bytes))
        if first_full is None and (status.draining or status.drains):
            first_full = fill[-1][0]
    seconds = time.time() - began
    status = backup.status()
    return Outcome(
        status=status.status,
        began=began,
        seconds=seconds,
        container_peak_bytes=status.container_peak_bytes,
        fill=fill,
        first_full_s=first_full,
        hold_us=status.hold_us,
        error=status.error or "",
    )


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
        for line in sys.stdin:
            order = json.loads(line)
            began = time.time()
            backup = device.backup(**order)
            print("cut", flush=True)
            print(json.dumps(asdict(outcome_of(backup, began))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
