"""kill -9 of `blockcow backup` before and after each durable step, every one of them in several kinds of backups.

A run that is left alone tells the steps; then each is met again, in a run of its own that is killed there. After each
kill the device is what it was, a backup that looks complete is whole, an earlier one is whole or has visibly gone, and
the next backup to the same place works and leaves nothing of the killed one behind.
"""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

import blockcow
from blockcow import _blockcow
from conftest import MIB, sh
from proof import Tally, tallied
from steps import FORKING, Step, Tracer, kill, need_tracing

SIZE = 2 * MIB + 512
KILLS = 920
WORKERS = 2
TRIES = 5
"""The threads of a backup take their steps in another order at times: so often a step is looked for."""


@dataclass(frozen=True)
class Kind:
    """A kind of backup: what the command line is given, and which steps must have been met in it."""

    name: str
    options: tuple[str, ...]
    steps: frozenset[str]
    earlier: bool = False
    block_device: bool = False


PUBLISHED = {
    "fsync image.manifest.partial",
    "rename image.manifest",
    "fsync .",
}
FILE = PUBLISHED | {"create image.partial", "truncate image.partial", "fdatasync image.partial", "rename image"}
KINDS = [
    Kind("a container file", ("--container", "container", "--container-size", "1M"), frozenset(FILE | {"allocate #N"})),
    Kind("a container in memory", ("--container", "memory:1M"), frozenset(FILE)),
    Kind(
        "in the place of an earlier one",
        ("--container", "memory:1M", "--force", "dest-exists"),
        frozenset(FILE | {"unlink image.manifest"}),
        earlier=True,
    ),
    Kind(
        "to a block device",
        ("--container", "memory:1M", "--manifest", "image.manifest", "--force", "dest-exists"),
        frozenset(PUBLISHED | {"fdatasync a loop device"}),
        block_device=True,
    ),
]


@dataclass
class Place:
    """A folder with a device of its own, and a backup of something else where there is to be one."""

    folder: Path
    kind: Kind
    content: bytes
    dest: Path
    former: bytes = b""
    expected: set[str] = field(default_factory=set)

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "blockcow", "backup", "--device", str(self.folder / "device")]
        paths = {"container", "image.manifest"}
        options = [str(self.folder / option) if option in paths else option for option in self.kind.options]
        return [*command, *options, "--dest", str(self.dest), "--progress", "none"]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "BLOCKCOW_RUN_DIR": str(self.folder / "run")}

    def run(self, at_step: Callable[[Step, Tracer], None]) -> list[str]:
        """Runs the backup under the tracer; the names of the steps that were begun."""
        tracer = Tracer(self.folder, lambda step: at_step(step, tracer))
        return tracer.execute(self.command(), self.environment()).steps

    def image(self) -> bytes:
        return self.dest.read_bytes()[:SIZE]

    def looks_complete(self) -> bool:
        return (self.folder / "image.manifest").exists()

    def is_whole(self) -> bool:
        return not _blockcow.verify(str(self.dest), str(self.folder / "image.manifest"))["damaged"]

    def again(self) -> None:
        """Another backup, made here, as whoever finds the killed one would."""
        force = {"dest-exists"} if self.dest.exists() or self.looks_complete() else set()
        manifest = self.folder / "image.manifest" if self.kind.block_device else None
        device = self.folder / "device"
        blockcow.backup(device=device, container="memory:1M", dest=self.dest, force=force, manifest=manifest)


