"""What programs get of an idle device through a front-end, beside qemu-storage-daemon and nbdkit.

Every contestant serves a file of its own with the same random bytes, from a process of its own. fio is the program:
over FUSE it has the loop device, over NBD the socket. The limit is fio on the file itself, with direct I/O.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fio import rates
from race import Goal, Race, Result
from scale import Scale
from servers import Blockcow, Qemu, missing, serve_by_nbdkit
from test_bench import MIB, direct_flags, place_name, ratio, run_race

OURS, QEMU, NBDKIT, LIMIT = "blockcow", "qemu-storage-daemon", "nbdkit", "no front-end"


@pytest.fixture
def device_file(place: Path, scale: Scale) -> Iterator[Path]:
    """Random bytes."""
    path = place / "random"
    with path.open("wb") as file, Path("/dev/urandom").open("rb") as source:
        for _ in range(scale.served_bytes // MIB):
            file.write(source.read(MIB))
    yield path
    path.unlink()


@pytest.fixture
def targets(request: pytest.FixtureRequest, device_file: Path, place: Path) -> Iterator[dict[str, str]]:
    """What fio opens, by the contestant that serves it."""
    kind = request.getfixturevalue("kind")
    if absent := missing("fio", "qemu-storage-daemon", *(["nbdkit"] if kind == "nbd" else ["losetup"])):
        pytest.skip(f"not installed: {', '.join(absent)}")
    if kind == "fuse" and not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE: /dev/fuse is missing")
    direct = bool(direct_flags(place))
    makers: dict[str, Callable[[Path, Path, ExitStack], str]] = {
        OURS: lambda device, folder, stack: Blockcow(kind, device, folder, stack).target,
        QEMU: lambda device, folder, stack: Qemu(kind, device, folder, stack, direct=direct, fleecing=False).target,
    }
    if kind == "nbd":
        # It has no direct I/O: on disk it is told to leave nothing in the page cache.
        cache = ["cache=none"] if place_name(place) == "disk" else []
        makers[NBDKIT] = lambda device, folder, stack: serve_by_nbdkit([], ["file", str(device), *cache], folder, stack)
    makers[LIMIT] = lambda device, *_: str(device)
    with ExitStack() as stack:
        made = {}
        for name, make in makers.items():
            folder = place / name
            folder.mkdir()
            stack.callback(shutil.rmtree, folder)
            shutil.copyfile(device_file, folder / "device")
            made[name] = make(folder / "device", folder, stack)
        yield made


@pytest.mark.parametrize("kind", ["fuse", "nbd"])
def test_front_end(
    benchmark: BenchmarkFixture,
    targets: dict[str, str],
    kind: str,
    place: Path,
    scale: Scale,
    results: list[Result],
) -> None:
    def turn(target: str) -> Callable[[], dict[str, float]]:
        return lambda: rates(target, scale.fio_seconds, scale.served_bytes)

    race = Race({name: turn(target) for name, target in targets.items()})
    run_race(benchmark, race, scale.fio_rounds)
    where = {"fuse": "FUSE and loop", "nbd": "NBD"}[kind]
    for measure in race.measures():
        figures = race.figures(measure)
        others = {name: figure for name, figure in figures.items() if name not in (OURS, LIMIT)}
        best = max(others, key=lambda name: others[name].median)
        bound = 1.5 if "depth 16" in measure else 1.0
        goal = Goal(f"{OURS} / {best}", bound, ratio(figures, OURS, best))
        unit = "MiB/s" if "MiB" in measure else "1/s"
        results.append(Result(f"{where} on {place_name(place)}, idle", measure, unit, list(figures.values()), [goal]))
