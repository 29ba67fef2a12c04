"""What a backup of a sparse device costs before it has copied anything, by its size: start, memory, the cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from race import Goal, Race, Result
from scale import Scale
from test_bench import MIB, run_race

GIB = 1 << 30
STRETCHES = 64


@pytest.mark.parametrize("size", [GIB, 64 * GIB, 1024 * GIB], ids=["1GiB", "64GiB", "1TiB"])
def test_sparse_file(
    benchmark: BenchmarkFixture, size: int, tmp_path: Path, scale: Scale, results: list[Result]
) -> None:
    device, dest = tmp_path / "device", tmp_path / "image"
    with device.open("wb") as file:
        file.truncate(size)
        for stretch in range(STRETCHES):
            file.seek(stretch * (size // STRETCHES))
            file.write(os.urandom(MIB))
    script = [sys.executable, str(Path(__file__).with_name("start_large.py")), str(device), str(dest)]

    def engine() -> dict[str, float]:
        for leftover in tmp_path.glob("image*"):
            leftover.unlink()
        done = subprocess.run(script, check=True, capture_output=True, text=True)
        reached = json.loads(done.stdout)
        assert reached["status"] == "complete"
        return {"start": reached["start_s"], "memory": reached["peak_bytes"] / MIB, "cut": reached["hold_us"] / 1000}

    race = Race({"blockcow": engine})
    run_race(benchmark, race, scale.rounds)
    for measure, unit, bound in [("start", "s", 2), ("memory", "MiB", 128), ("cut", "ms", 1)]:
        figures = race.figures(measure)
        goal = Goal("blockcow", bound, figures["blockcow"].median, better="less")
        results.append(Result(f"sparse file of {size // GIB:,} GiB", measure, unit, list(figures.values()), [goal]))