@contextmanager
def place(kind: Kind, seed: int) -> Iterator[Place]:
    """A new place of a kind. A third of the device is random, the rest is zero."""
    with tempfile.TemporaryDirectory(prefix="blockcow-kill-", dir="/dev/shm") as name:
        folder = Path(name)
        content = bytearray(SIZE)
        content[MIB // 2 : MIB // 2 + SIZE // 3] = Random(seed).randbytes(SIZE // 3)
        (folder / "device").write_bytes(content)
        made = Place(folder, kind, bytes(content), folder / "image")
        if kind.earlier:
            made.former = Random(-1 - seed).randbytes(SIZE)
            (folder / "other").write_bytes(made.former)
            blockcow.backup(device=folder / "other", container="memory:1M", dest=made.dest)
            (folder / "other").unlink()
        if kind.block_device:
            with (folder / "disk").open("wb") as disk:
                disk.truncate(SIZE)
            made.dest = Path(sh("losetup", "--find", "--show", str(folder / "disk")))
        made.expected = {"device", "image.manifest", made.dest.name if not kind.block_device else "disk"}
        try:
            yield made
        finally:
            if kind.block_device:
                sh("losetup", "--detach", str(made.dest))


def check(there: Place) -> None:
    """What must hold after a kill."""
    assert (there.folder / "device").read_bytes() == there.content, "the device has changed"
    if there.looks_complete():
        assert there.is_whole(), "it looks complete, and its bytes are not those of its manifest"
        assert there.image() in {there.content, there.former}, "it looks complete, and is not the device"
    elif there.dest.exists() and not there.kind.block_device:
        with pytest.raises(blockcow.BlockcowError):
            there.is_whole()
    there.again()
    assert there.image() == there.content, "the next backup is not the device"
    assert there.is_whole()
    left = {path.name for path in there.folder.iterdir()} - {"run"}
    assert left == there.expected, "something is left behind"


@dataclass(frozen=True)
class Point:
    """Before or after the so-manieth step of a name."""

    kind: Kind
    name: str
    number: int
    after: bool

    def strike(self, seed: int) -> bool:
        """Kills a backup there and checks. False: this time the backup did not come by."""
        with place(self.kind, seed) as there:
            met: Counter[tuple[str, bool]] = Counter()
            struck: list[Step] = []

            def at_step(step: Step, tracer: Tracer) -> None:
                met[step.name, step.after] += 1
                here = (step.name, met[step.name, step.after], step.after)
                if not struck and here == (self.name, self.number, self.after):
                    struck.append(step)
                    kill(tracer.alive)

            there.run(at_step)
            try:
                with FORKING:
                    check(there)
            except BaseException as error:
                error.add_note(f"{self} with seed {seed}, killed: {bool(struck)}")
                raise
            return bool(struck)


def points_of(kind: Kind) -> list[Point]:
    """All points of a run that is left alone."""
    with place(kind, 0) as there:
        steps = there.run(lambda *_: None)
        assert there.looks_complete()
        assert not kind.steps - set(steps), f"steps that were not met: {kind.steps - set(steps)}; met: {steps}"
    numbers = Counter(steps)
    return [
        Point(kind, name, number, after)
        for name, times in numbers.items()
        for number in range(1, times + 1)
        for after in (False, True)
    ]


def strike_all(points: list[Point], tally: Tally, seed: int) -> None:
    """Each point once, two at a time; one that a run did not come by is looked for again."""

    def strike(number: int) -> None:
        assert any(points[number].strike(seed + number + attempt) for attempt in range(TRIES)), (
            f"{points[number]} was not met in {TRIES} runs"
        )
        tally.executed += 1

    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(strike, range(len(points))):
            pass


def test_killed_at_the_steps_of_publishing() -> None:
    """Those from the sync of the image on, in one kind: the small one of the tests below."""
    need_tracing()
    points = [point for point in points_of(KINDS[1]) if point.name in PUBLISHED | {"rename image"}]
    tally = Tally("kill", "", 0)
    strike_all(points, tally, 1)
    assert tally.executed >= 2 * len(PUBLISHED)


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_killed_at_every_step(tried: Callable[[str], None]) -> None:
    need_tracing()
    points = [point for kind in KINDS for point in points_of(kind)]
    with tallied("kill", "killed_at_every_step", KILLS) as tally:
        for seed in range(0, 10 * KILLS, 1000):
            strike_all(points, tally, seed)
            if tally.executed >= KILLS:
                break
    tried(f"{tally.executed} kills at {len(points)} points of {len(KINDS)} kinds of backups")
