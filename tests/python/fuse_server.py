"""A process that serves a device as a file until it is killed. Run by tests, which keep its descriptors. Holds no test.

First: ``fuse_server.py DEVICE MOUNTPOINT`` mounts, and sends descriptors and note over the socket that is its stdin.
Later: ``fuse_server.py DEVICE MOUNTPOINT NOTE DEVICE_FD,... FUSE_FD,...`` goes on for one that was killed.
Then it writes a byte to the socket once it serves.
"""

import json
import signal
import socket
import sys

from blockcow import Device
from blockcow._blockcow import FuseExport


def main(path: str, mountpoint: str, note: str = "", device_fds: str = "", fuse_fds: str = "") -> None:
    keeper = socket.socket(fileno=0)
    if note:
        device = Device.adopt(path, numbers(device_fds))
        served = FuseExport.adopt(device, numbers(fuse_fds), note)
        keeper.send(b"!")
    else:
        device = Device(path)
        served = FuseExport.mount(device, mountpoint)
        kept = {"note": served.note(), "device": len(device.descriptors())}
        socket.send_fds(keeper, [json.dumps(kept).encode()], [*device.descriptors(), *served.descriptors()])
    signal.pause()
    del served


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main(*sys.argv[1:])
