"""What keeps blockcow at work when memory is short: locked memory, and nothing written through the device it serves."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from attached import attach, mounted
from blockcow import BusyError, mounts
from blockcow.elsewhere import require_elsewhere, served
from conftest import MIB, sh
from live import Attaches, wait_until

HERE = Path(__file__).parent
PATIENCE = 120.0
# Less is left for the page cache than the 192 MiB that are written: the server takes some 40 MiB and the copies of the
# writes that are suspended at a time, at most the 64 MiB that one fsync sends; the writer takes 20.
LIMIT, HOG_BYTES = 300 * MIB, 140 * MIB

BRACED = """
import ctypes, json, mmap, os, re, threading
from pathlib import Path
from blockcow import pressure

def locked():
    status = Path("/proc/self/status").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"Vm(Size|Lck):\\\\s+(\\\\d+) kB", status)}

footing = pressure.brace().as_dict()
before = locked()
later = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE)
untouched = locked()
worker = threading.Thread(target=lambda: later.write(b"x" * (64 << 20)))
worker.start()
worker.join()
resident = {line.split()[0]: int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(("VmRSS", "VmSwap"))}
flusher = ctypes.CDLL(None).prctl(58, 0, 0, 0, 0)
print(json.dumps([footing, before, untouched, resident, flusher, os.getcwd()]))
"""


def braced(*prefix: str) -> list[object]:
    command = [*prefix, sys.executable, "-c", BRACED.replace("\\\\", "\\")]
    return list(json.loads(sh(*command)))


def test_all_memory_is_locked_and_what_comes_later_as_it_is_touched(root: None) -> None:
    footing, before, untouched, resident, _flusher, folder = braced()
    assert isinstance(footing, dict)
    assert isinstance(before, dict)
    assert isinstance(untouched, dict)
    assert isinstance(resident, dict)
    assert folder == "/"
    if footing["memory_locked"] != "yes":
        pytest.skip(f"memory cannot be locked here: {footing['memory_locked']}")
    assert before["Lck"] > before["Size"] * 0.9
    assert untouched["Lck"] >= before["Lck"] + 64 * MIB
    assert resident["VmRSS:"] * 1024 > before["Lck"]


def test_the_rest_is_granted_or_the_reason_is_given(root: None) -> None:
    footing, *_, flusher, _folder = braced()
    assert isinstance(footing, dict)
    assert (flusher == 1) == (footing["io_flusher"] == "yes")
    if flusher != 1:
        assert footing["io_flusher"].startswith("needs CAP_SYS_RESOURCE")
        pytest.skip(f"cannot be had here: {footing['io_flusher']}; {footing['spared_by_oom_killer']}")
    assert footing["spared_by_oom_killer"] == "yes"


def test_without_the_right_nothing_is_locked_and_the_reason_is_given(root: None) -> None:
    limit = "--memlock=8388608:8388608"
    footing, before, *_ = braced("prlimit", limit, "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
    assert isinstance(footing, dict)
    assert isinstance(before, dict)
    assert footing["memory_locked"] == "needs CAP_IPC_LOCK, or an unlimited RLIMIT_MEMLOCK instead of 8388608 bytes"
    assert before["Lck"] == 0, "mappings to come would fail under a limit"


def test_places_on_the_served_device_are_refused(root: None, tmp_path: Path, cleanup: ExitStack) -> None:
    at = attach(cleanup, tmp_path, "ext4", start=2048)
    file = tmp_path / "front" / "file"
    assert served([at.loop]) == served([file])
    assert len(served([file])) == 2, "the device and its partition"
    require_elsewhere({"log": tmp_path / "not" / "yet" / "log", "run folder": "/run"}, [file])
    (at.mount / "folder").mkdir()
    for inside in (at.mount, at.mount / "folder", at.mount / "folder" / "not-yet" / "log"):
        with pytest.raises(BusyError, match=f"use {inside} as the log: it lies in the file system mounted at"):
            require_elsewhere({"run folder": "/run", "log": inside}, [file])
    (tmp_path / "link").symlink_to(at.mount)
    with pytest.raises(BusyError, match="choose a place on another device"):
        require_elsewhere({"log": tmp_path / "link" / "log"}, [at.loop])


def test_btrfs_on_the_served_device_is_seen_though_its_number_is_anonymous(
    root: None, tmp_path: Path, cleanup: ExitStack
) -> None:
    at = attach(cleanup, tmp_path, "btrfs")
    with pytest.raises(BusyError, match="it lies in the file system mounted at"):
        require_elsewhere({"destination": at.mount / "image"}, [at.loop])


@pytest.mark.parametrize("where", ["partition", "file"])
def test_swap_on_the_served_device_is_refused(root: None, tmp_path: Path, cleanup: ExitStack, where: str) -> None:
    at = attach(cleanup, tmp_path, "ext4", start=2048)
    swap = at.mount / "swap"
    if where == "partition":
        sh("umount", str(at.mount))
        cleanup.callback(sh, "mount", at.volume, str(at.mount))
        swap = Path(at.volume)
    else:
        swap.write_bytes(bytes(4 * MIB))
        swap.chmod(0o600)
    saved = swap.read_bytes()[: 64 * 1024]
    sh("mkswap", str(swap))
    tried = subprocess.run(["swapon", str(swap)], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        restore(swap, saved)
        pytest.skip(f"no swap space can be had here: {tried.stderr.strip()}")
    try:
        with pytest.raises(BusyError, match="there is swap space on a device that it serves.*swapoff"):
            require_elsewhere({}, [at.loop])
    finally:
        sh("swapoff", str(swap))
        restore(swap, saved)
    require_elsewhere({}, [at.loop])


def restore(swap: Path, saved: bytes) -> None:
    with swap.open("r+b") as file:
        file.write(saved)


@contextmanager
def memory_limit(limit: int) -> Iterator[Path]:
    """A control group whose processes, and the page cache that they fill, get so many bytes."""
    name = f"blockcow-test-{os.getpid()}"
    for parent, knob in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(parent) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / knob).exists():
                (group / knob).write_text(str(limit))
                yield group
                return
        finally:
            until = time.monotonic() + 10
            while group.exists() and time.monotonic() < until:
                try:
                    group.rmdir()
                except OSError:  # its last process is not gone yet
                    time.sleep(0.05)
    pytest.skip("no control group with a memory limit can be had here")


SERVER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from attached import loop_over
from blockcow import Device, pressure

footing = pressure.brace()
with ExitStack() as stack:
    device = Device(sys.argv[1])
    stack.callback(device.close)
    print(loop_over(stack, device, Path(sys.argv[2])), flush=True)
    point, dest = sys.stdin.readline().split()
    backup = device.backup(
        container=point + "/cow", container_size="8M", dest=dest, mounts=[point], staging_size="1M", limit_read="32M"
    )
    print("backing up", flush=True)
    sys.stdin.readline()
    backup.wait()
    print(backup.status().status, flush=True)
    sys.stdin.readline()
"""

