"""kill -9 of the daemon before and after each durable step: of its worker, and of keeper and worker both.

The steps are those of attaching a device, of a backup whose container lies in the file system on it, which is frozen
for the cut, and of detaching. When the worker is killed all of it goes on. When both are, the next attach cleans up. In
the end nothing is left: no mount, loop device, lock, immutable file, frozen file system.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockcow import _blockcow
from conftest import MIB, sh
from proof import Tally, tallied
from rig import BROKEN, COMPLETE, PATIENCE, Attached, Scratch, attach, scratch_folder, wait_until
from steps import Step, Tracer, kill, need_tracing

SIZE = 24 * MIB
NAME = "disk"
WORKERS = 2
TRIES = 5
KILLS = 80
SYNCED = "what was synced is there"
STEPS = {
    "create run/disk/state.json.new",
    "rename run/disk/state.json",
    "mount run/disk/file-device",
    "loop-configure a loop device",
    "create-nameless mnt",
    "flags mnt/container",
    "freeze mnt",
    "thaw mnt",
    "unlink mnt/container",
    "create image.partial",
    "rename image",
    "rename image.manifest",
    "umount run/disk/file-device",
    "loop-clear a loop device",
}
"""What must be met, so that a new way of doing these things cannot go by unnoticed."""


@dataclass(frozen=True)
class Point:
    """Before or after the first step of a name; and whether only the worker is killed there, or all."""

    name: str
    after: bool
    worker_only: bool


class Story:
    """One life of a daemon from attach to detach, killed at a point or left alone."""

    def __init__(self, scratch: Scratch, point: Point | None) -> None:
        self._scratch, self._point = scratch, point
        self.struck = False
        self.met: Counter[str] = Counter()
        self.of_worker: set[tuple[str, bool]] = set()
        self._tracer = Tracer(scratch.folder, self._at_step)

    def _worker(self) -> int:
        with suppress(OSError, ValueError):
            return int((self._scratch.run / NAME / "worker.pid").read_text())
        return 0

    def _at_step(self, step: Step) -> None:
        self.met[step.name] += not step.after
        point, worker = self._point, self._worker()
        if point is None:
            if worker:
                self.of_worker.add((step.name, step.after))
        elif not self.struck and (step.name, step.after) == (point.name, point.after):
            pids = {worker} - {0} if point.worker_only else self._tracer.alive
            self.struck = bool(pids)
            kill(pids)

    def tell(self) -> None:
        """All of it. Where a kill lets something fail, the rest is left out."""
        scratch = self._scratch
        command = [sys.executable, "-m", "blockcow", "attach", str(scratch / "device"), "--name", NAME, "--json"]
        tracing = self._tracer.start(command, scratch.environment())
        try:
            self._use()
        finally:
            tracing.join(PATIENCE)
            assert not tracing.is_alive(), f"the daemon does not end: {self._tracer.alive}"

    def _use(self) -> None:
        scratch = self._scratch
        there = self._attached()
        if there is None:
            return
        point = scratch / "mnt"
        point.mkdir(exist_ok=True)
        if _tried("mount", there.paths[0], point):
            words = ["--device", there.paths[0], "--dest", scratch / "image", "--consistency", "freeze"]
            backup = scratch.blockcow("backup", *words, "--container", point / "container", "--container-size", "1M")
            if not self.struck:
                assert backup.returncode == COMPLETE, backup.stderr
            elif self._point and self._point.worker_only:
                assert backup.returncode in {COMPLETE, BROKEN, 1}, backup.stderr
            _tried("umount", point)
        self._detach()

    def _attached(self) -> Attached | None:
        """The device as the daemon says where it is; waits for the program that attaches, which is under the tracer."""
        assert self._tracer.program_ended.wait(PATIENCE), "attach does not end"
        status = self._scratch.blockcow("status", NAME, "--json")
        if status.returncode != 0:
            assert self.struck, status.stderr
            return None
        answer = json.loads(status.stdout.splitlines()[-1])
        return Attached(self._scratch, NAME, [device["path"] for device in answer["devices"]])

    def _detach(self) -> None:
        result = self._scratch.blockcow("detach", NAME)
        assert self.struck or result.returncode == 0, result.stderr


def _tried(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE).returncode == 0


def make_device(scratch: Scratch) -> None:
    """A file with an ext4 that holds one synced file."""
    path = scratch.image("device", SIZE)
    sh("mkfs.ext4", "-q", str(path))
    point = scratch / "mnt"
    point.mkdir()
    sh("mount", str(path), str(point))
    (point / "synced").write_text(SYNCED)
    sh("umount", str(point))


def check(scratch: Scratch) -> None:
    """What must hold after the story, whoever was killed in it."""
    image, manifest = scratch / "image", scratch / "image.manifest"
    _tried("umount", scratch / "mnt")
    there = attach(scratch, NAME, scratch / "device")
    if manifest.exists():
        assert not _blockcow.verify(str(image), str(manifest))["damaged"]
    sh("mount", there.paths[0], str(scratch / "mnt"))
    assert (scratch / "mnt" / "synced").read_text() == SYNCED
    # What a killed daemon left in a file system goes as soon as that is mounted again.
    wait_until(lambda: {path.name for path in (scratch / "mnt").iterdir()} == {"lost+found", "synced"}, "a clean disk")
    (scratch / "mnt" / "written").write_text("a frozen file system would wait here for ever")
    (scratch / "mnt" / "written").unlink()
    later = there.start(scratch / "later", container="memory:1M", consistency="none").wait()
    assert later.complete
    sh("umount", str(scratch / "mnt"))
    there.detach()
    wait_until(lambda: not scratch.left(), f"nothing is left: {scratch.left()}")
    assert not scratch.immutable()
    scratch.run.rmdir()  # the next life makes it anew
    assert not list(scratch.folder.glob("*.partial"))
    for path in scratch.folder.glob("image*"):
        path.unlink()
    for path in scratch.folder.glob("later*"):
        path.unlink()


def points_of(scratch: Scratch) -> list[Point]:
    """Each step of a story that is left alone, before and after it; in turns the worker is killed, and everybody."""
    story = Story(scratch, None)
    story.tell()
    check(scratch)
    assert not STEPS - set(story.met), f"not met: {STEPS - set(story.met)}; met: {sorted(story.met)}"
    return [
        Point(name, after, worker_only=(name, after) in story.of_worker and after == bool(number % 2))
        for number, name in enumerate(story.met)
        for after in (False, True)
    ]


def strike(scratch: Scratch, point: Point) -> bool:
    """Whether the daemon came by that point and was killed there; whatever it did, all must be well afterwards."""
    story = Story(scratch, point)
    try:
        story.tell()
        check(scratch)
    except BaseException as error:
        error.add_note(f"{point}, killed: {story.struck}")
        raise
    return story.struck


def nameless_loops() -> set[str]:
    """Loop devices whose backing file was unmounted under them and so lost its path; not those of other programs."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if len(Path(backing.read_text().strip()).parts) <= 2:
                found.add(backing.parts[3])
    return found


