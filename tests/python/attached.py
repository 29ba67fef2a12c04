"""A device in front of which blockcow stands, with a file system on it that the kernel mounted. Holds no test.

The way from the file system to the device is a real one: loop device, FUSE by libnbd's nbdfuse, NBD, blockcow's server.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockcow import Device, _blockcow
from conftest import MIB, sh

PATIENCE = 60.0


@dataclass(frozen=True)
class Attached:
    """What a test needs of it."""

    device: Device
    loop: str
    """The device as programs see it."""
    volume: str
    """The loop device or its partition that holds the file system."""
    mount: Path
    origin: int
    """Where the file system begins on the device."""


def attach(
    stack: ExitStack, folder: Path, filesystem: str, *options: str, start: int = 0, size: int = 400 * MIB
) -> Attached:
    """Attaches a new device file, makes the file system, from sector ``start`` on if there is to be a partition."""
    image = folder / "device.img"
    with image.open("wb") as file:
        file.truncate(size)
    if start:
        sh("sfdisk", "-q", str(image), stdin=f"label: dos\nstart={start}\n")
    device = Device(image)
    stack.callback(device.close)
    loop = loop_over(stack, device)
    volume = loop
    if start:
        sh("partx", "--update", loop)
        stack.callback(sh, "partx", "--delete", loop)
        volume = f"{loop}p1"
    sh(f"mkfs.{filesystem}", "-q", *options, volume)
    return Attached(device, loop, volume, mounted(stack, volume), start * 512)


def mounted(stack: ExitStack, volume: str, *options: str) -> Path:
    """A new mount point of a block device or image."""
    point = Path(tempfile.mkdtemp(prefix="blockcow-test-"))
    stack.callback(point.rmdir)
    sh("mount", *options, volume, str(point))
    stack.callback(sh, "umount", str(point))
    return point


def loop_over(stack: ExitStack, device: Device) -> str:
    """A loop device whose reads and writes go through ``device``."""
    # Not in pytest's folder: its names are too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="blockcow-test-"))
    stack.callback(shutil.rmtree, folder)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(folder / "socket"))
    listener.listen()
    server = _blockcow.NbdServer([("device", device)])
    stack.callback(server.close)
    server.serve(listener.fileno())
    return loop_over_nbd(stack, folder / "socket")


def loop_over_nbd(stack: ExitStack, server: Path) -> str:
    """A loop device over an NBD server's socket."""
    if shutil.which("nbdfuse") is None:
        pytest.skip("nbdfuse is not installed (package libnbd-bin)")
    file = server.parent / "file"
    file.touch()
    process = subprocess.Popen(["nbdfuse", str(file), f"nbd+unix:///?socket={server}"])
    stack.callback(process.wait, PATIENCE)
    stack.callback(sh, "umount", "--lazy", str(file))
    until = time.monotonic() + PATIENCE
    while not os.path.ismount(file):
        assert process.poll() is None, "nbdfuse ended"
        assert time.monotonic() < until, "nbdfuse did not mount its file"
        time.sleep(0.01)
    name = sh("losetup", "--find", "--show", "--partscan", str(file))
    stack.callback(sh, "losetup", "--detach", name)
    return name
