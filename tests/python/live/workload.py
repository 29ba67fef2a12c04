"""Programs that use a file system while it is backed up: fio, thousands of small files, deletes with fstrim.

Each is a process or a thread that is ended with its `with` block, and each fails the test if it met an error. The small
files say by name what is in them, and the log of their maker says what was synced when; so an image can be held to it.
Knows nothing of blockcow.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from conftest import MIB

_SECONDS = 60.0
_FOLDER_FILES = 200
_FSYNC_EVERY = 5
_MOST_FILES = 8000


class Repeated:
    """Runs a function again and again on a thread; the first error that it raises fails the test at the end."""

    def __init__(self, once: Callable[[], object]) -> None:
        self._once = once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rounds = 0
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._once()
                self.rounds += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if kind is not None:
            return  # not waited for: the file system may hang
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive(), f"a program hangs after {self.rounds} rounds"
        if self.error is not None:
            raise self.error


def run_program(*command: str) -> str:
    """stdout of a program that must succeed. For threads: fails, and never skips."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, f"{' '.join(command)}: {result.returncode}\n{result.stdout[-2000:]}{result.stderr}"
    return result.stdout


def fio(folder: Path, seconds: int, *, size: int = 8 * MIB) -> Repeated:
    """fio with random reads and writes, verified, fsync mixed in; one job through the page cache and one direct.

    fio verifies what it has written as it goes, and ends with an error at the first byte that is wrong.
    """
    folder.mkdir(exist_ok=True)
    common = ["--rw=randrw", "--bs=4k", f"--size={size}", "--fsync=32", "--verify=crc32c", "--verify_fatal=1"]
    common += [
        "--verify_backlog=256",
        "--verify_state_save=0",
        "--time_based",
        f"--runtime={seconds}",
        f"--directory={folder}",
        "--group_reporting",
    ]
    jobs = ["--name=cached", "--ioengine=psync", "--name=direct", "--ioengine=libaio", "--direct=1", "--iodepth=8"]
    return Repeated(lambda: run_program("fio", "--minimal", *common, *jobs))


def trim(folder: Path) -> Repeated:
    """Tells the device what the file system does not use, again and again."""

    def once() -> None:
        run_program("fstrim", str(folder))
        time.sleep(0.1)

    return Repeated(once)


def content_of(name: str, seed: int) -> bytes:
    """What a small file of this name holds: up to 24 KiB that nobody could take for another's."""
    random = Random(f"{seed} {name}")
    return hashlib.sha256(f"{seed} {name}".encode()).digest() * random.randrange(1, 768)


@dataclass(frozen=True)
class Line:
    """One thing that the maker of small files did to one of them: ``made``, ``synced`` or ``deleted``, and when."""

    what: str
    name: str
    began: int
    ended: int


class SmallFiles:
    """Makes small files like the untarring of a source tree, syncs some, and deletes those it finds in ``doomed``."""

    def __init__(self, folder: Path, log: Path, seed: int) -> None:
        self.folder, self._log, self._seed = folder, log, seed
        self._process: subprocess.Popen[str] | None = None

    def prepare(self, files: int) -> None:
        """Makes, in a folder of their own, the files that are to be deleted later."""
        (self.folder / "doomed").mkdir(parents=True)
        for number in range(files):
            name = f"doomed/{number}"
            (self.folder / name).write_bytes(content_of(name, self._seed))
        os.sync()

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, str(self.folder), str(self._log), str(self._seed)]
        path = os.pathsep.join(sys.path)
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        if kind is not None:
            self._process.kill()
            return
        self._process.send_signal(signal.SIGTERM)
        message = self._process.communicate(timeout=_SECONDS)[1]
        assert self._process.returncode == 0, message

    def lines(self) -> list[Line]:
        """The log so far. A line is written after what it tells of has happened."""
        lines = []
        for text in self._log.read_text().splitlines() if self._log.exists() else ():
            what, name, began, ended = text.split(" ")
            lines.append(Line(what, name, int(began), int(ended)))
        return lines

    def check(self, folder: Path, before: int, after: int) -> str:
        """Holds the folder in an image to the log; ``before`` and ``after`` are instants around its cut."""
        lines = self.lines()
        synced = [line.name for line in lines if line.what == "synced" and line.ended < before]
        wrong = [name for name in synced if not self._holds(folder, name)]
        assert not wrong, f"{len(wrong)} of {len(synced)} files synced before the cut are not right, first {wrong[0]}"
        late = [line.name for line in lines if line.what == "made" and line.began > after]
        there = [name for name in late if (folder / name).exists()]
        assert not there, f"{len(there)} of {len(late)} files made after the cut are in the image, first {there[0]}"
        deleted = [line.name for line in lines if line.what == "deleted" and line.began > after]
        gone = [name for name in deleted if not self._holds(folder, name)]
        assert not gone, f"{len(gone)} of {len(deleted)} files deleted after the cut are not right, first {gone[0]}"
        return f"{len(synced)} files synced before the cut, {len(late)} made and {len(deleted)} deleted after it"

    def _holds(self, folder: Path, name: str) -> bool:
        path = folder / name
        return path.exists() and path.read_bytes() == content_of(name, self._seed)


def _make_files(folder: Path, log: Path, seed: int) -> None:
    """The program."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    doomed = sorted((folder / "doomed").iterdir())
    number = 0
    with log.open("a", buffering=1) as lines:
        while not stopped:
            number += 1
            if number > _MOST_FILES:  # before the file system is full
                time.sleep(0.05)
                continue
            name = f"{number // _FOLDER_FILES}/{number}"
            (folder / name).parent.mkdir(exist_ok=True)
            _make_one(folder, name, seed, lines.write, synced=number % _FSYNC_EVERY == 0)
            if number % 2 and doomed:
                _delete_one(doomed.pop(), folder, lines.write)


def _make_one(folder: Path, name: str, seed: int, say: Callable[[str], object], *, synced: bool) -> None:
    began = time.monotonic_ns()
    with (folder / name).open("wb") as file:
        file.write(content_of(name, seed))
        if synced:
            file.flush()
            os.fsync(file.fileno())
    if synced:
        for place in ((folder / name).parent, folder):  # its name too
            at = os.open(place, os.O_RDONLY)
            os.fsync(at)
            os.close(at)
    ended = time.monotonic_ns()
    say(f"{'synced' if synced else 'made'} {name} {began} {ended}\n")


def _delete_one(path: Path, folder: Path, say: Callable[[str], object]) -> None:
    began = time.monotonic_ns()
    path.unlink()
    say(f"deleted {path.relative_to(folder)} {began} {time.monotonic_ns()}\n")


if __name__ == "__main__":
    _make_files(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
