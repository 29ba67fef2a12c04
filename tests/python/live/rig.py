"""Attached devices for the tests: `blockcow attach`, `backup` and `detach` as an administrator runs them.

Everything lies in one folder of scratch in memory: images, mounts, files of loop devices, the daemon's run folder. So
what is left behind can be found and named. Also the checks of whole images. Holds no test.
"""

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conftest import sh

PATIENCE = 60.0  # seconds; after that something hangs
COMPLETE, BROKEN = 0, 20


def wait_until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not: {what}"
        time.sleep(0.005)


class Scratch:
    """A folder in memory, and all that the tests make in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def blockcow(self, *arguments: object, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Runs the command line and waits for it."""
        command = [sys.executable, "-m", "blockcow", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "BLOCKCOW_RUN_DIR": str(self.run)}

    def image(self, name: str, size: int) -> Path:
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def processes(self) -> dict[int, str]:
        """Whoever has a path of this scratch in its command or environment: daemons and the programs of a test."""
        mark = bytes(self.folder)
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    command = (entry / "cmdline").read_bytes()
                    if mark in command or mark in (entry / "environ").read_bytes():
                        found[int(entry.name)] = command.replace(b"\0", b" ").decode()
        return found

    def mounts(self) -> list[str]:
        """Mount points in this scratch, the last one mounted first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
        return [point for point in reversed(points) if point.startswith(f"{self.folder}/")]

    def loops(self) -> list[str]:
        """Loop devices over files in this scratch."""
        found = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if backing.read_text().startswith(f"{self.folder}/"):
                    found.append(f"/dev/{backing.parts[3]}")
        return found

    def immutable(self) -> list[str]:
        """Files with the immutable flag in this scratch, mounted file systems included."""
        lines = subprocess.run(["lsattr", "-R", str(self.folder)], capture_output=True, text=True, check=False).stdout
        flagged = [line.partition(" ") for line in lines.splitlines()]
        return [path for flags, _, path in flagged if path and "i" in flags]  # headings have no path

    def left(self) -> dict[str, object]:
        """What a detach, and a cleaning after a kill, must not leave behind; empty if all is well."""
        runs = sorted(str(path) for path in self.run.glob("*")) if self.run.exists() else []
        found = {"mounts": self.mounts(), "loops": self.loops(), "runs": runs, "processes": self.processes()}
        return {what: things for what, things in found.items() if things}

    def clear(self) -> None:
        """Removes everything, whatever state it is in."""
        for point in self.mounts():
            subprocess.run(["fsfreeze", "--unfreeze", point], capture_output=True, check=False)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in self.mounts():
            if subprocess.run(["umount", point], capture_output=True, check=False).returncode != 0:
                subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
        for loop in self.loops():
            subprocess.run(["losetup", "--detach", loop], capture_output=True, check=False)
        for path in self.immutable():
            subprocess.run(["chattr", "-i", path], capture_output=True, check=False)
        shutil.rmtree(self.folder)


@contextmanager
def scratch_folder() -> Iterator[Scratch]:
    """Skips loudly where the tests of attached devices cannot run."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for FUSE, loop devices and mounts: run the tests as root")
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse: load the module fuse")
    scratch = Scratch(Path(tempfile.mkdtemp(prefix="blockcow-live-", dir="/dev/shm")))
    scratch.folder.chmod(0o711)  # PostgreSQL runs as another user
    try:
        yield scratch
    finally:
        scratch.clear()


@dataclass(frozen=True)
class Ended:
    """How a backup ended."""

    code: int
    summary: dict[str, Any]
    messages: list[dict[str, Any]]
    stderr: str
    before: int
    after: int
    """The instants, by the monotonic clock, at which the hooks before and after the cut ran. 0 if they did not."""

    @property
    def complete(self) -> bool:
        """Complete or broken, and nothing else: every other end fails the test."""
        said = (self.code, self.summary.get("status"))
        assert said in {(COMPLETE, "complete"), (BROKEN, "broken")}, f"{said}\n{self.stderr}\n{self.messages[-3:]}"
        return self.code == COMPLETE


