"""Devices attached by the daemon, as an administrator would, and gone afterwards whatever happens. No test here.

`Attaches.attach` gives an `Attach`; its processes are killed and what they left is cleaned at the end of the test.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

PATIENCE = 60.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Waits for a condition; a test fails if it does not come about."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class Attach:
    """One attach. ``paths`` are what programs use: loop devices as root, else files or NBD URIs."""

    name: str
    folder: Path
    devices: list[dict[str, Any]]
    environment: dict[str, str]

    @property
    def path(self) -> str:
        """What programs use of the first device."""
        return str(self.devices[0]["path"])

    @property
    def paths(self) -> list[str]:
        """What programs use of each device."""
        return [str(device["path"]) for device in self.devices]

    def pid(self, who: str) -> int:
        """The process of the ``worker`` or ``keeper``."""
        return int((self.folder / f"{who}.pid").read_text())

    def kill(self, *who: str) -> None:
        """Kills with -9: ``worker``, or ``keeper`` and ``worker`` at once."""
        for pid in [self.pid(one) for one in who]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        """Kills the worker with -9, and waits until another answers."""
        before = self.pid("worker")
        self.kill("worker")
        self.wait_for_other_worker(before)

    def wait_for_other_worker(self, before: int) -> None:
        """Waits until a worker other than ``before`` answers."""
        wait_until(lambda: self.worker_pid() not in (None, before), "another worker")

    def worker_pid(self) -> int | None:
        """The worker that answers; None while none does."""
        with suppress(httpx.TransportError):
            return int(self.get("/status")["worker_pid"])
        return None

    def client(self) -> httpx.Client:
        """Speaks to the control interface; close it."""
        transport = httpx.HTTPTransport(uds=str(self.folder / "control.sock"))
        return httpx.Client(transport=transport, base_url="http://daemon", timeout=PATIENCE)

    def get(self, path: str) -> dict[str, Any]:
        """An answer of the control interface."""
        with self.client() as client:
            answer: dict[str, Any] = client.get(path).json()
        return answer

    def command(self, *arguments: object) -> list[str]:
        """A blockcow command line."""
        return [sys.executable, "-m", "blockcow", *map(str, arguments)]

    def run(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs blockcow; it must succeed unless ``check`` is off."""
        result = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
            env=self.environment,
        )
        assert not check or result.returncode == 0, f"{arguments}: {result.stderr}\n{self.log()}"
        return result

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        """Starts blockcow; the caller ends it."""
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def backup(self, dest: Path, *more: object, container: str = "memory:8M") -> dict[str, Any]:
        """Backs up the one device to ``dest``; the summary. The backup must be complete."""
        arguments = ("--device", self.name, "--container", container, "--dest", dest, "--json", "--progress", "none")
        result = self.run("backup", *arguments, *more)
        return summary_of(result.stdout)

    def log(self) -> str:
        """What keeper and worker said."""
        with suppress(OSError):
            return (self.folder / "log").read_text()
        return ""

    def is_live(self) -> bool:
        """Whether keeper and worker are there."""
        return self.folder.is_dir() and self.run("status", self.name, check=False).returncode == 0


def summary_of(stdout: str) -> dict[str, Any]:
    """The last line of a verb's JSON lines."""
    line: dict[str, Any] = msgspec.json.decode(stdout.splitlines()[-1])
    assert line["message_type"] == "summary"
    return line


class Attaches:
    """Attaches devices with run folders of their own."""

    def __init__(self, cleanup: ExitStack) -> None:
        self._cleanup = cleanup
        self.base = Path(tempfile.mkdtemp(prefix="bc-"))  # short: a socket's path has at most 107 bytes
        cleanup.callback(shutil.rmtree, self.base, ignore_errors=True)
        self.environment = {**os.environ, "BLOCKCOW_RUN_DIR": str(self.base)}

    def try_attach(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs ``blockcow attach``; whatever it leaves is cleaned up in the end."""
        self._cleanup.callback(self._end_all)
        return subprocess.run(
            [sys.executable, "-m", "blockcow", "attach", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
            env=self.environment,
        )

    def attach(self, *devices: object, name: str = "t", frontend: str = "auto", more: tuple[str, ...] = ()) -> Attach:
        """Attaches, which must succeed."""
        result = self.try_attach(*devices, "--name", name, "--frontend", frontend, "--json", *more)
        assert result.returncode == 0, result.stderr
        line = msgspec.json.decode(result.stdout)
        return Attach(line["name"], self.base / line["name"], line["devices"], self.environment)

    def _end_all(self) -> None:
        """Ends what is there, by force, and cleans up."""
        command = [sys.executable, "-m", "blockcow", "detach"]
        folders = [entry for entry in self.base.iterdir() if entry.is_dir()] if self.base.is_dir() else []
        for folder in folders:
            subprocess.run(
                [*command, "--force", folder.name],
                env=self.environment,
                check=False,
                capture_output=True,
                timeout=PATIENCE,
            )
            for who in ("keeper", "worker"):
                with suppress(OSError, ValueError):
                    pid = int((folder / f"{who}.pid").read_text())
                    if "blockcow" in Path(f"/proc/{pid}/cmdline").read_text():
                        os.kill(pid, signal.SIGKILL)
        if folders:
            subprocess.run(
                [*command, "--clean"], env=self.environment, check=False, capture_output=True, timeout=PATIENCE
            )
