"""kill -9 of the worker at random moments of backups under load: no program sees an error, and no backup lies.

Half of the kills under ext4 with fio, which verifies what it wrote; half under pgbench. A stream of stamped sectors in
the same file system proves that each image that is called complete is one cut. Backups that are broken are counted.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest

from conftest import MIB
from postgres import Numbered, Pgbench, make_cluster, need_postgresql, rows_of, running, stale_pid_removed
from rig import (
    Attached,
    Ended,
    Scratch,
    allocate,
    as_it_stands,
    attached,
    check_file_system,
    looped,
    make_file_system,
    mounted,
    scratch_folder,
    wait_until,
)
from stamps import SECTOR, Region, Stream, Writer, assert_one_instant, find, reader
from workload import Repeated, fio

KILLS = 102
KILLS_OF_ONE_BACKUP = 6
FILLED = 32 * MIB
SERVED = 0.8  # share of kills after which the next one waits until the next worker serves
STAMPED = MIB
LONGEST_PAUSE = 0.4  # seconds between two kills; backups take longer
EARLY = 0.2  # share of backups of which the first kill does not wait for the cut
SEED = 3

Look = Callable[[Path, Ended], None]


class Killer:
    """Makes backups until the worker was killed often enough, and holds every image to what it says."""

    def __init__(self, scratch: Scratch, there: Attached, seed: int) -> None:
        self._scratch, self._there, self._random = scratch, there, Random(seed)
        self.kills = self.before = self.complete = self.broken = self.restarts = 0
        self.pauses: list[float] = []

    def run(self, stream: Stream, limit_read: str, look: Look | None = None) -> None:
        while self.kills < KILLS:
            dest = self._scratch / "image"
            ended = self._one_backup(dest, limit_read)
            if ended.complete:
                self.complete += 1
                self.restarts += ended.summary["worker_restarts"]
                with as_it_stands(self._scratch, "ext4", dest) as point:
                    found = find(stream, [reader(point / Path(stream.targets[0].path).name)])
                    assert_one_instant([found], ended.before, ended.after)
                    assert (point / "filled").read_bytes() == Random(SEED).randbytes(FILLED)
                if look is not None:
                    look(dest, ended)
                dest.with_name(f"{dest.name}.manifest").unlink()
                dest.unlink()
            else:
                self.broken += 1
                assert not dest.exists(), "a broken backup bears the final name"
                assert ended.summary["error"], "a broken backup has no cause"

    def _one_backup(self, dest: Path, limit_read: str) -> Ended:
        backup = self._there.start(dest, consistency="freeze", limit_read=limit_read, container="memory:2M")
        early = self._random.random() < EARLY
        for _ in range(KILLS_OF_ONE_BACKUP):
            if not early:
                wait_until(backup.begun, "the cut is over")
            time.sleep(self._random.uniform(0, LONGEST_PAUSE))
            if self.kills == KILLS or backup.process.poll() is not None:
                break
            self.before += not backup.begun()
            dead, began = self._there.kill_worker(), time.monotonic()
            self.kills += 1
            self._there.wait_for_another(dead)
            if self._random.random() < SERVED:
                self._there.read_at(self._random.randrange(MIB // 4096) * 4096)
                self.pauses.append(time.monotonic() - began)
        return backup.wait()

    def told(self) -> str:
        outcomes = f"{self.complete} backups complete over {self.restarts} takings-over, {self.broken} broken"
        longest = (
            f"reads after {sum(self.pauses) / len(self.pauses):.2f} s on average, {max(self.pauses):.2f} s at most"
        )
        return f"{self.kills} kills of the worker, {self.before} of them before the cut: {outcomes}; {longest}"


@contextmanager
def busy_device(scratch: Scratch, size: int) -> Iterator[tuple[Attached, Path, Stream]]:
    """An attached device with a mounted ext4 in which stamped sectors are written, clean at the end."""
    with attached(scratch, "disk", scratch.image("disk", size)) as there:
        make_file_system("ext4", there.paths[0])
        with mounted(scratch, there.paths[0], "mnt") as point:
            allocate(point / "stamped", STAMPED)
            (point / "filled").write_bytes(Random(SEED).randbytes(FILLED))
            os.sync()
            stream = Stream(SEED, [Region(str(point / "stamped"), 0, STAMPED // SECTOR)], scratch / "stamped.log", 64)
            with Writer(stream):
                yield there, point, stream
        check_file_system("ext4", there.paths[0])


@pytest.mark.timeout(300)
def test_under_ext4_with_fio(tried: Callable[[str], None]) -> None:
    with scratch_folder() as scratch, busy_device(scratch, 64 * MIB) as (there, point, stream):
        killer = Killer(scratch, there, seed=1)
        with fio(point / "fio", seconds=5, size=8 * MIB) as working:
            killer.run(stream, "16M")
        tried(f"{killer.told()}; fio verified {working.rounds} times")


@pytest.mark.timeout(300)
def test_under_pgbench(tried: Callable[[str], None]) -> None:
    need_postgresql()
    with scratch_folder() as scratch, busy_device(scratch, 256 * MIB) as (there, point, stream):
        make_cluster(point / "data", scratch / "sockets", scale=2)
        killer = Killer(scratch, there, seed=2)
        checked: list[str] = []
        with running(point / "data", scratch / "sockets") as cluster:
            with ExitStack() as load:
                rows = load.enter_context(Numbered(cluster))

                def bench() -> None:
                    with Pgbench(cluster, 5):
                        pass

                benches = load.enter_context(Repeated(bench))

                def look(image: Path, ended: Ended) -> None:
                    if killer.complete % 5 == 1:
                        checked.append(check_database(scratch, image, ended, rows))

                killer.run(stream, "40M", look)
            assert set(rows.acknowledged) <= set(rows_of(cluster))
            cluster.check()
        told = f"pgbench ran {benches.rounds} times, {len(rows.acknowledged)} rows acknowledged"
        tried(f"{killer.told()}; {told}; {len(checked)} images started")


def check_database(scratch: Scratch, image: Path, ended: Ended, rows: Numbered) -> str:
    """Starts a server on the image and looks."""
    with looped(image) as device, mounted(scratch, device, "image.mnt") as point:
        data = stale_pid_removed(point / "data")
        with running(data, scratch / "sockets.image") as cluster:
            seen = rows.check(rows_of(cluster), ended.before, ended.after)
            cluster.check()
    return seen
