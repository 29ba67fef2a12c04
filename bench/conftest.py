"""What the benchmarks share: the choice of scale, places to work in, and the table of results at the end."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from race import Result
from scale import FULL, QUICK, ROOT, Scale

RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small sizes, two rounds: shows that the benchmarks work")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    return QUICK if pytestconfig.getoption("--quick") else FULL


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> list[Result]:
    """Where a benchmark puts what it found."""
    return pytestconfig.stash[RESULTS]


@pytest.fixture(scope="session", params=["tmpfs", "disk"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on tmpfs, then one on the disk that holds the project (or BLOCKCOW_BENCH_DISK)."""
    disk = Path(os.environ.get("BLOCKCOW_BENCH_DISK", ROOT / "target"))
    disk.mkdir(exist_ok=True)
    parent = Path("/dev/shm") if request.param == "tmpfs" else disk  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="blockcow-bench-", dir=parent))
    yield folder
    shutil.rmtree(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    table = Table("scenario", "contestant", "median", "rounds, lowest to highest", "unit")
    goals = Table("goal", "bound", "measured", "outcome")
    for result in results:
        for figure in result.figures:
            table.add_row(result.scenario, figure.contestant, f"{figure.median:,.4g}", figure.spread, result.unit)
        for goal in result.goals:
            sign = "at least" if goal.better == "more" else "at most"
            outcome = "reached" if goal.met else "missed"
            goals.add_row(
                f"{result.scenario}: {goal.measure}", f"{sign} {goal.bound:,g}", f"{goal.reached:,.4g}", outcome
            )
    console = Console(file=terminalreporter._tw._file, width=150)
    console.print()
    console.print(table, goals)
    if config.getoption("--quick"):
        console.print("A quick run: its figures mean nothing.")
    path = ROOT / "bench" / "results.json"
    path.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
    console.print(f"written to {path.relative_to(ROOT)}")
