"""PostgreSQL on an attached device during a backup: its clients see no error, and the image is a database that starts.

It holds every transaction acknowledged before the cut, and none begun after it.
"""

import time
from collections.abc import Callable

import pytest

from conftest import MIB
from postgres import Numbered, Pgbench, make_cluster, need_postgresql, rows_of, running, stale_pid_removed
from rig import attached, looped, make_file_system, mounted, scratch_folder, wait_until

SIZE = 512 * MIB
SCALE = 5
SECONDS = 12
QUIET = 3.0  # seconds of pgbench before the backup, for its rate
ROWS = 20


@pytest.mark.timeout(180)
@pytest.mark.parametrize("consistency", ["freeze", "none"])
def test_the_image_holds_what_was_acknowledged(consistency: str, tried: Callable[[str], None]) -> None:
    need_postgresql()
    with scratch_folder() as scratch:
        with attached(scratch, "pg", scratch.image("disk", SIZE)) as there:
            make_file_system("ext4", there.paths[0])
            with mounted(scratch, there.paths[0], "mnt") as point:
                make_cluster(point / "data", scratch / "sockets", SCALE)
                with running(point / "data", scratch / "sockets") as cluster:
                    with Numbered(cluster) as rows, Pgbench(cluster, SECONDS) as bench:
                        begun = time.monotonic()
                        wait_until(lambda: time.monotonic() > begun + QUIET and len(rows.acknowledged) > ROWS, "rows")
                        started = time.monotonic()
                        ended = there.start(scratch / "image", consistency=consistency, limit_read="60M").wait()
                        over = time.monotonic()
                        assert bench.running(), "pgbench ended before the backup did: it was no load"
                        acknowledged = len(rows.acknowledged)
                        wait_until(lambda: len(rows.acknowledged) > acknowledged + ROWS, "rows afterwards")
                    before, during = bench.rate(begun, started), bench.rate(started, over)
                    cluster.check()
        assert ended.complete
        assert ended.summary["blocks_copied_before_write"] > 0
        with looped(scratch / "image") as device, mounted(scratch, device, "image.mnt") as point:
            data = stale_pid_removed(point / "data")
            with running(data, scratch / "sockets") as cluster:
                seen = rows.check(rows_of(cluster), ended.before, ended.after)
                cluster.check()
        waits = f"{ended.summary['suspended_writes']} suspended writes"
        tried(f"{seen}; pgbench {before:.0f} tps before, {during:.0f} tps during the backup, {waits}")
