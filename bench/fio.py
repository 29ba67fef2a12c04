"""Runs fio, the program whose I/O is measured: rates of an idle device, or the latency of each write."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 120.0
RATES = {
    "4 KiB random write, depth 1": ("randwrite", "4k", 1),
    "4 KiB random write, depth 16": ("randwrite", "4k", 16),
    "4 KiB random read, depth 1": ("randread", "4k", 1),
    "4 KiB random read, depth 16": ("randread", "4k", 16),
    "1 MiB sequential write": ("write", "1m", 4),
    "1 MiB sequential read": ("read", "1m", 4),
}


def _command(target: str, size: int) -> list[str]:
    where = ["--ioengine=nbd", f"--uri={target}"]
    if not target.startswith("nbd"):
        where = ["--ioengine=libaio", "--direct=1", f"--filename={target}"]
    return [
        "fio", "--output-format=json", "--thread", "--time_based", "--norandommap",
        "--random_generator=tausworthe64", f"--size={size}", *where,
    ]  # fmt: skip


def rates(target: str, seconds: float, size: int) -> dict[str, float]:
    """What fio reaches in so many seconds each: operations a second, and MiB/s for the last two."""
    command = [*_command(target, size), f"--runtime={round(seconds * 1000)}ms"]
    for name, (pattern, block, depth) in RATES.items():
        command += [f"--name={name}", "--stonewall", f"--rw={pattern}", f"--bs={block}", f"--iodepth={depth}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 0, f"fio on {target}: {done.stderr or done.stdout}"
    reached = {}
    for job in json.loads(done.stdout[done.stdout.index("{") :])["jobs"]:
        side = job["write" if "write" in job["jobname"] else "read"]
        reached[job["jobname"]] = side["bw"] / 1024 if "MiB" in job["jobname"] else side["iops"]
    return reached


class Writes:
    """The latency of each write of a load: seconds since 1970 at its end, and milliseconds."""

    def __init__(self) -> None:
        self.latencies: list[tuple[float, float]] = []
        self.errors = 0


@contextmanager
def writing(
    target: str, device: Path, *, depth: int, rate: int | None = None, block: str = "4k", lead: float = 0.5
) -> Iterator[Writes]:
    """Writes all over `target`, which stands for the file `device`, until the end of the block.

    At random, or one after the other if their `block` is not 4k. The block begins `lead` seconds after the first.
    """
    writes = Writes()
    before = device.stat().st_mtime_ns
    pattern = "randwrite" if block == "4k" else "write"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *_command(target, device.stat().st_size),
            "--runtime=1h",
            "--name=load",
            f"--rw={pattern}",
            f"--bs={block}",
        ]
        command += [f"--iodepth={depth}", "--log_unix_epoch=1", f"--write_lat_log={folder}/load"]
        command += [f"--rate_iops={rate}"] if rate else []
        # fio leaves a file in its working folder when it is interrupted.
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            _wait_for_a_write(device, before, process)
            time.sleep(lead)
            yield writes
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=_PATIENCE)
        report = json.loads(out[out.index("{") :])["jobs"][0]
        writes.errors = report["error"]
        assert report["write"]["total_ios"], f"fio on {target} wrote nothing: {err}"
        for line in (Path(folder) / "load_lat.1.log").read_text().splitlines():
            at, latency, *_ = line.split(",")
            writes.latencies.append((int(at) / 1e3, int(latency) / 1e6))


def _wait_for_a_write(device: Path, before: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while device.stat().st_mtime_ns == before:
        assert process.poll() is None, f"fio ended: {process.communicate()}"
        assert time.monotonic() < deadline, "fio does not begin"
        time.sleep(0.01)
