"""Every writer of a loop device waits, and whoever reads goes on. The destination is a disk that stopped answering."""

import os
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import blockcow
from blockcow import loop
from blockcow._blockcow import FuseExport
from conftest import MIB, sh
from fuse_keeper import PATIENCE, Keeper

WRITERS = 300


@pytest.fixture
def device(root: None, tmp_path: Path, cleanup: ExitStack) -> blockcow.Device:
    """A device of 64 MiB without zeroes."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE: /dev/fuse is missing")
    path = tmp_path / "device.img"
    path.write_bytes(os.urandom(MIB) * 64)
    return cleanup.enter_context(blockcow.Device(path))


@pytest.fixture
def attached(device: blockcow.Device, tmp_path: Path, cleanup: ExitStack) -> loop.Loop:
    """The device behind FUSE and loop."""
    point = tmp_path / "file"
    point.touch()
    served = FuseExport.mount(device, str(point))
    cleanup.callback(served.close)
    made = loop.attach(str(point), sector=512)
    cleanup.callback(made.detach)
    return made


@pytest.fixture
def stopped(device: blockcow.Device, tmp_path: Path, cleanup: ExitStack) -> blockcow.Backup:
    """A backup of the device whose destination does not answer, from its first write on."""
    folder = tmp_path / "far"
    folder.mkdir()
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate(device.size)
    kept = Keeper(disk, folder / "file")
    cleanup.callback(sh, "umount", "--lazy", str(folder / "file"))
    cleanup.callback(kept.end)
    dest = loop.attach(str(folder / "file"), sector=512)
    cleanup.callback(dest.detach)
    # The sweep is slow until the destination has stopped, then it waits for it.
    backup = device.backup(
        container="memory:1M", dest=dest.path, manifest=folder / "manifest", cbw_timeout=600, limit_read="1M"
    )
    kept.stop()

    def end() -> None:
        kept.go_on()
        backup.cancel()
        with suppress(blockcow.CancelledError):
            backup.wait(PATIENCE)

    cleanup.callback(end)
    return backup


def inflight(path: str) -> int:
    """How many writes a block device has in hand."""
    return int(Path("/sys/block", Path(path).name, "inflight").read_text().split()[1])


def test_reads_answer_while_every_writer_waits(
    device: blockcow.Device, attached: loop.Loop, stopped: blockcow.Backup, cleanup: ExitStack
) -> None:
    if attached.writes_at_once is None:
        pytest.skip("this kernel has no mq-deadline to keep tags for reads")
    load = [f"--filename={attached.path}", "--direct=1", "--ioengine=libaio", "--norandommap", "--bs=4k"]
    writers = subprocess.Popen(
        ["fio", "--name=writers", *load, "--rw=randwrite", f"--iodepth={WRITERS // 3}", "--numjobs=3", "--size=60m"],
        stdout=subprocess.DEVNULL,
    )
    cleanup.callback(writers.wait, PATIENCE)
    cleanup.callback(stopped.cancel)
    deadline = time.monotonic() + PATIENCE
    while (now := stopped.status().suspended_now) < attached.writes_at_once:
        assert time.monotonic() < deadline, f"only {now} writes are suspended"
        time.sleep(0.05)
    assert inflight(attached.path) >= attached.writes_at_once
    # In a process of its own, so that this one, which serves, never waits for itself.
    readers = subprocess.Popen(
        ["fio", "--name=readers", *load, "--rw=randread", "--iodepth=32", "--numjobs=2", "--number_ios=500"],
        stdout=subprocess.DEVNULL,
    )
    cleanup.callback(readers.wait, PATIENCE)
    cleanup.callback(stopped.cancel)
    assert readers.wait(PATIENCE) == 0
    status = stopped.status()
    assert (status.status, status.suspended_now) == ("active", now)
    stopped.cancel()
    assert writers.wait(PATIENCE) == 0
