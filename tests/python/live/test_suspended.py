"""Every writer suspended, because the destination hangs and the container is full: all else answers.

The destination lies in a file system that is frozen, or on an NBD server that is stopped: nothing written there ends.
"""

import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from conftest import MIB, sh
from rig import BROKEN, Attached, Scratch, UnderWay, attach, make_file_system, mounted, scratch_folder, wait_until
from stamps import SECTOR, Region, Stream, Writer

SIZE = 64 * MIB
WRITERS = 8
READS = 200
LONG, SHORT = "600s", "3s"
ANSWER = 40.0  # seconds: far less than the deadline of a write

Hang = Callable[[], object]


@dataclass
class Jam:
    """A backup whose destination hangs, with all writers suspended."""

    there: Attached
    backup: UnderWay
    writers: list[Writer]

    def writers_go_on(self) -> None:
        """Each of them, from wherever it is now."""
        for writer in self.writers:
            writer.wait_for(writer.written() + 2)

    def figures(self) -> dict[str, Any]:
        """Of the backup, as status gives them."""
        figures: dict[str, Any] = self.there.status()["backups"][-1]["parts"][0]
        return figures

    def detach(self) -> None:
        """While the destination hangs. If the daemon cannot end, because its I/O does not, it says so."""
        said = self.there.scratch.blockcow("detach", self.there.name, timeout=ANSWER)
        assert said.returncode == 0 or "hangs. It ends when that does" in said.stderr, said.stderr
        left = {*self.there.scratch.loops()} & {*self.there.paths}
        assert not left, "programs still find the device"

    def all_wait(self) -> bool:
        return int(self.figures()["suspended_now"]) >= WRITERS

    def read_at_random(self) -> None:
        """Direct reads all over the device. Raises TimeoutError if one does not end."""
        random, done = Random(1), threading.Event()

        def read() -> None:
            file = os.open(self.there.paths[0], os.O_RDONLY | os.O_DIRECT)
            buffer = mmap.mmap(-1, 4096)
            for _ in range(READS):
                assert os.preadv(file, [buffer], random.randrange(SIZE // 4096) * 4096) == 4096
            os.close(file)
            done.set()

        threading.Thread(target=read, daemon=True).start()
        if not done.wait(ANSWER):
            raise TimeoutError(f"reads hang while writes are suspended: {self.figures()}")


@contextmanager
def frozen_file_system(scratch: Scratch) -> Iterator[tuple[str, list[str], Hang]]:
    """A destination, options for it, and what makes it hang; it goes on at the end."""
    image = scratch.image("place", 2 * SIZE)
    make_file_system("ext4", str(image))
    with mounted(scratch, image, "place.mnt", "-o", "loop") as point:
        try:
            yield str(point / "image"), [], lambda: sh("fsfreeze", "--freeze", str(point))
        finally:
            sh("fsfreeze", "--unfreeze", str(point))
        wait_until(lambda: not scratch.processes(), "the daemon ends")


@contextmanager
def stopped_nbd_server(scratch: Scratch) -> Iterator[tuple[str, list[str], Hang]]:
    """The same, on an NBD server."""
    socket = scratch / "nbdkit.sock"
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(socket), "memory", str(SIZE)]
    with subprocess.Popen(command) as server:
        wait_until(socket.exists, "nbdkit listens")
        options = ["--manifest", str(scratch / "image.manifest")]
        try:
            yield f"nbd+unix:///?socket={socket}", options, lambda: server.send_signal(signal.SIGSTOP)
        finally:
            server.kill()


HANGS = [frozen_file_system, stopped_nbd_server]


@contextmanager
def jammed(scratch: Scratch, hang: Callable[[Scratch], Any], deadline: str) -> Iterator[Jam]:
    """The backup's destination hangs when the block begins, and the writers write where little is copied."""
    device = scratch.image("disk", SIZE)
    device.write_bytes(Random(2).randbytes(SIZE))
    there = attach(scratch, "disk", device)
    part = SIZE // WRITERS
    writers = []
    with hang(scratch) as (dest, options, stop):
        for number in range(WRITERS):
            region = Region(there.paths[0], number * part, part // SECTOR)
            writers.append(Writer(Stream(number + 1, [region], scratch / f"stream{number}.log")))
        words = ["--device", there.paths[0], "--dest", dest, "--container", "memory:1M", *options]
        words += ["--limit-read", "1M", "--cbw-timeout", deadline, "--consistency", "none"]
        backup = UnderWay(scratch, words)
        wait_until(backup.begun, "the cut is over")
        assert backup.process.poll() is None, backup.wait()
        stop()
        for writer in writers:
            writer.begin()
        yield Jam(there, backup, writers)
    wait_until(lambda: not scratch.left(), "nothing is left")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.__name__)
def test_reads_status_cancel_and_detach_answer(hang: Callable[[Scratch], Any], tried: Callable[[str], None]) -> None:
    with scratch_folder() as scratch:
        with jammed(scratch, hang, LONG) as jam:
            wait_until(jam.all_wait, "all writers are suspended", ANSWER)
            stands = [writer.written() for writer in jam.writers]
            jam.read_at_random()
            refused = scratch.blockcow("detach", "disk", timeout=ANSWER)
            assert refused.returncode != 0, "detached in the midst of a backup"
            assert "Traceback" not in refused.stderr
            assert jam.all_wait()
            assert [writer.written() for writer in jam.writers] == stands
            jam.backup.process.send_signal(signal.SIGINT)
            jam.writers_go_on()
            assert jam.backup.wait().code == 130
            for writer in jam.writers:
                writer.stop()
            jam.detach()
        tried(f"{WRITERS} writers suspended, {READS} reads meanwhile")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.__name__)
def test_after_the_deadline_writes_go_through(hang: Callable[[Scratch], Any], tried: Callable[[str], None]) -> None:
    with scratch_folder() as scratch:
        with jammed(scratch, hang, SHORT) as jam:
            ended = jam.backup.wait(2 * ANSWER)
            assert ended.code == BROKEN, ended
            assert ended.summary["suspended_us"]["max"] >= 3_000_000
            assert "a write was suspended for 3s: the container was full" in ended.summary["error"]
            jam.writers_go_on()
            for writer in jam.writers:
                writer.stop()
            jam.detach()
        tried(f"{WRITERS} writers went on; {ended.summary['error']}")
