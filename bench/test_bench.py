"""What is measured, and against whom. Figures are printed at the end with the goals that were reached and missed.

A missed goal fails no test: what fails is a contestant that does not do its work. Every device holds random bytes, so
that finding zeroes is no short cut.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import baseline
import blockcow
from load import WRITE, Load, Writable
from race import Figure, Goal, Race, Result
from scale import ROOT, Scale

MIB = 1 << 20


def run_race(benchmark: BenchmarkFixture, race: Race, rounds: int) -> None:
    benchmark.pedantic(race.round, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]


def ratio(figures: dict[str, Figure], ours: str, theirs: str) -> float:
    return figures[ours].median / figures[theirs].median


def example(name: str) -> list[str]:
    """The command that runs one of the engine's example programs."""
    return ["cargo", "run", "--release", "--quiet", "--package", "blockcow-engine", "--example", name, "--"]


@pytest.fixture
def device_file(place: Path, scale: Scale, request: pytest.FixtureRequest) -> Path:
    """Random bytes, made once a place and size."""
    size = getattr(scale, request.param)
    path = place / f"device-{size}"
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
    return path


def forget(path: Path) -> None:
    """Drops the file's pages from the page cache, so that buffered readers find no more there than direct ones."""
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def direct_flags(folder: Path) -> list[str]:
    """dd's options for O_DIRECT, none where the file system does not have it."""
    probe = folder / "probe"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return []
    finally:
        probe.unlink(missing_ok=True)
    return ["iflag=direct", "oflag=direct"]


# Decisions of the gate on blocks that are copied already, what every write of one block pays: counted in, admitted,
# counted out. One core.


def test_gate_decisions(benchmark: BenchmarkFixture, scale: Scale, results: list[Result]) -> None:
    def engine() -> dict[str, float]:
        done = subprocess.run(example("gate_decisions"), cwd=ROOT, check=True, capture_output=True, text=True)
        return {"rate": json.loads(done.stdout)["decisions_per_second"]}

    def pure_python() -> dict[str, float]:
        gate, flights = baseline.Gate(1 << 20), baseline.Flights()
        gate.open()
        admit, enter, leave = gate.admit, flights.enter, flights.leave
        blocks = [number * 0x9E37_79B1 % (1 << 20) for number in range(scale.decisions)]
        started = time.perf_counter()
        for block in blocks:
            enter()
            admit(block, block + 1)
            leave()
        return {"rate": scale.decisions / (time.perf_counter() - started)}

    race = Race({"blockcow": engine, "pure Python": pure_python})
    run_race(benchmark, race, scale.rounds)
    figures = race.figures("rate")
    goals = [
        Goal("blockcow / pure Python", 100, ratio(figures, "blockcow", "pure Python")),
        Goal("decisions a second on one core", 20e6, figures["blockcow"].median),
    ]
    results.append(Result("the gate, on copied blocks", "decisions", "1/s", list(figures.values()), goals))


# Backup under write load: four threads write 4 KiB at random places as fast as they are let, as often as the device
# has blocks, and flush; the container is a file of a sixteenth of the device. The work is the same for all: the writes
# and the backup. Measured: work done a second, from the first write and the request for the backup to the end of both,
# image synced and named. The engine is measured twice: with writers in Rust, which reach it as front-ends do, and with
# writers in Python, where the threads of both contestants share the interpreter's lock.


@pytest.mark.parametrize("device_file", ["load_bytes"], indirect=True)
def test_write_load(
    benchmark: BenchmarkFixture, device_file: Path, place: Path, scale: Scale, results: list[Result]
) -> None:
    dest, container = place / "image", place / "container"
    writes = scale.load_bytes // WRITE

    def measure(device: Writable, backup: Callable[[], None]) -> dict[str, float]:
        load = Load(device, scale.load_bytes, writes)
        started = time.perf_counter()
        with load:
            backup()
            backup_seconds = time.perf_counter() - started
        seconds = time.perf_counter() - started
        return {
            "work": scale.load_bytes / MIB / seconds,
            "backup": scale.load_bytes / MIB / backup_seconds,
            "writes": writes / seconds,
        }

    def engine() -> dict[str, float]:
        arguments = [device_file, container, scale.load_bytes // 16, dest, writes]
        done = subprocess.run(
            [*example("write_load"), *map(str, arguments)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        seconds = json.loads(done.stdout)
        return {
            "work": scale.load_bytes / MIB / seconds["both"],
            "backup": scale.load_bytes / MIB / seconds["backup"],
            "writes": writes / seconds["both"],
        }

    def from_python() -> dict[str, float]:
        with blockcow.Device(device_file) as device:
            size = str(scale.load_bytes // 16)
            return measure(device, lambda: under_way(device, size))

    def under_way(device: blockcow.Device, size: str) -> None:
        device.backup(container=container, container_size=size, dest=dest).wait()

    def pure_python() -> dict[str, float]:
        device = baseline.Device(device_file)
        reached = measure(device, lambda: device.backup(container, scale.load_bytes // 16, dest).wait())
        device.close()
        return reached

    def fresh(run: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
        def turn() -> dict[str, float]:
            for leftover in [*place.glob("image*"), container]:
                leftover.unlink(missing_ok=True)
            forget(device_file)
            return run()

        return turn

    race = Race(
        {
            "blockcow": fresh(engine),
            "blockcow, Python writers": fresh(from_python),
            "pure Python": fresh(pure_python),
        }
    )
    run_race(benchmark, race, scale.rounds)
    work = race.figures("work")
    scenario = f"write load, device of {scale.load_bytes // MIB} MiB on {place_name(place)}"
    goals = [Goal("backup and writes, blockcow / pure Python", 20, ratio(work, "blockcow", "pure Python"))]
    results.append(Result(scenario, "backup and writes", "MiB/s", list(work.values()), goals))
    results.append(Result(scenario, "backup alone", "MiB/s", list(race.figures("backup").values())))
    results.append(Result(scenario, "writes", "1/s", list(race.figures("writes").values())))


def place_name(place: Path) -> str:
    return "tmpfs" if place.is_relative_to("/dev/shm") else "disk"  # noqa: S108
