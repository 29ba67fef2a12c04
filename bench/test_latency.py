"""What the writes of a program notice of a backup: fio writes through NBD, and one backup is made meanwhile.

Every round of every contestant begins with a fresh device, server, container and destination, and nothing dirty in the
page cache. Measured is the time from the request for the backup to its end; what fio wrote before is kept to compare
with. Contestants: blockcow, and QEMU's backup straight to its destination (push) and through a container (fleecing),
from the newest version here. QEMU's container has as much room as it wants; where blockcow's becomes full, QEMU is
measured a second time with one in a file system of that size.
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
from race import Goal, Race, Result
from scale import Scale
from servers import Blockcow, Container, Qemu, Server, cpu_seconds, missing, serve_by_nbdkit
from test_bench import MIB, direct_flags, place_name, run_race

OURS, PUSH, FLEECING, LIMITED = "blockcow", "QEMU push", "QEMU fleecing", "QEMU fleecing, same container"
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A load, a destination, and blockcow's container as a share of the device."""

    name: str
    depth: int
    rate: int | None = None
    block: str = "4k"
    slow: bool = False
    share: int = 16
    fills: bool = False
    """Whether the container becomes full."""

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("fast destination, depth 1", 1),
    Case("fast destination, depth 8", 8),
    Case("fast destination, depth 1, 200 a second", 1, rate=200),
    Case("fast destination, 1 MiB in sequence", 1, block="1m"),
    Case("slow destination, depth 1", 1, slow=True, share=1),
    Case("slow destination, depth 8", 8, slow=True, share=1),
    Case("slow destination, depth 1, 200 a second", 1, rate=200, slow=True),
    Case("slow destination, depth 8, container 1/16", 8, slow=True, share=16, fills=True),
    Case("slow destination, depth 8, container 1/64", 8, slow=True, share=64, fills=True),
]


@pytest.fixture
def original(case: Case, place: Path, scale: Scale) -> Path:
    """Random bytes, made once a place and size."""
    size = scale.slow_written_bytes if case.slow else scale.written_bytes
    path = place / f"original-{size}"
    if not path.exists():
        with path.open("wb") as file, Path("/dev/urandom").open("rb") as source:
            for _ in range(size // MIB):
                file.write(source.read(MIB))
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
    size = original.stat().st_size
    with ExitStack() as stack:
        folder = place / "round"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        device, image, room = folder / "device", folder / "image", folder / "room"
        shutil.copyfile(original, device)
        os.sync()
        room.mkdir()
        container_bytes = size // case.share
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={container_bytes}", "none", room], check=True)
            stack.callback(lambda: subprocess.run(["umount", room], check=True))
        dest = str(image)
        if case.slow:
            with image.open("wb") as file:
                file.truncate(size)
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
    if case.fills and os.geteuid() != 0:
        pytest.skip("a small container for QEMU is a small mounted file system: run as root")
    direct = bool(direct_flags(place))
    makers: dict[str, Callable[[Path, Path, ExitStack], Server]] = {
        OURS: lambda device, folder, stack: Blockcow("nbd", device, folder, stack),
        PUSH: lambda device, folder, stack: Qemu("nbd", device, folder, stack, direct=direct, fleecing=False),
        FLEECING: lambda device, folder, stack: Qemu("nbd", device, folder, stack, direct=direct, fleecing=True),
    }
    if case.fills:
        makers[LIMITED] = makers[FLEECING]
    last: dict[str, Trace] = {}

    def turn(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            trace, cpu = one_round(makers[name], case, original, place, scale, small=name == LIMITED)
            last[name] = trace
            assert name != OURS or trace.outcome.status == "complete", trace.outcome.error
            first_full = last[OURS].outcome.first_full_s if OURS in last else None
            return measures(trace, first_full, original.stat().st_size, cpu)

        return run

    race = Race({name: turn(name) for name in makers})
    run_race(benchmark, race, scale.rounds)
    scenario = f"{place_name(place)}, {case}"
    for measure in race.measures():
        figures = list(race.figures(measure).values())
        results.append(Result(scenario, measure, UNITS[measure], figures, goals(case, measure, race, scale)))
    results[-1].plots = plots_of(last)


def plots_of(traces: dict[str, Trace]) -> dict[str, dict[str, Any]]:
    """What `report.py` draws of one round of each contestant."""
    outcomes = {name: f"{trace.outcome.status} {trace.outcome.error}".strip() for name, trace in traces.items()}
    return {name: trace.for_plots() | {"outcome": outcomes[name]} for name, trace in traces.items()}


UNITS = {
    "writes": "1/s",
    "writes until the container is first full": "1/s",
    "writes from then on": "1/s",
    "p50": "ms",
    "p99": "ms",
    "p99.9": "ms",
    "longest": "ms",
    "longest before": "ms",
    "cut": "ms",
    "backup": "s",
    "image": "MB/s",
    "complete": "%",
    "container": "MiB",
    "processor": "s/GiB",
}


def measures(trace: Trace, first_full_s: float | None, size: int, cpu: float) -> dict[str, float]:
    """`first_full_s`: when blockcow's container was first full, in its last round, or `None`. `cpu` in seconds."""
    percentiles = trace.percentiles()
    return {
        "writes": trace.rate(),
        "writes until the container is first full": trace.rate(until=first_full_s),
        "writes from then on": 0.0 if first_full_s is None else trace.rate(since=first_full_s),
        "p50": percentiles[50.0],
        "p99": percentiles[99.0],
        "p99.9": percentiles[99.9],
        "longest": percentiles[100.0],
        "longest before": trace.longest_before(),
        "cut": (trace.outcome.hold_us or 0) / 1000,
        "backup": trace.outcome.seconds,
        "image": size / 1e6 / trace.outcome.seconds,
        "complete": 100.0 * (trace.outcome.status == "complete"),
        "container": trace.outcome.container_peak_bytes / MIB,
        "processor": cpu / (size / GIB),
    }


def goals(case: Case, measure: str, race: Race, scale: Scale) -> list[Goal]:
    figures = race.figures(measure)

    def of(name: str) -> float:
        return max(figures[name].median, 1e-9)

    best, longest_before = min(of(PUSH), of(FLEECING)), max(race.figures("longest before")[OURS].median, 1e-9)
    if measure == "backup" and not case.slow:
        return [Goal("the faster of QEMU's / blockcow", 1.2, best / of(OURS))]
    if measure == "p99":
        return [Goal("blockcow / fleecing", 0.5, of(OURS) / of(FLEECING), better="less")]
    if measure == "longest" and not case.slow:
        return [
            Goal("blockcow / the better of QEMU's", 0.1, of(OURS) / best, better="less"),
            Goal("during the backup / before it", 3, of(OURS) / longest_before, better="less"),
        ]
    if measure == "cut":
        return [Goal("blockcow / its longest write before", 2, of(OURS) / longest_before, better="less")]
    if measure == "writes until the container is first full" and case.fills and case.share == 16:
        return [Goal("blockcow / fleecing", 1, of(OURS) / of(FLEECING))]
    if measure == "image" and case.fills:
        return [Goal("blockcow / what the destination takes", 0.9, of(OURS) * 1e6 / scale.slow_bytes_per_second)]
    if measure == "container" and case.slow and case.rate:
        return [Goal("blockcow / fleecing", 1 / 8, of(OURS) / of(FLEECING), better="less")]
    return []
