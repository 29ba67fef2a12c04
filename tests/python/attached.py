"""A device in front of which blockcow stands, with a file system on it that the kernel mounted. Holds no test."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blockcow import Device, _blockcow, loop
from conftest import MIB, sh


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
    path = loop_over(stack, device, folder / "front")
    volume = path
    if start:
        sh("partx", "--update", path)
        stack.callback(sh, "partx", "--delete", path)
        volume = f"{path}p1"
    sh(f"mkfs.{filesystem}", "-q", *options, volume)
    return Attached(device, path, volume, mounted(stack, volume), start * 512)


def mounted(stack: ExitStack, volume: str, *options: str) -> Path:
    """A new mount point of a block device or image."""
    point = Path(tempfile.mkdtemp(prefix="blockcow-test-"))
    stack.callback(point.rmdir)
    sh("mount", *options, volume, str(point))
    stack.callback(sh, "umount", str(point))
    return point


def loop_over(stack: ExitStack, device: Device, folder: Path) -> str:
    """A loop device whose reads and writes go through ``device``, over a file in a new folder."""
    folder.mkdir()
    file = folder / "file"
    file.touch()
    export = _blockcow.FuseExport.mount(device, str(file))
    stack.callback(export.close)
    made = loop.attach(str(file), sector=device.logical_block_size)
    stack.callback(made.detach)
    return made.path
