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
from report import report
from scale import FULL, QUICK, ROOT, Scale
from servers import prefer_newest_qemu

RESULTS = pytest.StashKey[list[Result]]()
QEMU = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small sizes, one round: shows that the benchmarks work")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    config.stash[QEMU] = prefer_newest_qemu()


def pytest_report_header(config: pytest.Config) -> str:
    return f"QEMU: {config.stash[QEMU]}"


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


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Saves what was found so far, and leaves no image or container of one benchmark to the next."""
    yield
    if request.config.stash[RESULTS]:
        save(request.config)
    if "place" in request.fixturenames:
        place: Path = request.getfixturevalue("place")
        for leftover in [*place.glob("image*"), place / "container", place / "target"]:
            leftover.unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    console = Console(file=terminalreporter._tw._file, width=150)
    for scenario in dict.fromkeys(result.scenario for result in results):
        console.print(table_of(scenario, [result for result in results if result.scenario == scenario]))
    console.print(goals_of(results))
    if config.getoption("--quick"):
        console.print("A quick run: its figures mean nothing.")
    path = save(config)
    page = path.with_name("report.html")
    page.write_text(report(json.loads(path.read_text())))
    console.print(f"written to {path.relative_to(ROOT)} and {page.relative_to(ROOT)}")


def save(config: pytest.Config) -> Path:
    """Writes what was found so far, for `report.py`."""
    told = {"qemu": config.stash[QEMU], "quick": config.getoption("--quick")}
    path = ROOT / "target" / "bench" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told | {"results": [each.as_json() for each in config.stash[RESULTS]]}, indent=1) + "\n")
    return path


def table_of(scenario: str, results: list[Result]) -> Table:
    """Medians of one scenario, and the lowest and highest round."""
    contestants = list(dict.fromkeys(figure.contestant for result in results for figure in result.figures))
    table = Table("", "unit", *contestants, title=scenario, title_justify="left")
    for result in results:
        cells = {figure.contestant: f"{figure.median:,.4g}  [dim]{figure.spread}[/]" for figure in result.figures}
        table.add_row(result.measure, result.unit, *(cells.get(contestant, "") for contestant in contestants))
    return table


def goals_of(results: list[Result]) -> Table:
    """Every goal, with what was measured against it."""
    table = Table("scenario", "measure", "goal", "measured", "outcome", title="Goals", title_justify="left")
    for result in results:
        for goal in result.goals:
            sign = "at least" if goal.better == "more" else "at most"
            bound = f"{goal.measure} {sign} {goal.bound:,g}"
            outcome = "reached" if goal.met else "[bold]missed[/]"
            table.add_row(result.scenario, result.measure, bound, f"{goal.reached:,.4g}", outcome)
    return table
