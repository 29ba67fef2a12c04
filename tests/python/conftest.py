"""Real loop devices, mounts and processes for the tests, all gone afterwards whatever happens. Holds no test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from live import Attaches

MIB = 1024 * 1024


def sh(*command: str, stdin: str | None = None) -> str:
    """The stdout of a program that must succeed. Skips the test where the program is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    result = subprocess.run(command, capture_output=True, text=True, check=False, input=stdin)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout.strip()


@pytest.fixture
def root() -> None:
    """Skips where loop devices and mounts are not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for loop devices and mounts: run the tests as root")


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """Undoes what a test did, in reverse order, even if one undoing fails."""
    with ExitStack() as stack:
        yield stack


_TRIED = "tried"


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Puts a line among the closing ones of the run, passed or not: how often what was tried."""
    return lambda line: request.node.user_properties.append((_TRIED, f"{request.node.name}: {line}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "call"]
    if lines := [line for report in calls for key, line in report.user_properties if key == _TRIED]:
        terminalreporter.section("what was tried")
        for line in lines:
            terminalreporter.line(str(line))


@pytest.fixture
def loop_device(root: None, tmp_path: Path, cleanup: ExitStack) -> Callable[..., str]:
    """Makes loop devices: ``loop_device(bytes, table="label: gpt\\n...", filesystem="ext4")`` is a path."""

    def make(size: int = 16 * MIB, *, table: str = "", filesystem: str = "", sector: int = 512) -> str:
        image = tmp_path / f"disk{len(list(tmp_path.glob('disk*')))}.img"
        with image.open("wb") as file:
            file.truncate(size)
        if table:
            sh("sfdisk", "-q", str(image), stdin=table)
        if filesystem:
            sh(f"mkfs.{filesystem}", "-q", str(image))
        name = sh("losetup", "--find", "--show", "--partscan", "--sector-size", str(sector), str(image))
        cleanup.callback(sh, "losetup", "--detach", name)
        if table:  # a kernel that reads no tables still takes partitions from partx
            sh("partx", "--update", name)
            cleanup.callback(sh, "partx", "--delete", name)
        return name

    return make


@pytest.fixture
def mount(root: None, tmp_path: Path, cleanup: ExitStack) -> Callable[[str], Path]:
    """Mounts a device: ``mount(device)`` is the mount point."""

    def make(device: str) -> Path:
        point = tmp_path / f"mnt{len(list(tmp_path.glob('mnt*')))}"
        point.mkdir()
        sh("mount", device, str(point))
        cleanup.callback(sh, "umount", str(point))
        return point

    return make


@pytest.fixture
def attaches(cleanup: ExitStack) -> Attaches:
    """Attaches devices: ``attaches.attach(path)`` is an `Attach`, ended at the end of the test."""
    return Attaches(cleanup)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def blockcow(tmp_path: Path) -> Run:
    """Runs the command line in ``tmp_path``, with its output piped."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "blockcow", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=120,
            env={**os.environ, **environment},
        )

    return run


def assert_one_error(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One or two lines that begin with the program's name, hold ``words``, and are no traceback."""
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert 1 <= len(lines) <= 2, result.stderr
    assert lines[0].startswith("blockcow: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image file of 8 MiB with content everywhere."""
    path = tmp_path / "device.img"
    path.write_bytes(os.urandom(MIB) * 8)
    return path
