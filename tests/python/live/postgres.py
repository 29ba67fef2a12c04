"""PostgreSQL on a mounted file system: a cluster, pgbench, and a client that remembers what was acknowledged.

The server runs as the user postgres, listens on a unix socket in scratch only, and knows nothing of blockcow. Holds no
test.
"""

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from conftest import sh
from rig import PATIENCE

BIN = Path("/usr/lib/postgresql/15/bin")
_SETTINGS = """
listen_addresses = ''
shared_buffers = 32MB
max_connections = 20
max_wal_size = 96MB
min_wal_size = 32MB
checkpoint_timeout = 30s
autovacuum_naptime = 5s
"""
_INSERT = "insert into numbered values "
_PROGRESS = re.compile(r"^progress: [\d.]+ s, ([\d.]+) tps", re.MULTILINE)
_BALANCES = """
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
   and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
   and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
"""


def need_postgresql() -> None:
    """Skips loudly where PostgreSQL 15 is not there."""
    if not (BIN / "postgres").exists():
        pytest.skip("needs PostgreSQL 15 in /usr/lib/postgresql/15: apt-get install postgresql-15")


def as_postgres(*command: str) -> list[str]:
    return ["runuser", "-u", "postgres", "--", *command]


@dataclass(frozen=True)
class Cluster:
    """A server that runs, or ran, on data of its own."""

    data: Path
    sockets: Path

    def program(self, name: str, *arguments: str) -> list[str]:
        return as_postgres(str(BIN / name), "--host", str(self.sockets), *arguments)

    def query(self, statement: str) -> str:
        return sh(
            *self.program("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-c", statement, "postgres")
        )

    def check(self) -> None:
        """The data are sound, by PostgreSQL's own programs, and each of pgbench's transactions is there in whole."""
        sh(*self.program("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check"))
        assert self.query(_BALANCES) == "t"


@contextmanager
def running(data: Path, sockets: Path) -> Iterator[Cluster]:
    """Starts a server on these data, which recovers if it has to, and stops it at the end of the block."""
    sockets.mkdir(exist_ok=True)
    shutil.chown(sockets, "postgres")
    log = sockets / "log"
    control = as_postgres(str(BIN / "pg_ctl"), "--pgdata", str(data), "--log", str(log), "--wait", "--timeout", "60")
    started = subprocess.run([*control, "-o", f"-k {sockets}", "start"], stdout=subprocess.DEVNULL, check=False)
    assert started.returncode == 0, log.read_text()[-2000:]
    try:
        yield Cluster(data, sockets)
    finally:
        subprocess.run([*control, "--mode", "immediate", "stop"], stdout=subprocess.DEVNULL, check=False)


def make_cluster(data: Path, sockets: Path, scale: int) -> None:
    """A new cluster with pgbench's tables and the table of numbered rows."""
    data.mkdir()
    shutil.chown(data, "postgres")
    data.chmod(0o700)
    sh(*as_postgres(str(BIN / "initdb"), "--pgdata", str(data), "--auth=trust", "--wal-segsize=4", "--data-checksums"))
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(_SETTINGS)
    with running(data, sockets) as cluster:
        sh(*cluster.program("pgbench", "--initialize", "--quiet", f"--scale={scale}", "postgres"))
        cluster.query("create table numbered (number bigint primary key)")
        cluster.query("checkpoint")


class Pgbench:
    """pgbench with four clients until the end of the block. Any error that one of them meets fails the test."""

    def __init__(self, cluster: Cluster, seconds: int) -> None:
        options = ["--client=4", "--jobs=1", f"--time={seconds}", "--progress=1", "--no-vacuum", "postgres"]
        self._command = cluster.program("pgbench", *options)
        self._rates: list[tuple[float, float]] = []
        self.output = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if progress := _PROGRESS.match(line):
                self._rates.append((time.monotonic(), float(progress[1])))

    def running(self) -> bool:
        return self._process.poll() is None

    def rate(self, since: float, until: float) -> float:
        """Transactions a second, mean of the seconds that lie between two instants; 0 if there is none."""
        rates = [rate for at, rate in self._rates if since + 1 <= at <= until]
        return sum(rates) / len(rates) if rates else 0.0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
            return
        code = self._process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()
        assert code == 0, self.output
        assert "number of failed transactions: 0 " in self.output, self.output
        assert not re.search("error|fatal|panic|aborted", self.output, re.IGNORECASE), self.output


class Numbered:
    """A client that commits one numbered row after the other, and knows when each was begun and acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        options = ["--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "postgres"]
        self._command = cluster.program("psql", *options)
        self.begun: dict[int, int] = {}
        self.acknowledged: dict[int, int] = {}
        self._first = int(cluster.query("select coalesce(max(number), 0) + 1 from numbered"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        number = self._first
        while not self._stop.is_set():
            self.begun[number] = time.monotonic_ns()
            self._process.stdin.write(f"{_INSERT}({number});\n")
            self._process.stdin.flush()
            if self._process.stdout.readline() != "INSERT 0 1\n":
                return
            self.acknowledged[number] = time.monotonic_ns()
            number += 1
            time.sleep(0.002)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if kind is not None:
            self._process.kill()
            self._process.communicate()
            return
        self._thread.join(PATIENCE)
        message = self._process.communicate(timeout=PATIENCE)[1]
        assert not self._thread.is_alive()
        assert self._process.returncode == 0, message
        assert len(self.acknowledged) == len(self.begun), message

    def check(self, held: Sequence[int], before: int, after: int) -> str:
        """Holds the rows of an image to what was acknowledged before its cut, and begun after it; others may follow."""
        rows = set(held)
        acknowledged = {number for number, at in self.acknowledged.copy().items() if at < before}
        lost = sorted(acknowledged - rows)
        assert not lost, (
            f"{len(lost)} of {len(acknowledged)} rows acknowledged before the cut are lost, first {lost[0]}"
        )
        late = {number for number, at in self.begun.copy().items() if at > after}
        assert not late & rows, f"rows of after the cut are in the image: {sorted(late & rows)[:5]}"
        return f"{len(acknowledged)} rows acknowledged before the cut, {len(late)} begun after it"


def rows_of(cluster: Cluster) -> list[int]:
    return [int(line) for line in cluster.query("select number from numbered").splitlines()]


def stale_pid_removed(data: Path) -> Path:
    """Data of an image: the file that says which process serves them speaks of the original's."""
    (data / "postmaster.pid").unlink(missing_ok=True)
    os.sync()
    return data