class UnderWay:
    """A backup that runs: the process of the command line."""

    def __init__(self, scratch: Scratch, options: Sequence[object]) -> None:
        self._marks = [scratch / f"cut.{when}" for when in ("before", "after")]
        hooks = []
        for mark, option in zip(self._marks, ("--before-cut", "--after-cut"), strict=True):
            mark.unlink(missing_ok=True)
            hooks += [option, str(_hook(scratch, mark))]
        command = [sys.executable, "-m", "blockcow", "backup", "--json", *hooks, *map(str, options)]
        self._output = (scratch / "backup.out").open("w+")
        self._errors = (scratch / "backup.err").open("w+")
        self.process = subprocess.Popen(
            command,
            stdout=self._output,
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
            env=scratch.environment(),
            text=True,
        )

    def begun(self) -> bool:
        """Whether the cut is over. Fails if the backup ended before."""
        return self._marks[1].exists() or self.process.poll() is not None

    def instant(self, mark: int) -> int:
        path = self._marks[mark]
        return int(path.read_text() or "0") if path.exists() else 0

    def wait(self, seconds: float = PATIENCE) -> Ended:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._output.seek(0)
        self._errors.seek(0)
        messages = [json.loads(line) for line in self._output.read().splitlines()]
        stderr = self._errors.read()
        self._output.close()
        self._errors.close()
        summaries = [message for message in messages if message["message_type"] == "summary"]
        return Ended(code, summaries[-1] if summaries else {}, messages, stderr, self.instant(0), self.instant(1))


def _hook(scratch: Scratch, mark: Path) -> Path:
    """A program that writes down the time at which it ran: no argument, so no rule of quoting matters."""
    path = scratch / f"{mark.name}.hook"
    if not path.exists():
        path.write_text(
            f"#!{sys.executable} -IS\nimport time\nopen({str(mark)!r}, 'w').write(str(time.monotonic_ns()))\n"
        )
        path.chmod(0o755)
    return path


@dataclass
class Attached:
    """A device, or a group of them, behind a daemon."""

    scratch: Scratch
    name: str
    paths: list[str] = field(default_factory=list)
    """Where programs find them, in the order of the devices."""
    said: str = ""
    """What attach told people."""

    def status(self) -> dict[str, Any]:
        result = self.scratch.blockcow("status", self.name, "--json")
        assert result.returncode == 0, result.stderr
        status: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return status

    def pid(self, who: str) -> int:
        """Of the ``keeper`` or the ``worker``; 0 while there is none."""
        try:
            return int((self.scratch.run / self.name / f"{who}.pid").read_text() or "0")
        except FileNotFoundError:
            return 0

    def start(self, *dests: Path, container: str = "memory:4M", **options: object) -> UnderWay:
        """``limit_read="8M"`` is the option ``--limit-read 8M``."""
        words: list[object] = []
        for path, dest in zip(self.paths, dests, strict=True):
            words += ["--device", path, "--dest", dest, "--container", container]
        for option, value in options.items():
            words += [f"--{option.replace('_', '-')}", value]
        return UnderWay(self.scratch, words)

    def detach(self, *options: str) -> None:
        result = self.scratch.blockcow("detach", self.name, *options)
        assert result.returncode == 0, result.stderr

    def show_log(self) -> None:
        """The daemon's last lines, for whoever reads of a failure."""
        with suppress(OSError):
            sys.stdout.write((self.scratch.run / self.name / "log").read_text()[-8000:])

    def kill_worker(self) -> int:
        """kill -9, and returns the process id that is no more."""
        pid = self.pid("worker")
        assert pid, f"{self.name} has no worker"
        os.kill(pid, signal.SIGKILL)
        return pid

    def read_at(self, offset: int, length: int = 4096) -> bytes:
        """Reads the first device directly: an answer means that a worker serves it."""
        file = os.open(self.paths[0], os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as buffer:
                assert os.preadv(file, [buffer], offset) == length
                return bytes(buffer)
        finally:
            os.close(file)

    def wait_for_another(self, dead: int) -> None:
        """Until there is a worker again."""
        wait_until(lambda: self.pid("worker") not in {0, dead}, f"{self.name} has a worker again after {dead}")


def attach(scratch: Scratch, name: str, *devices: object, options: Sequence[str] = ()) -> Attached:
    """Attaches devices, as one group if there are several."""
    result = scratch.blockcow("attach", *devices, "--name", name, "--json", *options)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    return Attached(scratch, name, [device["path"] for device in answer["devices"]], result.stderr)


@contextmanager
def attached(scratch: Scratch, name: str, *devices: object, options: Sequence[str] = ()) -> Iterator[Attached]:
    """Attaches, and detaches at a normal end of the block; nothing is left behind then."""
    there = attach(scratch, name, *devices, options=options)
    try:
        yield there
    except BaseException:
        there.show_log()
        raise
    there.detach()
    wait_until(lambda: not scratch.left(), f"nothing is left, but {scratch.left()}")  # the keeper is on its way out


@contextmanager
def mounted(scratch: Scratch, device: str | Path, name: str, *options: str) -> Iterator[Path]:
    """A file system, mounted in scratch until the end of the block; after a failure, until scratch is cleared."""
    point = scratch / name
    point.mkdir(exist_ok=True)
    sh("mount", *options, str(device), str(point))
    yield point
    sh("umount", str(point))


@contextmanager
def looped(image: Path, *options: str) -> Iterator[str]:
    """A loop device over a file in scratch until the end of the block; after a failure, until scratch is cleared."""
    device = sh("losetup", "--find", "--show", *options, str(image))
    yield device
    sh("losetup", "--detach", device)


CHECKS = {
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly"),
}
"""Programs that look at a file system, repair nothing, replay no journal, and fail if it is not clean."""

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}

