"""kill -9 of keeper and worker together, as if all of user space had crashed: nothing that was flushed is lost.

Each round writes in ext4 on the attached device, begins a backup and kills. Then the device is attached again, which
cleans up: it mounts, holds what was flushed, is clean; the broken backup is named and bears no final name; the earlier
one is untouched. At the end nothing is left behind.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from conftest import MIB, sh
from rig import (
    Attached,
    Ended,
    Scratch,
    allocate,
    attach,
    check_file_system,
    make_file_system,
    mounted,
    scratch_folder,
    wait_until,
)
from stamps import SECTOR, Region, Stream, Writer, find_flushed, reader

KILLS = 100
SIZE = 24 * MIB
STAMPED = MIB // 2
LONGEST = 0.8  # seconds from the start of the program that makes a backup to the kill
NAME = "disk"


def kill_both(there: Attached) -> None:
    """The keeper first, so that it starts no other worker."""
    pids = [there.pid("keeper"), there.pid("worker")]
    assert all(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Rounds:
    """Kills, and what must hold after each."""

    def __init__(self, scratch: Scratch, device: Path) -> None:
        self._scratch, self._device = scratch, device
        self._random = Random(4)
        self.kills = self.flushed = self.named = self.after_the_cut = 0

    def one(self, there: Attached) -> Attached:
        """Writes, backs up, kills, attaches again and looks; returns the device as it is attached now."""
        scratch, dest = self._scratch, self._scratch / "image"
        stream, ended = self._write_and_kill(there, dest)
        self.kills += 1
        assert ended.code != 0, "a backup whose daemon was killed ended well"
        assert not dest.exists(), "a broken backup bears the final name"
        again = attach(scratch, NAME, self._device)
        if ended.after:
            self.after_the_cut += 1
            assert not ended.complete  # and the summary says so
            assert str(dest) in again.said, f"the broken backup is not named: {again.said}"
            self.named += 1
        left = sorted(
            path.name for path in scratch.folder.glob("image*") if path.suffix not in {".before", ".after", ".hook"}
        )
        assert left == []
        with mounted(scratch, again.paths[0], "mnt") as point:
            self.flushed += find_flushed(stream, [reader(point / "stamped")])
            assert (point / "synced").read_text() == str(self.kills)
        check_file_system("ext4", again.paths[0])
        return again

    def _write_and_kill(self, there: Attached, dest: Path) -> tuple[Stream, Ended]:
        scratch = self._scratch
        log = scratch / "stamped.log"
        log.unlink(missing_ok=True)
        with mounted(scratch, there.paths[0], "mnt") as point:
            allocate(point / "stamped", STAMPED)
            (point / "synced").write_text(str(self.kills + 1))
            sh("sync", "--file-system", str(point))
            region = Region(str(point / "stamped"), 0, STAMPED // SECTOR)
            stream = Stream(self.kills + 1, [region], log, flush_every=4)
            writer = Writer(stream)
            with writer:
                backup = there.start(dest, container="memory:1M", consistency="none", limit_read="1M")
                time.sleep(self._random.uniform(0, LONGEST))
                kill_both(there)
                writer.stop(may_fail=True)
        return stream, backup.wait()


@pytest.mark.timeout(400)
def test_what_was_flushed_is_there_and_nothing_is_left_behind(tried: Callable[[str], None]) -> None:
    with scratch_folder() as scratch:
        device, earlier = scratch.image("disk", SIZE), scratch / "earlier"
        files = (earlier, scratch / "earlier.manifest")
        there = attach(scratch, NAME, device)
        make_file_system("ext4", there.paths[0])
        assert there.start(earlier).wait().complete
        digests = [digest(path) for path in files]
        rounds = Rounds(scratch, device)
        while rounds.kills < KILLS:
            there = rounds.one(there)
        assert there.start(scratch / "later").wait().complete
        there.detach()
        wait_until(lambda: not scratch.left(), "nothing is left")
        assert scratch.immutable() == []
        assert digests == [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in (earlier, scratch / "earlier.manifest")
        ]
        for image in (earlier, scratch / "later"):
            verified = scratch.blockcow("verify", image)
            assert verified.returncode == 0, verified.stderr
    cuts = f"{rounds.after_the_cut} after the cut of their backup, all {rounds.named} named as broken"
    tried(f"{rounds.kills} kills of keeper and worker, {cuts}; {rounds.flushed} flushed writes, all there")
