"""A device as a file by FUSE, where the device is slow or does not answer: more requests are under way meanwhile."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockcow
from blockcow._blockcow import FuseExport
from conftest import MIB, sh
from fuse_keeper import PATIENCE, Keeper

BLOCK = 4096
# As the package has them: some of its threads always read requests, some only where I/O is slow.
ALWAYS, ALL = 4, 8


class SlowDevice:
    """A device that answers while it is not stopped: itself a file by FUSE, of another process."""

    def __init__(self, folder: Path, content: bytes, cleanup: ExitStack) -> None:
        control = folder / "control"
        control.mkdir()
        sh("mount", "-t", "fusectl", "none", str(control))
        cleanup.callback(sh, "umount", str(control))
        (folder / "disk").write_bytes(content)
        self.path = folder / "slow"
        self._keeper = Keeper(folder / "disk", self.path)
        cleanup.callback(sh, "umount", "--lazy", str(self.path))
        cleanup.callback(self._keeper.end)
        self._control = control / str(os.minor(self.path.stat().st_dev)) / "waiting"
        self.stop, self.go_on = self._keeper.stop, self._keeper.go_on

    def under_way(self) -> int:
        """Requests that it has not answered."""
        return int(self._control.read_text())

    def wait_for(self, count: int) -> None:
        """Until so many are under way."""
        deadline = time.monotonic() + PATIENCE
        while self.under_way() != count:
            assert time.monotonic() < deadline, f"{self.under_way()} requests are under way, not {count}"
            time.sleep(0.001)


@pytest.fixture
def content() -> bytes:
    return os.urandom(MIB)


@pytest.fixture
def slow(root: None, content: bytes, tmp_path: Path, cleanup: ExitStack) -> SlowDevice:
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE: /dev/fuse is missing")
    return SlowDevice(tmp_path, content, cleanup)


@pytest.fixture
def read(slow: SlowDevice, tmp_path: Path, cleanup: ExitStack) -> Callable[[int], Future[bytes]]:
    """Begins to read the block of that number from the served file."""
    point = tmp_path / "file"
    point.touch()
    device = cleanup.enter_context(blockcow.Device(slow.path))
    cleanup.callback(FuseExport.mount(device, str(point)).close)
    file = os.open(point, os.O_RDONLY)
    cleanup.callback(os.close, file)
    readers = cleanup.enter_context(ThreadPoolExecutor(2 * ALL))
    cleanup.callback(slow.go_on)
    return lambda number: readers.submit(os.pread, file, BLOCK, number * BLOCK)


def test_a_slow_device_has_more_requests_at_once(
    slow: SlowDevice, read: Callable[[int], Future[bytes]], content: bytes
) -> None:
    def held(count: int, under_way: int) -> None:
        """So many reads; the device answers none until so many have reached it."""
        slow.stop()
        reads = [read(number) for number in range(count)]
        slow.wait_for(under_way)
        slow.go_on()
        assert b"".join(done.result(PATIENCE) for done in reads) == content[: count * BLOCK]

    # Nothing is known of it yet.
    held(2 * ALL, ALWAYS)
    for _ in range(5):
        for _ in range(10):
            held(1, 1)
        held(2 * ALL, ALL)
