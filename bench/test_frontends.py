"""What programs get of a device through a front-end: idle, and while it is backed up, beside qemu-storage-daemon.

Every contestant serves a file of its own with the same random bytes, from a process of its own. fio is the program:
over FUSE it has the loop device, over NBD the socket. Backups follow one another without a pause, as fast as they go:
blockcow's with a container of the default size, QEMU's straight to its target. nbdkit only serves: it runs idle only.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from frontends import Blockcow, Nbdkit, Qemu, Server, load, missing
from race import Goal, Race, Result
from scale import Scale
from test_bench import MIB, direct_flags, place_name, run_race

OURS, QEMU, NBDKIT = "blockcow", "qemu-storage-daemon", "nbdkit"
BACKUP = "MiB backed up"


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
def servers(request: pytest.FixtureRequest, device_file: Path, place: Path) -> Iterator[dict[str, Server]]:
    """All contestants of a kind of front-end."""
    kind = request.getfixturevalue("kind")
    if absent := missing("fio", "qemu-storage-daemon", *(["nbdkit"] if kind == "nbd" else ["losetup"])):
        pytest.skip(f"not installed: {', '.join(absent)}")
    if kind == "fuse" and not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE: /dev/fuse is missing")
    direct = bool(direct_flags(place))
    makers: dict[str, Callable[[Path, Path, ExitStack], Server]] = {
        OURS: lambda device, folder, stack: Blockcow(kind, device, folder, stack),
        QEMU: lambda device, folder, stack: Qemu(kind, device, folder, stack, direct=direct),
    }
    if kind == "nbd":
        makers[NBDKIT] = Nbdkit
    with ExitStack() as stack:
        made = {}
        for name, make in makers.items():
            folder = place / name
            folder.mkdir()
            stack.callback(shutil.rmtree, folder)
            shutil.copyfile(device_file, folder / "device")
            made[name] = make(folder / "device", folder, stack)
        yield made


@pytest.mark.parametrize("backup", [False, True], ids=["idle", "backup"])
@pytest.mark.parametrize("kind", ["fuse", "nbd"])
def test_front_end(
    benchmark: BenchmarkFixture,
    servers: dict[str, Server],
    kind: str,
    backup: bool,
    place: Path,
    scale: Scale,
    results: list[Result],
) -> None:
    def idle(server: Server) -> dict[str, float]:
        return load(server.target, scale.fio_seconds, scale.served_bytes)

    def under_backup(server: Server) -> dict[str, float]:
        server.begin_backups()
        started = time.perf_counter()
        reached = idle(server)
        done = server.end_backups()
        return reached | {BACKUP: done / MIB / (time.perf_counter() - started)}

    def turn(server: Server) -> Callable[[], dict[str, float]]:
        return lambda: (under_backup if backup else idle)(server)

    contestants = {name: turn(server) for name, server in servers.items() if not (backup and name == NBDKIT)}
    race = Race(contestants)
    run_race(benchmark, race, scale.fio_rounds)
    where = {"fuse": "FUSE and loop", "nbd": "NBD"}[kind]
    for measure in race.measures():
        figures = race.figures(measure)
        goal = Goal(f"{OURS} / {QEMU}", 1, figures[OURS].median / max(figures[QEMU].median, 1e-9))
        unit = "MiB/s" if "MiB" in measure else "operations/s"
        scenario = f"{where} on {place_name(place)}, {'during backups' if backup else 'idle'}: {measure}"
        # How fast the backup itself is has scenarios of its own.
        results.append(Result(scenario, unit, list(figures.values()), [] if measure == BACKUP else [goal]))
