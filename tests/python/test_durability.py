"""What was acknowledged stays: flushes reach the device, and a kill at any moment costs nothing but the backup."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import blockcow
from blockcow import Device
from conftest import MIB

RECORD = 4096
KILLS = 20

WRITER = """
import sys
import blockcow

device_path, container, dest = sys.argv[1:]
with blockcow.Device(device_path) as device:
    device.backup(container=container, dest=dest, limit_read="512K")
    for number in range(1, 1_000_000):
        device.pwrite(number.to_bytes(8, "little") * 512, number * 7919 % 2048 * 4096)
        print(number, flush=True)
"""


def flushes_of(device: str) -> int:
    """How many flushes the kernel has sent to a block device."""
    return int(Path("/sys/block", Path(device).name, "stat").read_text().split()[15])


def test_a_flush_reaches_the_device_during_a_backup_as_before(loop_device: Callable[..., str], tmp_path: Path) -> None:
    path = loop_device(8 * MIB)
    with Device(path) as device:
        for _ in range(3):
            device.pwrite(b"x" * RECORD, 0)
            before = flushes_of(path)
            device.flush()
            assert flushes_of(path) > before
        backup = device.backup(container="memory:1M", dest=tmp_path / "image", limit_read="512K")
        for offset in range(0, 64 * RECORD, RECORD):
            device.pwrite(b"y" * RECORD, offset)
            before = flushes_of(path)
            device.flush()
            assert flushes_of(path) > before
        assert str(device.state) == "backing-up"
        backup.cancel()
        assert backup.ended(60)


def test_a_killed_backup_leaves_the_device_and_earlier_backups_right(image: Path, tmp_path: Path) -> None:
    earlier, dest = tmp_path / "earlier.img", tmp_path / "dest.img"
    blockcow.backup(device=image, container="memory:1M", dest=earlier)
    content = earlier.read_bytes()
    expected = bytearray(content)
    random = Random(1)
    for kill in range(KILLS):
        acknowledged = kill_the_writer(image, tmp_path, dest, after=random.randrange(1, 400))
        assert not dest.exists()
        assert not dest.with_name("dest.img.manifest").exists()
        for number in range(1, acknowledged + 1):
            at = number * 7919 % 2048 * RECORD
            expected[at : at + RECORD] = record(number)
        device = image.read_bytes()
        # The write under way when the kill came may have happened or not.
        under_way = (acknowledged + 1) * 7919 % 2048 * RECORD
        if device[under_way : under_way + RECORD] == record(acknowledged + 1):
            expected[under_way : under_way + RECORD] = record(acknowledged + 1)
        assert device == expected, f"kill {kill}"
    assert blockcow.verify(str(earlier), f"{earlier}.manifest")["damaged"] == []
    assert earlier.read_bytes() == content
    assert blockcow.backup(device=image, container="memory:1M", dest=dest).status == "complete"
    assert dest.read_bytes() == expected


def record(number: int) -> bytes:
    return number.to_bytes(8, "little") * (RECORD // 8)


def kill_the_writer(image: Path, folder: Path, dest: Path, after: int) -> int:
    """Kills a program in the midst of a backup and its writes; returns how many were acknowledged."""
    command = [sys.executable, "-c", WRITER, str(image), str(folder / "cow"), str(dest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(after):
            writer.stdout.readline()
        writer.kill()
        rest = writer.stdout.read().splitlines()
    if writer.returncode != -signal.SIGKILL:
        pytest.fail(f"the writer ended by itself: {writer.returncode}")
    return int(rest[-1]) if rest else after