AGAIN = {"ext4": (), "xfs": ("-o", "nouuid"), "btrfs": ()}
"""Options to mount an image of a file system that is mounted already."""


def make_file_system(kind: str, device: str) -> None:
    sh(*_MAKE[kind], device)


def check_file_system(kind: str, device: str | Path) -> None:
    """Fails if it is not clean as it stands."""
    sh(*CHECKS[kind], str(device))


_NO_COMPLAINT = (
    "Phase ",
    "        - ",
    "No modify flag set",
    "sb_fdblocks ",
    "ALERT: ",
    "ignored because",
    "which may be",
)


def check_frozen_xfs(device: str) -> None:
    """Fails if anything is wrong but what the kernel itself leaves so in a freeze.

    It keeps the log marked as in use, to find the files that are open and deleted, and leaves out of the count of free
    blocks those that it reserves: the next mount counts afresh.
    """
    result = subprocess.run([*CHECKS["xfs"], device], capture_output=True, text=True, check=False)
    said = (result.stdout + result.stderr).splitlines()
    assert [line for line in said if not line.startswith(_NO_COMPLAINT)] == []
    assert result.returncode in {0, 1}


@contextmanager
def replayed(scratch: Scratch, kind: str, image: Path) -> Iterator[Path]:
    """A copy of the image after its journal was replayed by a mount, mounted for reading; clean afterwards."""
    copy = scratch / f"{image.name}.copy"
    sh("cp", "--sparse=always", str(image), str(copy))
    with looped(copy) as device:
        with mounted(scratch, device, "replayed.mnt", *AGAIN[kind]) as point:
            yield point
        check_file_system(kind, device)
    copy.unlink()


@contextmanager
def as_it_stands(scratch: Scratch, kind: str, image: Path) -> Iterator[Path]:
    """The image, clean without any repair, mounted so that nothing is replayed."""
    options = {"ext4": ("-o", "ro,noload"), "xfs": ("-o", "ro,norecovery,nouuid"), "btrfs": ("-o", "ro")}
    with looped(image, "--read-only") as device:
        if kind == "xfs":
            check_frozen_xfs(device)
        else:
            check_file_system(kind, device)
        with mounted(scratch, device, "image.mnt", *options[kind]) as point:
            yield point


def allocate(path: Path, size: int) -> None:
    """A file whose blocks are written, so that direct writes to it change nothing but their own bytes."""
    with path.open("wb") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())
