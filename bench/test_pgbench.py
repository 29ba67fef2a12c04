"""What a database notices of a backup of its device: pgbench on ext4 on FUSE and loop, and one backup meanwhile.

Contestants as in `test_latency.py`, and the same database without a backup on a plain loop device as the limit.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from latency import Outcome, Trace
from postgres import BIN, make_image, transactions
from race import Race, Result
from scale import Scale
from servers import Blockcow, Container, Qemu, Server, missing
from test_bench import MIB, direct_flags, place_name, run_race
from test_latency import FLEECING, OURS, PUSH, plots_of

LIMIT = "no backup, plain loop"
LEAD_SECONDS = 2.0


@pytest.fixture
def database(place: Path, scale: Scale) -> Path:
    if absent := [*missing("qemu-storage-daemon", "losetup", "mkfs.ext4", "runuser")]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    if not (BIN / "postgres").exists():
        pytest.skip("needs PostgreSQL 15 in /usr/lib/postgresql/15: apt-get install postgresql-15")
    if os.geteuid() != 0:
        pytest.skip("needs root, for loop devices and mounts: run as root")
    path = place / "database"
    if not path.exists():
        make_image(path, scale.database_bytes, scale.database_scale)
    return path


class Plain:
    """A loop device with nothing in front of it, and no backup."""

    def __init__(self, device: Path, stack: ExitStack, seconds: float) -> None:
        attach = ["losetup", "--find", "--show", "--direct-io=on", str(device)]
        self.target = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "--detach", self.target], check=True)
        self.pid = os.getpid()
        self._seconds = seconds

    def backup(self, dest: str, container: Container) -> Callable[[], Outcome]:
        del dest, container
        return lambda: Outcome.of_a_pause(self._seconds)


def test_pgbench(benchmark: BenchmarkFixture, database: Path, place: Path, scale: Scale, results: list[Result]) -> None:
    direct = bool(direct_flags(place))
    makers: dict[str, Callable[[Path, Path, ExitStack], Server]] = {
        OURS: lambda device, folder, stack: Blockcow("fuse", device, folder, stack),
        PUSH: lambda device, folder, stack: Qemu("fuse", device, folder, stack, direct=direct, fleecing=False),
        FLEECING: lambda device, folder, stack: Qemu("fuse", device, folder, stack, direct=direct, fleecing=True),
        LIMIT: lambda device, _, stack: Plain(device, stack, LEAD_SECONDS),
    }
    last: dict[str, Trace] = {}

    def turn(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            with ExitStack() as stack:
                folder = place / "round"
                folder.mkdir()
                stack.callback(shutil.rmtree, folder)
                device = folder / "device"
                shutil.copyfile(database, device)
                (folder / "server").mkdir()
                server = makers[name](device, folder / "server", stack)
                with transactions(server.target, folder, LEAD_SECONDS) as seen:
                    container = Container(folder / "container", scale.database_bytes)
                    outcome = server.backup(str(folder / "image"), container)()
                whole = outcome.status == "complete" and not seen.errors
                assert whole or isinstance(server, Qemu), outcome.error
            trace = Trace(outcome, [(at - outcome.began, latency) for at, latency in seen.latencies])
            last[name] = trace
            percentiles = trace.percentiles()
            return {
                "transactions": trace.rate(),
                "transactions before": trace.rate_before(),
                "p50": percentiles[50.0],
                "p99": percentiles[99.0],
                "longest": percentiles[100.0],
                "backup": outcome.seconds,
                "complete": 100.0 if outcome.status == "complete" else 0.0,
                "programs live": 0.0 if seen.errors else 100.0,
            }

        return run

    race = Race({name: turn(name) for name in makers})
    run_race(benchmark, race, scale.rounds)
    units = {"transactions": "1/s", "transactions before": "1/s", "backup": "s", "complete": "%", "programs live": "%"}
    scenario = f"pgbench on FUSE and loop, {place_name(place)}, device of {scale.database_bytes // MIB} MiB"
    found = [
        Result(scenario, measure, units.get(measure, "ms"), list(race.figures(measure).values()))
        for measure in race.measures()
    ]
    found[-1].plots = plots_of(last)
    results += found
