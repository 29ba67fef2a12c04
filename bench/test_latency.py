"""What the writes of a program notice of a backup: fio writes through NBD, and one backup is made meanwhile.

Every round of every contestant begins with a fresh device, server, container and destination. Measured is the time from
the request for the backup to its end; what fio wrote before is kept to compare with. Contestants: blockcow, and QEMU's
backup straight to its destination (push) and through a container (fleecing), all from their newest version here.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fio import writing
from latency import Trace
from race import Figure, Goal, Race, Result
from scale import Scale
from servers import Blockcow, Container, Qemu, Server, cpu_seconds, missing, serve_by_nbdkit
from test_bench import MIB, direct_flags, place_name, run_race

OURS, PUSH, FLEECING = "blockcow", "QEMU push", "QEMU fleecing"
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A load, a destination, and a container as a share of the device."""

    name: str
    depth: int
    rate: int | None = None
    block: str = "4k"
    slow: bool = False
    share: int = 1

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("fast destination, depth 1", 1),
    Case("fast destination, depth 8", 8),
    Case("fast destination, depth 1, 200 a second", 1, rate=200),
    Case("fast destination, 1 MiB in sequence", 1, block="1m"),
    Case("slow destination, depth 1", 1, slow=True),
    Case("slow destination, depth 8", 8, slow=True),
    Case("slow destination, depth 8, 200 a second", 8, rate=200, slow=True),
    Case("slow destination, depth 8, container 1/16", 8, slow=True, share=16),
    Case("slow destination, depth 8, container 1/64", 8, slow=True, share=64),
]


@pytest.fixture
def original(place: Path, scale: Scale) -> Path:
    """Random bytes, made once a place."""
    path = place / "original"
    if not path.exists():
        with path.open("wb") as file, Path("/dev/urandom").open("rb") as source:
            for _ in range(scale.written_bytes // MIB):
                file.write(source.read(MIB))
            os.fsync(file.fileno())
    return path


def one_round(
    make: Callable[[Path, Path, ExitStack], Server],
    case: Case,
    original: Path,
    place: Path,
    scale: Scale,
    *,
    small: bool,
) -> tuple[Trace, float]:
    """One backup under load, and the processor time that the server used for it.

    With `small` the file system of the container has no more room than the case gives.
    """
    with ExitStack() as stack:
        folder = place / "round"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        device, image, room = folder / "device", folder / "image", folder / "room"
        shutil.copyfile(original, device)
        room.mkdir()
        container_bytes = scale.written_bytes // case.share
        if small and case.share > 1:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={container_bytes}", "none", room], check=True)
            stack.callback(lambda: subprocess.run(["umount", room], check=True))
        dest = str(image)
        if case.slow:
            with image.open("wb") as file:
                file.truncate(scale.written_bytes)
            (folder / "slow").mkdir()
            # It counts in bits; by default it would let through the first 40 MB at once.
            plugin = ["file", str(image), f"rate={scale.slow_bytes_per_second * 8}", "burstiness=0.1"]
            dest = serve_by_nbdkit(["--filter=rate"], plugin, folder / "slow", stack)
        (folder / "server").mkdir()
        server = make(device, folder / "server", stack)
        with writing(server.target, device, depth=case.depth, rate=case.rate, block=case.block) as writes:
            cpu = cpu_seconds(server.pid)
            outcome = server.backup(dest, Container(room / "container", container_bytes))()
            cpu = cpu_seconds(server.pid) - cpu
        assert not writes.errors, f"fio got {os.strerror(writes.errors)}"
        return Trace(outcome, [(at - outcome.began, latency) for at, latency in writes.latencies]), cpu


@pytest.mark.parametrize("case", CASES, ids=str)
def test_writes_during_a_backup(
    benchmark: BenchmarkFixture, case: Case, original: Path, place: Path, scale: Scale, results: list[Result]
) -> None:
    if absent := missing("fio", "nbdkit", "qemu-storage-daemon"):
        pytest.skip(f"not installed: {', '.join(absent)}")
    if case.share > 1 and os.geteuid() != 0:
        pytest.skip("a small container for QEMU is a small mounted file system: run as root")
    direct = bool(direct_flags(place))
    makers: dict[str, Callable[[Path, Path, ExitStack], Server]] = {
        OURS: lambda device, folder, stack: Blockcow("nbd", device, folder, stack),
        PUSH: lambda device, folder, stack: Qemu("nbd", device, folder, stack, direct=direct, fleecing=False),
        FLEECING: lambda device, folder, stack: Qemu("nbd", device, folder, stack, direct=direct, fleecing=True),
    }
    last: dict[str, Trace] = {}

    def turn(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            trace, cpu = one_round(makers[name], case, original, place, scale, small=name == FLEECING)
            last[name] = trace
            assert name != OURS or trace.outcome.status == "complete", trace.outcome.error
            return measures(trace, cpu, scale)

        return run

    race = Race({name: turn(name) for name in makers})
    run_race(benchmark, race, scale.rounds)
    scenario = f"{place_name(place)}, {case}"
    for measure in race.measures():
        figures = race.figures(measure)
        result = Result(scenario, measure, UNITS[measure], list(figures.values()), goals(case, measure, figures))
        results.append(result)
    results[-1].plots = plots_of(last)


def plots_of(traces: dict[str, Trace]) -> dict[str, dict[str, Any]]:
    """What `report.py` draws of one round of each contestant."""
    outcomes = {name: f"{trace.outcome.status} {trace.outcome.error}".strip() for name, trace in traces.items()}
    return {name: trace.for_plots() | {"outcome": outcomes[name]} for name, trace in traces.items()}


UNITS = {
    "writes": "1/s",
    "writes until the container is first full": "1/s",
    "p50": "ms",
    "p99": "ms",
    "p99.9": "ms",
    "longest": "ms",
    "longest before": "ms",
    "backup": "s",
    "complete": "%",
    "container": "MiB",
    "processor": "s/GiB",
}


def measures(trace: Trace, cpu: float, scale: Scale) -> dict[str, float]:
    percentiles = trace.percentiles()
    return {
        "writes": trace.rate(),
        "writes until the container is first full": trace.rate(trace.outcome.first_full_s),
        "p50": percentiles[50.0],
        "p99": percentiles[99.0],
        "p99.9": percentiles[99.9],
        "longest": percentiles[100.0],
        "longest before": trace.longest_before(),
        "backup": trace.outcome.seconds,
        "complete": 100.0 * (trace.outcome.status == "complete"),
        "container": trace.outcome.container_peak_bytes / MIB,
        "processor": cpu / (scale.written_bytes / GIB),
    }


def goals(case: Case, measure: str, figures: dict[str, Figure]) -> list[Goal]:
    def of(name: str) -> float:
        return max(figures[name].median, 1e-9)

    better = min(of(PUSH), of(FLEECING))
    if measure == "backup" and not case.slow:
        return [Goal("the faster of QEMU's / blockcow", 1.2, better / of(OURS))]
    if measure == "p99":
        return [Goal("blockcow / fleecing", 0.5, of(OURS) / of(FLEECING), better="less")]
    if measure == "longest" and not case.slow:
        return [Goal("blockcow / the better of QEMU's", 0.1, of(OURS) / better, better="less")]
    if measure == "writes until the container is first full" and case.share == 16:
        return [Goal("blockcow / fleecing", 1, of(OURS) / of(FLEECING))]
    if measure == "container" and case.block == "4k" and case.share == 1:
        return [Goal("blockcow / fleecing", 1 / 8, of(OURS) / of(FLEECING), better="less")]
    return []
