"""File systems on an attached device, backed up while programs work in them: images are clean and hold what they must.

ext4, xfs and btrfs are made, mounted and filled through the device. During the backup fio writes, reads and verifies,
small files are made and some synced, others are deleted, and `fstrim` discards. Two streams of stamped sectors prove
that the image is one instant.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from conftest import MIB, sh
from rig import (
    Attached,
    Ended,
    Scratch,
    allocate,
    as_it_stands,
    attached,
    check_file_system,
    make_file_system,
    mounted,
    replayed,
    scratch_folder,
    wait_until,
)
from stamps import SECTOR, Region, Stream, Writer, assert_one_instant, find, reader
from workload import SmallFiles, fio, trim

SIZE = 400 * MIB  # mkfs.xfs wants 300
FILLED = 64 * MIB
STAMPED = 2 * MIB
DOOMED = 1500
SEED = 20


class Work:
    """All that happens in the file system, and what must be found in its image."""

    def __init__(self, scratch: Scratch, point: Path, kind: str) -> None:
        self._point = point
        self._content = {f"filled{number}": Random(number).randbytes(MIB) * 4 for number in range(FILLED // (4 * MIB))}
        for name, content in self._content.items():
            (point / name).write_bytes(content)
        self._files = SmallFiles(point / "files", scratch / "files.log", SEED)
        self._files.prepare(DOOMED)
        self._streams = []
        for number in range(2):
            path = point / f"stamped{number}"
            path.touch()
            if kind == "btrfs":
                sh("chattr", "+C", str(path))  # in place, so that direct writes need no transaction to be found
            allocate(path, STAMPED)
            region = Region(str(path), 0, STAMPED // SECTOR)
            self._streams.append(Stream(number + 1, [region], scratch / f"stamped{number}.log"))
        os.sync()

    def back_up_meanwhile(self, there: Attached, dest: Path, consistency: str, tried: Callable[[str], None]) -> Ended:
        with ExitStack() as load:
            for stream in self._streams:
                load.enter_context(Writer(stream))
            load.enter_context(self._files)
            working = load.enter_context(fio(self._point / "fio", seconds=2))
            trimming = load.enter_context(trim(self._point))
            wait_until(lambda: trimming.rounds and len(self._files.lines()) > 100, "the load has begun")
            ended = there.start(dest, container="memory:8M", consistency=consistency, limit_read="100M").wait()
            made = len(self._files.lines())
            wait_until(lambda: len(self._files.lines()) >= made + 50 and working.rounds, "the load goes on afterwards")
        assert ended.complete
        waits = f"{ended.summary['suspended_writes']} suspended writes"
        tried(f"fio {working.rounds} times, fstrim {trimming.rounds} times, {waits}")
        return ended

    def check(self, image: Path, ended: Ended) -> str:
        """Holds the mounted image to what was done; says what it saw."""
        assert [name for name, content in self._content.items() if (image / name).read_bytes() != content] == []
        seen = self._files.check(image / "files", ended.before, ended.after)
        found = [find(stream, [reader(image / Path(stream.targets[0].path).name)]) for stream in self._streams]
        assert_one_instant(found, ended.before, ended.after)
        assert min(each.number for each in found) > 0
        return f"{seen}; one cut, after stamped writes {[each.number for each in found]}"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("consistency", ["freeze", "none"])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_the_image_of_a_busy_file_system(kind: str, consistency: str, tried: Callable[[str], None]) -> None:
    with scratch_folder() as scratch:
        with attached(scratch, "disk", scratch.image("disk", SIZE)) as there:
            make_file_system(kind, there.paths[0])
            with mounted(scratch, there.paths[0], "mnt") as point:
                work = Work(scratch, point, kind)
                ended = work.back_up_meanwhile(there, scratch / "image", consistency, tried)
            check_file_system(kind, there.paths[0])
        assert ended.summary["blocks_copied_before_write"] > 0
        opened = as_it_stands if consistency == "freeze" else replayed
        with opened(scratch, kind, scratch / "image") as image:
            tried(work.check(image, ended))
        if opened is as_it_stands:  # and the first mount of it that replays
            with replayed(scratch, kind, scratch / "image") as image:
                work.check(image, ended)
