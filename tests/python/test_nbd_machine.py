"""A virtual machine that nobody here wrote, with its disk on our NBD server, while that disk is backed up.

QEMU in software emulation boots Debian's kernel with a small initramfs. The machine writes and syncs numbered files on
an ext4 file system, says so on its console, trims, and powers off. Kernel and busybox are fetched by apt-get and
unpacked, never installed.
"""

import queue
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from blockcow import Device
from blockcow._blockcow import NbdServer
from conftest import MIB, sh

FILES = 60
CUT_AFTER = 15
PATIENCE = 240
THE_END = "the machine is off"
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"]

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in {" ".join(MODULES)}; do insmod /$module.ko || echo FAILED $module; done
mount -t ext4 /dev/vda /mnt || echo FAILED mount
number=0
while [ $number -lt {FILES} ]; do
    yes "content of file $number" | head -c 50000 > /mnt/file$number
    rm -f /mnt/scratch; yes $number | head -c 300000 > /mnt/scratch
    sync
    echo SYNCED $number
    [ $((number % 10)) = 9 ] && fstrim /mnt
    number=$((number + 1))
done
umount /mnt && echo CLEAN
poweroff -f
"""


def content_of(number: int) -> bytes:
    line = f"content of file {number}\n".encode()
    return (line * (50000 // len(line) + 1))[:50000]


def package(name: str, folder: Path) -> Path:
    """Fetches and unpacks a Debian package; skips the test where that cannot be."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not there to fetch the package {name}")
    fetch = folder / f"fetch-{name}"
    fetch.mkdir()
    command = ["apt-get", "download", "-q", name]
    fetched = subprocess.run(command, cwd=fetch, capture_output=True, text=True, check=False, timeout=PATIENCE)
    packages = list(fetch.glob("*.deb"))
    if fetched.returncode != 0 or not packages:
        pytest.skip(f"the package {name} cannot be fetched: {fetched.stderr.strip()}")
    unpacked = folder / name
    sh("dpkg-deb", "-x", str(packages[0]), str(unpacked))
    return unpacked


def kernel_package() -> str:
    """The package that holds the kernel for virtual machines."""
    told = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", sh("apt-cache", "depends", "linux-image-cloud-amd64"))
    if told is None:
        pytest.skip("apt-cache knows no linux-image-cloud-amd64; run apt-get update")
    return told[1]


def archive(entries: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive in the format that the kernel unpacks: from names to modes and contents."""
    out = bytearray()
    for inode, (name, (mode, data)) in enumerate({**entries, "TRAILER!!!": (0, b"")}.items(), start=1):
        device = (5, 1) if name == "dev/console" else (0, 0)
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs(kernel: Path, busybox: Path) -> bytes:
    entries = dict.fromkeys(("bin", "dev", "proc", "mnt"), (0o040755, b""))
    entries["dev/console"] = (0o020600, b"")
    entries["bin/busybox"] = (0o100755, (busybox / "bin/busybox").read_bytes())
    for module in MODULES:
        (path,) = kernel.rglob(f"{module}.ko")
        entries[f"{module}.ko"] = (0o100644, path.read_bytes())
    entries["init"] = (0o100755, INIT.encode())
    return archive(entries)


@contextmanager
def machine(kernel: Path, initrd: Path, uri: str) -> Iterator["queue.Queue[str]"]:
    """Runs the machine; its console, line by line, and then `THE_END`."""
    (image,) = kernel.glob("boot/vmlinuz-*")
    drive = f"file={uri},format=raw,if=none,id=disk,cache=none,discard=unmap"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-reboot", "-display", "none"]
    command += ["-serial", "stdio", "-drive", drive, "-device", "virtio-blk-pci,drive=disk"]
    command += ["-kernel", str(image), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=read_lines, args=(process.stdout, lines))
    reader.start()
    try:
        yield lines
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def read_lines(stream: IO[bytes], lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line.decode(errors="replace").rstrip())
    lines.put(THE_END)


def synced(lines: "queue.Queue[str]", until: int) -> int:
    """Reads the console up to the file ``until``; the last file that was synced so far."""
    last, said = -1, list[str]()
    while last < until:
        said.append(lines.get(timeout=PATIENCE))
        assert said[-1] != THE_END, said
        assert "FAILED" not in said[-1], said
        if match := re.search(r"SYNCED (\d+)", said[-1]):
            last = int(match[1])
    return last


def files_in(image: Path, folder: Path) -> dict[int, bytes]:
    """The numbered files of an ext4 image. Its journal is replayed, and then the file system must be clean."""
    sh("e2fsck", "-E", "journal_only", "-y", str(image))
    sh("e2fsck", "-fn", str(image))
    folder.mkdir()
    sh("debugfs", "-R", f"rdump / {folder}", str(image))
    return {int(path.name.removeprefix("file")): path.read_bytes() for path in folder.glob("file*")}


@pytest.mark.timeout(2 * PATIENCE)
def test_a_machine_runs_from_the_export_while_it_is_backed_up(tmp_path: Path, cleanup: ExitStack) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
    kernel, busybox = package(kernel_package(), tmp_path), package("busybox-static", tmp_path)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(initramfs(kernel, busybox))

    path, image = tmp_path / "device.img", tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(96 * MIB)
    sh("mkfs.ext4", "-q", str(path))
    device = cleanup.enter_context(Device(path))
    server = NbdServer([("disk", device)])
    cleanup.callback(server.close)
    listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    server.serve(listener.fileno())

    with machine(kernel, initrd, f"nbd+unix:///disk?socket={tmp_path}/socket") as lines:
        before = synced(lines, CUT_AFTER)
        with device.backup(container="memory:2M", dest=image, limit_read="4M") as backup:
            pass
        synced(lines, FILES - 1)
    status = backup.status()
    assert (status.status, status.suspended_writes > 0) == ("complete", True), status
    server.close()
    device.close()

    found = files_in(image, tmp_path / "found")
    assert set(range(before + 1)) <= set(found), "files that were synced before the cut are missing"
    assert len(found) < FILES, "the image holds files from after the cut"
    for number in range(before + 1):
        assert found[number] == content_of(number), f"file {number} in the image"
    in_device = files_in(path, tmp_path / "in-device")
    assert in_device == {number: content_of(number) for number in range(FILES)}
