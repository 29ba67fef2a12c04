"""A device that nobody writes to: backup, restore and verify, beside the programs that copy disks.

Measured is the work from opening the device to the synced result, and the processor time of all processes in it. Direct
I/O where the file system has it, for all who can. The device is full of random bytes, or a tenth of it is and the rest
is zero (written, not holes), or all of it is zero.
"""

import filecmp
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import baseline
import blockcow
from blockcow import _blockcow
from race import Goal, Race, Result
from scale import Scale
from servers import missing
from test_bench import MIB, direct_flags, forget, place_name, ratio, run_race

CONTENTS = {"random": 1, "a tenth": 10, "zeroes": 0}


@pytest.fixture
def content(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(content: str, place: Path, scale: Scale) -> Path:
    """One MiB of so many is random; made once a place and content."""
    path = place / f"idle-{CONTENTS[content]}"
    if not path.exists():
        with path.open("wb") as file:
            for number in range(scale.idle_bytes // MIB):
                filled = CONTENTS[content] and number % CONTENTS[content] == 0
                file.write(os.urandom(MIB) if filled else bytes(MIB))
            os.fsync(file.fileno())
    return path


def cpu_so_far() -> float:
    """Processor time of this process and of those that it waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(run: Callable[[], None], size: int, device: Path, tidy: Callable[[], None]) -> Callable[[], dict[str, float]]:
    def turn() -> dict[str, float]:
        forget(device)
        cpu, started = cpu_so_far(), time.perf_counter()
        run()
        seconds, cpu = time.perf_counter() - started, cpu_so_far() - cpu
        tidy()
        return {"rate": size / MIB / seconds, "processor": cpu / (size / (1 << 30))}

    return turn


def run_program(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def report(race: Race, scenario: str, goal: Goal, results: list[Result]) -> None:
    results.append(Result(scenario, "rate", "MiB/s", list(race.figures("rate").values()), [goal]))
    results.append(Result(scenario, "processor", "s/GiB", list(race.figures("processor").values())))


@pytest.mark.parametrize("content", CONTENTS, indirect=True)
def test_backup(
    benchmark: BenchmarkFixture, device: Path, content: str, place: Path, scale: Scale, results: list[Result]
) -> None:
    dest, container = place / "image", place / "container"
    direct = direct_flags(place)
    cache = ["-t", "none", "-T", "none"] if direct else []

    def engine() -> None:
        with blockcow.Device(device) as opened, opened.backup(container="memory:64M", dest=dest) as backup:
            backup.wait()

    def pure_python() -> None:
        opened = baseline.Device(device)
        opened.backup(container, 64 * MIB, dest).wait()
        opened.close()

    def convert() -> None:
        run_program("qemu-img", "convert", "-f", "raw", "-O", "raw", "-W", "-m", "8", *cache, device, dest)
        run_program("sync", dest)

    contestants: dict[str, Callable[[], None]] = {
        "blockcow": engine,
        "dd": lambda: run_program("dd", f"if={device}", f"of={dest}", "bs=1M", "conv=fsync", *direct),
        "pure Python": pure_python,
    }
    if not missing("nbdcopy"):
        contestants["nbdcopy"] = lambda: run_program("nbdcopy", "--flush", device, dest)
    if not missing("qemu-img"):
        contestants["qemu-img"] = convert
    compared: set[str] = set()

    def tidy_after(name: str) -> Callable[[], None]:
        def tidy() -> None:
            if name not in compared:
                assert filecmp.cmp(device, dest, shallow=False)
                compared.add(name)
            for leftover in place.glob("image*"):
                leftover.unlink()

        return tidy

    race = Race({name: timed(run, scale.idle_bytes, device, tidy_after(name)) for name, run in contestants.items()})
    run_race(benchmark, race, scale.rounds)
    goal = Goal("blockcow / dd", 0.95, ratio(race.figures("rate"), "blockcow", "dd"))
    report(race, f"backup, idle, {place_name(place)}, {scale.idle_bytes // MIB} MiB, {content}", goal, results)


@pytest.mark.parametrize("content", ["random"], indirect=True)
def test_verify_and_restore(
    benchmark: BenchmarkFixture, device: Path, place: Path, scale: Scale, results: list[Result]
) -> None:
    image, manifest, target = place / "image", place / "image.manifest", place / "target"
    direct = direct_flags(place)
    blockcow.backup(device=device, container="memory:64M", dest=image)

    def restore() -> None:
        _blockcow.restore(str(image), str(manifest), str(target))

    def verify() -> None:
        assert not _blockcow.verify(str(image), str(manifest))["damaged"]

    def compare_and_remove() -> None:
        assert filecmp.cmp(image, target, shallow=False)
        target.unlink()

    verifying = Race(
        {
            "blockcow verify": timed(verify, scale.idle_bytes, image, lambda: None),
            "dd to nowhere": timed(
                lambda: run_program("dd", f"if={image}", "of=/dev/null", "bs=1M", *direct[:1]),
                scale.idle_bytes,
                image,
                lambda: None,
            ),
        }
    )
    restoring = Race(
        {
            "blockcow restore": timed(restore, scale.idle_bytes, image, compare_and_remove),
            "dd": timed(
                lambda: run_program("dd", f"if={image}", f"of={target}", "bs=1M", "conv=fsync", *direct),
                scale.idle_bytes,
                image,
                compare_and_remove,
            ),
        }
    )

    def both() -> None:
        verifying.round()
        restoring.round()

    benchmark.pedantic(both, rounds=scale.rounds, iterations=1)  # type: ignore[no-untyped-call]
    where = f"{place_name(place)}, {scale.idle_bytes // MIB} MiB"
    verify_goal = Goal("verify / dd", 0.9, ratio(verifying.figures("rate"), "blockcow verify", "dd to nowhere"))
    report(verifying, f"verify, {where}", verify_goal, results)
    # A restore reads twice: the image is verified before the first byte is written.
    restore_goal = Goal("restore / dd", 0.5, ratio(restoring.figures("rate"), "blockcow restore", "dd"))
    report(restoring, f"restore, {where}", restore_goal, results)
    for leftover in place.glob("image*"):
        leftover.unlink()
