"""Contestants that give programs a device by a front-end and back it up: blockcow, and QEMU in its two ways.

Each is a process of its own. What they are measured with stands in `test_frontends.py` and `test_latency.py`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latency import Outcome
from scale import ROOT

_PATIENCE = 60.0
_BACKUP_PATIENCE = 120.0
_LOOK_EVERY = 0.02


@dataclass(frozen=True)
class Container:
    """Where old blocks may go, and how many bytes of them."""

    path: Path
    size: int


class Server(Protocol):
    """A device in front of a file."""

    target: str
    """What programs open: a block device, or an NBD URI."""
    pid: int
    """The process that serves."""

    def backup(self, dest: str, container: Container) -> Callable[[], Outcome]:
        """Begins a backup to a file or an NBD URI: the cut has been made. What it returns waits for the end."""


def missing(*programs: str) -> list[str]:
    """Those of the programs that this machine does not have."""
    return [program for program in programs if shutil.which(program) is None]


def prefer_newest_qemu() -> str:
    """Puts QEMU's tools that `scripts/newest-qemu` fetched, if any, before the installed ones. The version used."""
    os.environ["PATH"] = f"{ROOT / 'target/qemu/usr/bin'}:{os.environ['PATH']}"
    if missing("qemu-storage-daemon"):
        return "none"
    said = subprocess.run(["qemu-storage-daemon", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2]


class Blockcow:
    """`serve.py`, with the front-ends as the package has them."""

    def __init__(self, kind: str, device: Path, place: Path, stack: ExitStack) -> None:
        script = Path(__file__).with_name("serve.py")
        command = [sys.executable, str(script), kind, str(device), str(place)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        stack.callback(self._end)
        self.pid = self._process.pid
        self.target = self._line()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "blockcow's server ended: see above"
        return line.strip()

    def backup(self, dest: str, container: Container) -> Callable[[], Outcome]:
        assert self._process.stdin
        order = {"dest": dest, "container": str(container.path), "container_size": str(container.size)}
        if dest.startswith("nbd"):
            order["manifest"] = str(container.path.with_name("manifest"))
        self._process.stdin.write(json.dumps(order) + "\n")
        assert self._line() == "cut"
        return lambda: Outcome(**json.loads(self._line()))

    def _end(self) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()
            assert self._process.wait(_PATIENCE) == 0


def serve_by_nbdkit(options: list[str], plugin: list[str], place: Path, stack: ExitStack) -> str:
    """An NBD URI that is served until the stack ends."""
    path, pidfile = place / "socket", place / "pid"
    fixed = ["--foreground", "--exit-with-parent", "--unix", str(path), "--pidfile", str(pidfile)]
    process = subprocess.Popen(["nbdkit", *fixed, *options, *plugin])
    stack.callback(process.wait, _PATIENCE)
    stack.callback(process.terminate)
    _wait_for(pidfile, process)
    return f"nbd+unix:///?socket={path}"


class Qemu:
    """qemu-storage-daemon. Its backup copies before writes straight to the destination (push), or to a container."""

    def __init__(self, kind: str, device: Path, place: Path, stack: ExitStack, *, direct: bool, fleecing: bool) -> None:
        monitor, pidfile = place / "monitor", place / "pid"
        self._place, self._size, self._fleecing = place, device.stat().st_size, fleecing
        self._cache: dict[str, Any] = {"cache": {"direct": direct}, "aio": "native" if direct else "threads"}
        disk = {"driver": "file", "node-name": "disk", "discard": "unmap", "filename": str(device), **self._cache}
        command = [
            "qemu-storage-daemon", "--pidfile", str(pidfile),
            "--blockdev", json.dumps(disk), "--blockdev", "driver=raw,node-name=top,file=disk",
            "--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off", "--monitor", "chardev=monitor",
        ]  # fmt: skip
        if kind == "fuse":
            point = place / "file"
            point.touch()
            # It goes with the process, unless that was killed.
            unmount = ["umount", "--lazy", str(point)]
            stack.callback(subprocess.run, unmount, capture_output=True, check=False)
            command += ["--export", f"fuse,id=export,node-name=top,mountpoint={point},writable=on,allow-other=off"]
        else:
            path = place / "socket"
            command += ["--nbd-server", f"addr.type=unix,addr.path={path}"]
            command += ["--export", "nbd,id=export,node-name=top,name=,writable=on"]
            self.target = f"nbd+unix:///?socket={path}"
        process = subprocess.Popen(command)
        stack.callback(process.wait, _PATIENCE)
        stack.callback(process.terminate)
        # It has been seen to stop answering its FUSE export for good under a database; all would wait for ever.
        self._watch = threading.Timer(_BACKUP_PATIENCE, process.kill)
        stack.callback(self._watch.cancel)
        _wait_for(pidfile, process)
        self.pid = process.pid
        self._monitor = socket.socket(socket.AF_UNIX)
        stack.callback(self._monitor.close)
        self._monitor.connect(str(monitor))
        self._lines = stack.enter_context(self._monitor.makefile("r"))
        self._lines.readline()
        self._failure = ""
        self._ask("qmp_capabilities")
        if kind == "fuse":
            attach = ["losetup", "--find", "--show", "--direct-io=on", str(point)]
            self.target = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
            stack.callback(subprocess.run, ["losetup", "--detach", self.target], check=True)

    def _ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """The answer to a command, `None` if it has ended. Of the events before it, the error of the backup is kept."""
        with suppress(ConnectionError):
            self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
            while line := self._lines.readline():
                answer = json.loads(line)
                if answer.get("event") == "BLOCK_JOB_COMPLETED":
                    self._failure = answer["data"].get("error", "")
                elif "event" not in answer:
                    assert "return" in answer, f"qemu-storage-daemon: {command}: {answer}"
                    return answer["return"]
        self._failure = f"qemu-storage-daemon ended, or was killed {_BACKUP_PATIENCE:.0f} s after its backup began"
        return None

    def _knows(self, option: str) -> bool:
        """Whether this version has an option by that name anywhere in its schema."""
        return f'"{option}"' in json.dumps(self._ask("query-qmp-schema"))

    def _add(self, name: str, place: str) -> None:
        """A node for an image file, which is made as large as the device, or for an NBD server."""
        if place.startswith("nbd"):
            server = {"type": "unix", "path": place.split("socket=")[1]}
            self._ask("blockdev-add", {"driver": "nbd", "node-name": name, "server": server})
            return
        with Path(place).open("wb") as image:
            image.truncate(self._size)
        options = {"driver": "file", "node-name": name, "filename": place, "discard": "unmap", **self._cache}
        self._ask("blockdev-add", options)

    def backup(self, dest: str, container: Container) -> Callable[[], Outcome]:
        """QEMU's container is as large as the device; what limits it is the file system that it lies in."""
        self._watch.start()
        self._add("dest", dest)
        job: dict[str, Any] = {"job-id": "backup", "device": "disk", "target": "dest", "sync": "full"}
        if self._fleecing:
            self._add("container", str(container.path))
            before_write = {"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "container"}
            before_write |= {"on-cbw-error": "break-snapshot"}
            self._ask("blockdev-add", before_write)
            self._ask("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "top", "file": "cbw"}]})
            self._ask("blockdev-add", {"driver": "snapshot-access", "node-name": "snapshot", "file": "cbw"})
            job["device"] = "snapshot"
            if self._knows("discard-source"):
                job["discard-source"] = True
        began = time.time()
        self._ask("blockdev-backup", job)
        return lambda: self._outcome(began, container.path)

    def _outcome(self, began: float, container: Path) -> Outcome:
        fill: list[tuple[float, int]] = []
        while self._ask("query-jobs"):
            if self._fleecing:
                fill.append((time.time() - began, container.stat().st_blocks * 512))
            time.sleep(_LOOK_EVERY)
        self._ask("blockdev-del", {"node-name": "dest"})  # which syncs it
        seconds = time.time() - began
        return Outcome(
            status="broken" if self._failure else "complete",
            began=began,
            seconds=seconds,
            container_peak_bytes=max((size for _, size in fill), default=0),
            fill=fill,
            error=self._failure,
        )


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, f"{process.args!r} ended"
        assert time.monotonic() < deadline, f"{process.args!r} does not serve"
        time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, of all its threads, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