WRITER = """
import os, random, sys
for turn in range(3):
    with open(sys.argv[1], "r+b") as file:
        for _ in range(int(sys.argv[2])):
            file.write(random.Random(turn).randbytes(1 << 20))
        os.fsync(file.fileno())
"""

HOG = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE)
print("there", flush=True)
while True:
    for page in range(0, len(memory), 4096):
        memory[page] = 1
"""


class Group:
    """Processes under one memory limit, gone at the end of the test."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        self._folder, self._procs, self._cleanup = folder, folder / "cgroup.procs", cleanup

    def was_short(self) -> bool:
        """Whether the kernel had to take memory away because of the limit."""
        if (old := self._folder / "memory.failcnt").exists():
            return int(old.read_text()) > 0
        return any(name == "max" and int(count) > 0 for name, count in self._events())

    def _events(self) -> list[list[str]]:
        return [line.split() for line in (self._folder / "memory.events").read_text().splitlines()]

    def take(self, pid: int) -> None:
        """A process and those that it starts."""
        self._procs.write_text(str(pid))

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Runs Python code in the group."""
        joined = f"open({str(self._procs)!r}, 'w').write(str(__import__('os').getpid()))\n{script}"
        process = subprocess.Popen(
            [sys.executable, "-c", joined, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        self._cleanup.callback(process.__exit__, None, None, None)
        self._cleanup.callback(process.kill)
        return process


def unmount_if_there(file: Path) -> None:
    """By name: of a file whose server was killed nothing can be asked."""
    if any(mount.point == str(file) for mount in mounts.mounted()):
        sh("umount", "--lazy", str(file))


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_writes_go_on_and_the_backup_completes_when_memory_is_short(
    root: None, tmp_path: Path, cleanup: ExitStack, filesystem: str
) -> None:
    """Server, writer and a process that wants all the rest share a group whose memory is less than what is written."""
    image, size = tmp_path / "device.img", 64
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    sh(f"mkfs.{filesystem}", "-q", str(image))
    group = Group(cleanup.enter_context(memory_limit(LIMIT)), cleanup)
    front = tmp_path / "front"
    cleanup.callback(unmount_if_there, front / "file")
    server = group.start(SERVER, str(image), str(front))
    with ExitStack() as stack:
        point = mounted(stack, line(server))
        (point / "old").write_bytes(random.Random(5).randbytes(size * MIB))
        sh("sync", "-f", str(point))
        hog = group.start(HOG, str(HOG_BYTES))
        assert line(hog) == "there"
        tell(server, f"{point} {tmp_path / 'image'}")
        assert line(server) == "backing up"
        writer = group.start(WRITER, str(point / "old"), str(size))
        assert writer.wait(PATIENCE) == 0
        tell(server, "")
        assert line(server) == "complete"
        assert hog.poll() is None
        assert group.was_short()
        assert (point / "old").read_bytes() == random.Random(2).randbytes(MIB) * size
    tell(server, "")
    assert server.wait(PATIENCE) == 0
    with ExitStack() as stack:
        old = mounted(stack, str(tmp_path / "image"), "-o", "loop") / "old"
        assert old.read_bytes() == random.Random(5).randbytes(size * MIB)


def test_a_worker_that_is_killed_when_memory_is_short_is_replaced_and_its_backup_goes_on(
    root: None, tmp_path: Path, cleanup: ExitStack, attaches: Attaches
) -> None:
    disk, size = tmp_path / "disk.img", 64
    with disk.open("wb") as file:
        file.truncate(400 * MIB)
    attached = attaches.attach(disk, frontend="fuse")
    sh("mkfs.ext4", "-q", attached.path)
    group = Group(cleanup.enter_context(memory_limit(LIMIT)), cleanup)
    with ExitStack() as stack:
        point = mounted(stack, attached.path)
        (point / "old").write_bytes(random.Random(5).randbytes(size * MIB))
        sh("sync", "-f", str(point))
        for who in ("keeper", "worker"):
            group.take(attached.pid(who))
        hog = group.start(HOG, str(HOG_BYTES))
        assert line(hog) == "there"
        options = ("--container-size", "8M", "--staging-size", "1M", "--limit-read", "16M", "--cbw-timeout", "60s")
        backup = attached.start(
            "backup", "--device", attached.path, "--container", point / "cow", "--dest", tmp_path / "image", *options
        )
        wait_until(lambda: any(one["status"] == "active" for one in attached.get("/status")["backups"]), "the cut")
        writer = group.start(WRITER, str(point / "old"), str(size))
        attached.kill_worker()
        assert writer.wait(PATIENCE) == 0
        _, stderr = backup.communicate(timeout=PATIENCE)
        assert backup.returncode == 0, stderr
        assert hog.poll() is None
        assert group.was_short()
        assert (point / "old").read_bytes() == random.Random(2).randbytes(MIB) * size
    with ExitStack() as stack:
        old = mounted(stack, str(tmp_path / "image"), "-o", "loop") / "old"
        assert old.read_bytes() == random.Random(5).randbytes(size * MIB)
    attached.run("detach", attached.name)
