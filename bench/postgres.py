"""PostgreSQL and pgbench on a block device: the latency of each transaction, while something else happens.

The server runs as the user postgres and listens on a unix socket in the given folder only.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fio import Writes

BIN = Path("/usr/lib/postgresql/15/bin")
_PATIENCE = 120.0
_SETTINGS = """
listen_addresses = ''
shared_buffers = 32MB
max_wal_size = 96MB
min_wal_size = 32MB
"""


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr or done.stdout}"


def _as_postgres(program: str, *arguments: str | Path) -> list[str | Path]:
    return ["runuser", "-u", "postgres", "--", BIN / program, *arguments]


@contextmanager
def _mounted(device: str, point: Path) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    _run("mount", device, point)
    try:
        yield point / "data"
    finally:
        _run("umount", point)


@contextmanager
def _running(data: Path, sockets: Path) -> Iterator[None]:
    control = _as_postgres("pg_ctl", "--pgdata", data, "--log", sockets / "log", "--wait", "--options", f"-k {sockets}")
    # Its output goes nowhere: the server inherits it, and would keep a pipe open.
    started = subprocess.run([*control, "start"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert started.returncode == 0, (sockets / "log").read_text()[-2000:]
    try:
        yield
    finally:
        # It fails if the server has lost its device and died. One that lives keeps the file system busy, which shows.
        subprocess.run([*control, "--mode", "fast", "stop"], capture_output=True, check=False)


def _sockets(folder: Path) -> Path:
    sockets = folder / "sockets"
    sockets.mkdir(exist_ok=True)
    shutil.chown(sockets, "postgres")
    for above in folder.parents[:1]:
        above.chmod(0o755)
    folder.chmod(0o755)
    return sockets


def make_image(image: Path, size: int, scale: int) -> None:
    """A file with an ext4 and pgbench's tables in it."""
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", image)
    folder = image.with_suffix(".work")
    folder.mkdir()
    sockets = _sockets(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        data = stack.enter_context(_mounted(str(image), folder / "mnt"))
        data.mkdir()
        shutil.chown(data, "postgres")
        data.chmod(0o700)
        _run(*_as_postgres("initdb", "--pgdata", data, "--auth=trust", "--wal-segsize=4"))
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS)
        with _running(data, sockets):
            _run(*_as_postgres("pgbench", "--host", sockets, "--initialize", "--quiet", f"--scale={scale}", "postgres"))


@contextmanager
def transactions(device: str, folder: Path, lead: float) -> Iterator[Writes]:
    """pgbench with four clients on a device that `make_image` filled; the block begins `lead` seconds after them.

    If they get an error, all of them end.
    """
    seen = Writes()
    sockets = _sockets(folder)
    logs = folder / "logs"
    logs.mkdir()
    shutil.chown(logs, "postgres")
    with _mounted(device, folder / "mnt") as data, _running(data, sockets):
        arguments: list[str | Path] = [
            "--host",
            sockets,
            "--client=4",
            "--jobs=1",
            "--time=3600",
            "--no-vacuum",
            "--log",
        ]
        command = _as_postgres("pgbench", *arguments, f"--log-prefix={logs / 'pgbench'}", "postgres")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            _wait_for_a_transaction(logs, process)
            time.sleep(lead)
            yield seen
            seen.errors += process.poll() is not None
        finally:
            # runuser hands the signal on; pgbench writes what its log still holds when its server goes.
            process.terminate()
            process.communicate(timeout=_PATIENCE)
    for log in logs.iterdir():
        for line in log.read_text().splitlines():
            fields = line.split()
            if len(fields) >= 6:
                seen.latencies.append((int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]) / 1e3))
    assert seen.latencies, "pgbench logged no transaction"
    os.sync()


def _wait_for_a_transaction(logs: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not any(log.stat().st_size for log in logs.iterdir()):
        assert process.poll() is None, f"pgbench ended: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "pgbench does not begin"
        time.sleep(0.01)
