"""Contestants that give programs a device by a front-end: blockcow, qemu-storage-daemon, nbdkit. Each is a process.

What they are measured with stands in `test_frontends.py`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

_PATIENCE = 30.0


class Server(Protocol):
    """A device in front of a file."""

    target: str
    """What programs open: a block device, or an NBD URI."""

    def begin_backups(self) -> None:
        """Backs the device up again and again."""

    def end_backups(self) -> int:
        """Stops that; how many bytes the backups are done with."""


def missing(*programs: str) -> list[str]:
    """Those of the programs that this machine does not have."""
    return [program for program in programs if shutil.which(program) is None]


class Blockcow:
    """`serve.py`, with the front-ends as the package has them."""

    def __init__(self, kind: str, device: Path, place: Path, stack: ExitStack) -> None:
        script = Path(__file__).with_name("serve.py")
        command = [sys.executable, str(script), kind, str(device), str(place)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        stack.callback(self._end)
        self.target = self._line()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "blockcow's server ended: see above"
        return line.strip()

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")

    def begin_backups(self) -> None:
        self._say("backup")

    def end_backups(self) -> int:
        self._say("idle")
        return int(self._line())

    def _end(self) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()
            assert self._process.wait(_PATIENCE) == 0


class Qemu:
    """qemu-storage-daemon, and its own backup job, which copies before writes too, straight to its target."""

    def __init__(self, kind: str, device: Path, place: Path, stack: ExitStack, *, direct: bool) -> None:
        monitor, pidfile = place / "monitor", place / "pid"
        self._size = device.stat().st_size
        self._image = place / "image"
        cache = "cache.direct=on,aio=native" if direct else "cache.direct=off,aio=threads"
        self._cache: dict[str, Any] = {"cache": {"direct": direct}, "aio": "native" if direct else "threads"}
        command = [
            "qemu-storage-daemon", "--pidfile", str(pidfile),
            "--blockdev", f"driver=file,node-name=disk,discard=unmap,filename={device},{cache}",
            "--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off", "--monitor", "chardev=monitor",
        ]  # fmt: skip
        if kind == "fuse":
            point = place / "file"
            point.touch()
            command += ["--export", f"fuse,id=export,node-name=disk,mountpoint={point},writable=on,allow-other=off"]
        else:
            path = place / "socket"
            command += ["--nbd-server", f"addr.type=unix,addr.path={path}"]
            command += ["--export", "nbd,id=export,node-name=disk,name=,writable=on"]
            self.target = f"nbd+unix:///?socket={path}"
        process = subprocess.Popen(command)
        stack.callback(process.wait, _PATIENCE)
        stack.callback(process.terminate)
        _wait_for(pidfile, process)
        self._monitor = socket.socket(socket.AF_UNIX)
        stack.callback(self._monitor.close)
        self._monitor.connect(str(monitor))
        self._lines = stack.enter_context(self._monitor.makefile("r"))
        self._lines.readline()
        self._ask("qmp_capabilities")
        if kind == "fuse":
            attach = ["losetup", "--find", "--show", "--direct-io=on", str(point)]
            self.target = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
            stack.callback(subprocess.run, ["losetup", "--detach", self.target], check=True)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._done_bytes = 0

    def _ask(self, command: str, arguments: dict[str, Any] | None = None, *, may_fail: bool = False) -> Any:
        """The answer to a command; events before it are not looked at."""
        question = {"execute": command, "arguments": arguments or {}}
        self._monitor.sendall(json.dumps(question).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                assert may_fail, f"qemu-storage-daemon: {command}: {answer}"
                return None

    def begin_backups(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(self._size)
        target = {"driver": "file", "node-name": "target", "filename": str(self._image), **self._cache}
        self._ask("blockdev-add", target)
        self._stopped.clear()
        self._done_bytes = 0
        self._thread = threading.Thread(target=self._backups)
        self._thread.start()

    def _backups(self) -> None:
        job = {"job-id": "backup", "device": "disk", "target": "target", "sync": "full"}
        while not self._stopped.is_set():
            self._ask("blockdev-backup", job)
            done = self._end_of_job()
            self._done_bytes += done if self._stopped.is_set() else self._size

    def _end_of_job(self) -> int:
        """Waits for it; how many bytes it was seen to be done with."""
        done = 0
        while jobs := self._ask("query-jobs"):
            done = jobs[0]["current-progress"]
            if self._stopped.is_set():
                self._ask("job-cancel", {"id": "backup"}, may_fail=True)  # it may have ended in between
            time.sleep(0.005)
        return done

    def end_backups(self) -> int:
        self._stopped.set()
        assert self._thread
        self._thread.join(_PATIENCE)
        self._ask("blockdev-del", {"node-name": "target"})
        self._image.unlink()
        return self._done_bytes


class Nbdkit:
    """nbdkit's file plugin: an NBD server that only serves."""

    def __init__(self, device: Path, place: Path, stack: ExitStack) -> None:
        path, pidfile = place / "socket", place / "pid"
        options = ["--foreground", "--exit-with-parent", "--unix", str(path), "--pidfile", str(pidfile)]
        command = ["nbdkit", *options, "file", str(device)]
        process = subprocess.Popen(command)
        stack.callback(process.wait, _PATIENCE)
        stack.callback(process.terminate)
        _wait_for(pidfile, process)
        self.target = f"nbd+unix:///?socket={path}"

    def begin_backups(self) -> None:
        raise NotImplementedError("nbdkit makes no backups")

    def end_backups(self) -> int:
        raise NotImplementedError("nbdkit makes no backups")


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, f"{process.args!r} ended"
        assert time.monotonic() < deadline, f"{process.args!r} does not serve"
        time.sleep(0.01)


def load(target: str, seconds: float, size: int) -> dict[str, float]:
    """What fio reaches in so many seconds each: operations a second, and MiB/s for the last two."""
    kinds = {
        "4 KiB random write, depth 1": ("randwrite", "4k", 1),
        "4 KiB random write, depth 16": ("randwrite", "4k", 16),
        "4 KiB random read, depth 1": ("randread", "4k", 1),
        "4 KiB random read, depth 16": ("randread", "4k", 16),
        "1 MiB sequential write": ("write", "1m", 4),
        "1 MiB sequential read": ("read", "1m", 4),
    }
    where = ["--ioengine=nbd", f"--uri={target}"] if target.startswith("nbd") else [f"--filename={target}"]
    if not target.startswith("nbd"):
        where += ["--ioengine=libaio", "--direct=1"]
    command = [
        "fio",
        "--output-format=json",
        "--thread",
        "--time_based",
        "--norandommap",
        "--random_generator=tausworthe64",
    ]
    command += [f"--runtime={round(seconds * 1000)}ms", f"--size={size}", *where]
    for name, (pattern, block, depth) in kinds.items():
        command += [f"--name={name}", "--stonewall", f"--rw={pattern}", f"--bs={block}", f"--iodepth={depth}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 0, f"fio on {target}: {done.stderr or done.stdout}"
    reached = {}
    for job in json.loads(done.stdout[done.stdout.index("{") :])["jobs"]:
        side = job["write" if "write" in job["jobname"] else "read"]
        reached[job["jobname"]] = side["bw"] / 1024 if "MiB" in job["jobname"] else side["iops"]
    return reached
