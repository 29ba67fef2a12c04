"""The baseline must be right, or a comparison with it means nothing: its image equals the device at the cut."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import baseline
from baseline import BLOCK, Container, Device

SIZE = (16 << 20) + 512
CONTAINER = 512 << 10
WRITERS = 4


class Writer(threading.Thread):
    """Overwrites runs of blocks of its own region with a sequence number, and logs what it did, in order."""

    def __init__(self, device: Device, number: int, seed: int) -> None:
        super().__init__()
        share = SIZE // BLOCK // WRITERS
        self.region = range(number * share, (number + 1) * share)
        self.log: list[range] = []
        self.warm = threading.Event()
        self._device = device
        self._random = Random(seed * WRITERS + number)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            start = self._random.choice(self.region)
            self.log.append(range(start, min(start + self._random.randint(1, 32), self.region.stop)))
            self._device.pwrite(content(len(self.log)) * len(self.log[-1]), start * BLOCK)
            if len(self.log) == 100:
                self.warm.set()

    def stop(self) -> None:
        self._done.set()
        self.join()

    def state_after(self, writes: int, before: list[bytes]) -> dict[int, bytes]:
        """What the first ``writes`` of them made of the region."""
        state = {block: before[block] for block in self.region}
        for number, blocks in enumerate(self.log[:writes], start=1):
            state |= dict.fromkeys(blocks, content(number))
        return state


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK // 8)


@pytest.fixture(autouse=True)
def _jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes I/O take a while, and writes land in two halves: without it the races looked for come up once in hours."""
    random = Random(0)
    read_into, write_all = baseline.read_into, baseline.write_all

    def slow_read(fd: int, view: memoryview, offset: int) -> None:
        time.sleep(random.random() * 1e-3)
        read_into(fd, view, offset)

    def slow_write(fd: int, data: bytes | memoryview, offset: int) -> None:
        half = len(data) // 2
        write_all(fd, data[:half], offset)
        time.sleep(random.random() * 1e-3)
        write_all(fd, data[half:], offset + half)

    monkeypatch.setattr(baseline, "read_into", slow_read)
    monkeypatch.setattr(baseline, "write_all", slow_write)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20) + os.urandom(SIZE - (1 << 20)))
    return path


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


def blocks_of(image: bytes) -> list[bytes]:
    return [image[at : at + BLOCK] for at in range(0, len(image), BLOCK)]


@pytest.mark.parametrize("seed", range(8))
def test_image_holds_a_prefix_of_every_writers_writes(disk: Path, tmp_path: Path, seed: int) -> None:
    before = blocks_of(disk.read_bytes())
    device = Device(disk)
    writers = [Writer(device, number, seed) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        assert writer.warm.wait(60)
    acknowledged = [len(writer.log) - 1 for writer in writers]
    backup = device.backup(tmp_path / "container", CONTAINER, tmp_path / "image")
    backup.wait()
    for writer in writers:
        writer.stop()
    device.close()

    image = blocks_of((tmp_path / "image").read_bytes())
    after = blocks_of(disk.read_bytes())
    assert image[-1] == before[-1]
    for writer, least in zip(writers, acknowledged, strict=True):
        copied = {block: image[block] for block in writer.region}
        cut = max(int.from_bytes(data[:8], "little") for block, data in copied.items() if data != before[block])
        assert cut >= least
        assert copied == writer.state_after(cut, before)
        assert {block: after[block] for block in writer.region} == writer.state_after(len(writer.log), before)


def test_wide_writes_through_a_container_of_one_slot(disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    device = Device(disk)
    backup = device.backup(tmp_path / "container", BLOCK, tmp_path / "image")
    new = bytearray(before)
    random = Random(1)
    for _ in range(200):
        offset = random.randrange(SIZE)
        data = random.randbytes(min(random.randrange(1, 40_000), SIZE - offset))
        device.pwrite(data, offset)
        new[offset : offset + len(data)] = data
    backup.wait()
    device.close()
    assert (tmp_path / "image").read_bytes() == before
    assert disk.read_bytes() == new


def test_cut_waits_for_the_write_in_flight(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def stuck_write(*_: object) -> None:
        started.set()
        go_on.wait(60)

    def write() -> None:
        device.pwrite(b"old", 0)
        order.append("write")

    def cut() -> None:
        backup = device.backup(tmp_path / "container", CONTAINER, tmp_path / "image")
        order.append("cut")
        backup.wait()

    device = Device(disk)
    with monkeypatch.context() as patched:
        patched.setattr(baseline, "write_all", stuck_write)
        threads = [threading.Thread(target=write), threading.Thread(target=cut)]
        threads[0].start()
        assert started.wait(60)
        threads[1].start()
        until(lambda: device._flights.holding or order == ["cut"])
        go_on.set()
        for thread in threads:
            thread.join()
    device.close()
    assert order == ["write", "cut"]


def test_full_container_waits_until_the_selected_amount_is_free(tmp_path: Path) -> None:
    container = Container(tmp_path / "container", 40 * BLOCK)
    taken = container.take(container.capacity)
    waiting = threading.Thread(target=container.take, args=[1])
    waiting.start()
    until(lambda: container.draining)
    container.give_back(taken[:9])
    assert container.draining
    container.give_back(taken[9:10])
    waiting.join(60)
    assert not waiting.is_alive()
    container.close()


def test_failing_container_breaks_the_backup_and_no_write(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wait_for_the_write(*_: object) -> dict[int, int]:
        written.wait(60)
        return {}

    written = threading.Event()
    monkeypatch.setattr(Container, "put", refuse)
    monkeypatch.setattr(Container, "collect", wait_for_the_write)
    device = Device(disk)
    backup = device.backup(tmp_path / "container", CONTAINER, tmp_path / "image")
    assert device.pwrite(b"new", SIZE - 3) == 3
    written.set()
    with pytest.raises(OSError, match="No space left"):
        backup.wait()
    device.close()
    assert disk.read_bytes().endswith(b"new")
    assert not (tmp_path / "image").exists()