def strike_all(points: list[Point], tally: Tally) -> None:
    """Each point once, in as many places as there are workers."""
    left, loops = list(reversed(points)), nameless_loops()

    def work(_: int) -> None:
        with scratch_folder() as scratch:
            make_device(scratch)
            while left:
                point = left.pop()
                assert any(strike(scratch, point) for _ in range(TRIES)), f"{point} was not met in {TRIES} lives"
                tally.executed += 1

    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(work, range(WORKERS)):
            pass
    assert nameless_loops() == loops


@pytest.mark.timeout(300)
def test_killed_at_a_few_steps() -> None:
    """One each of what would be left behind: a mount, a frozen file system, a flag."""
    need_tracing()
    points = [
        Point("mount run/disk/file-device", after=True, worker_only=False),
        Point("freeze mnt", after=True, worker_only=True),
        Point("freeze mnt", after=True, worker_only=False),
        Point("flags mnt/#N", after=True, worker_only=False),
    ]
    tally = Tally("kill", "", 0)
    strike_all(points, tally)
    assert tally.executed == len(points)


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_killed_at_every_step(tried: Callable[[str], None]) -> None:
    need_tracing()
    with scratch_folder() as scratch:
        make_device(scratch)
        points = points_of(scratch)
    with tallied("kill", "daemon_killed_at_every_step", KILLS) as tally:
        strike_all(points, tally)
    workers = sum(point.worker_only for point in points)
    tried(
        f"{tally.executed} kills before and after {len(points) // 2} steps, {workers} of the worker, the others of all"
    )
