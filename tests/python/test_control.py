"""The control interface by programs that nobody here wrote, and what the command line makes of it: hooks, groups."""

import json
import mmap
import os
import re
import socket
import stat
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import MIB, Run, assert_one_error, sh
from live import Attach, Attaches, summary_of, wait_until

SIZE = 32 * MIB
NOBODY = 65534
_SAMPLE = re.compile(r'blockcow_[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [0-9.e+-]+')


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image file full of noise."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def attached(disk: Path, attaches: Attaches) -> Attach:
    """The image file behind an NBD socket: works without root."""
    return attaches.attach(disk, frontend="nbd")


def curl(attached: Attach, path: str, *more: str) -> Any:
    """What curl gets."""
    text = sh("curl", "-sS", "--unix-socket", str(attached.folder / "control.sock"), *more, f"http://x{path}")
    return json.loads(text)


def test_a_backup_by_curl(attached: Attach, disk: Path, tmp_path: Path) -> None:
    assert curl(attached, "/status")["devices"][0]["state"] == "passing"
    wanted = {"device": str(disk), "container": "memory:1M", "dest": str(tmp_path / "out.img")}
    body = json.dumps({"id": "first1", "backups": [wanted]})
    answer = curl(attached, "/backups", "-d", body)
    assert answer["id"] == "first1"
    lines = sh(
        "curl", "-sS", "--unix-socket", str(attached.folder / "control.sock"), "http://x/backups/first1/events"
    ).splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["to"] for event in events if event["event"] == "state"] == ["active", "complete"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert curl(attached, "/backups/first1")["parts"][0]["status"] == "complete"
    assert (tmp_path / "out.img").read_bytes() == disk.read_bytes()
    assert curl(attached, "/backups", "-d", body)["error"]["kind"] == "exists"
    assert curl(attached, "/backups/none")["error"]["kind"] == "not-found"
    assert curl(attached, "/backups", "-d", "{}")["error"]["kind"] == "invalid"
    assert curl(attached, "/backups", "-d", "no json")["error"]["kind"] == "invalid"
    slow = {**wanted, "dest": str(tmp_path / "slow.img"), "options": {"limit_read": "1M"}}
    name = curl(attached, "/backups", "-d", json.dumps({"backups": [slow]}))["id"]
    curl(attached, f"/backups/{name}", "-X", "DELETE")
    wait_until(lambda: curl(attached, f"/backups/{name}")["status"] == "cancelled", "the end of the backup")
    assert not (tmp_path / "slow.img").exists()
    assert curl(attached, "/detach", "-X", "POST")["detached"] == attached.name
    wait_until(lambda: not attached.folder.exists(), "the end of the daemon")


def test_only_the_owner_may_ask(attached: Attach, attaches: Attaches, root: None) -> None:
    control = attached.folder / "control.sock"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    assert stat.S_IMODE(attached.folder.stat().st_mode) == 0o700
    command = [
        "setpriv",
        f"--reuid={NOBODY}",
        "--clear-groups",
        "curl",
        "-sS",
        "--unix-socket",
        str(control),
        "http://x/status",
    ]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 7  # curl: could not connect
    for path in (attaches.base, attached.folder):
        path.chmod(0o755)
    control.chmod(0o666)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        os.seteuid(NOBODY)  # the kernel notes who connects
        try:
            client.connect(str(control))
        finally:
            os.seteuid(0)
        try:
            client.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            heard = client.recv(1)
        except (BrokenPipeError, ConnectionResetError):
            heard = b""
    assert heard == b""
    assert curl(attached, "/status")["name"] == attached.name


def test_metrics_are_in_the_format_of_prometheus(attached: Attach, tmp_path: Path) -> None:
    attached.backup(tmp_path / "out.img")
    with attached.client() as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert [line for line in samples if not _SAMPLE.fullmatch(line)] == []
    described = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    names = {re.split(r"[{ ]", line)[0] for line in samples}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= described
    assert 'blockcow_backups{status="complete"} 1' in samples
    assert [line for line in samples if line.startswith("blockcow_device_state") and line.endswith(" 1")]
    buckets = [float(line.split()[-1]) for line in samples if line.startswith("blockcow_suspended_seconds_bucket")]
    assert buckets == sorted(buckets)


def test_hooks_run_around_the_cut(attached: Attach, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    status = f'curl -sS --unix-socket {attached.folder}/control.sock http://x/status | grep -o \'"status": "[a-z]*"\''
    before, after = (f"(echo {word}; {status}) >> {diary}" for word in ("before", "after"))
    attached.backup(tmp_path / "out.img", "--before-cut", before, "--after-cut", after, "--limit-read", "16M")
    words = diary.read_text().split("\n")
    assert [words[0], words[3]] == ["before", "after"]
    assert "created" in words[1]
    assert "created" not in words[4]


@pytest.mark.parametrize("front", ["attached", "own"])
def test_a_failing_hook_aborts_before_the_cut(
    front: str, attaches: Attaches, disk: Path, tmp_path: Path, blockcow: Run
) -> None:
    if front == "attached":
        run: Any = attaches.attach(disk, frontend="nbd").run
        no_check = {"check": False}
    else:
        run, no_check = blockcow, {}
    arguments = ("backup", "--device", disk, "--container", "memory:1M", "--dest", tmp_path / "out.img")
    after = ("--after-cut", f"touch {tmp_path}/after")
    failed = run(*arguments, "--before-cut", "echo the pump is on fire; exit 3", *after, **no_check)
    assert_one_error(failed, 1, "before-cut", "exit code 3", "the pump is on fire")
    assert (tmp_path / "after").exists()
    slow = run(*arguments, "--before-cut", "sleep 1000 & wait", "--hook-timeout", "300ms", **no_check)
    assert_one_error(slow, 1, "300.0 ms", "--hook-timeout")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    good = run(*arguments, "--before-cut", "true", "--after-cut", "exit 4", **no_check)
    assert good.returncode == 0
    assert "exit code 4" in good.stderr


def test_a_group_is_cut_at_one_instant(root: None, attaches: Attaches, tmp_path: Path) -> None:
    disks = [tmp_path / name for name in ("first.img", "second.img")]
    for disk in disks:
        disk.write_bytes(bytes(8 * MIB))
    attached = attaches.attach(*disks)
    stop = threading.Event()
    writer = threading.Thread(target=alternate, args=(attached.paths, stop))
    writer.start()
    try:
        for number in range(5):
            images = [tmp_path / f"{number}-{disk.name}" for disk in disks]
            arguments: list[object] = ["--json", "--progress", "none"]
            for disk, image in zip(disks, images, strict=True):
                arguments += ["--device", disk, "--container", "memory:1M", "--dest", image]
            lines = attached.run("backup", *arguments).stdout.splitlines()
            summaries = [line for line in map(msgspec.json.decode, lines) if line["message_type"] == "summary"]
            assert [summary["device"] for summary in summaries] == [str(disk) for disk in disks]
            first, second = (int.from_bytes(image.read_bytes()[:8], "little") for image in images)
            assert first in (second, second + 1), "no instant was like that"
    finally:
        stop.set()
        writer.join()
    assert_one_error(
        attached.run("backup", "--device", "t", "--container", "memory:1M", "--dest", "x", check=False), 2, "group of 2"
    )


def alternate(paths: list[str], stop: threading.Event) -> None:
    """Writes ever larger numbers, to the first device first."""
    descriptors = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths]
    block = mmap.mmap(-1, 4096)
    number = 0
    while not stop.is_set():
        number += 1
        block[:8] = number.to_bytes(8, "little")
        for descriptor in descriptors:
            os.pwrite(descriptor, block, 0)
    for descriptor in descriptors:
        os.close(descriptor)


def test_one_of_a_group_that_breaks_breaks_all(
    root: None, attaches: Attaches, tmp_path: Path, cleanup: ExitStack
) -> None:
    disks = [tmp_path / name for name in ("first.img", "second.img")]
    for disk in disks:
        disk.write_bytes(os.urandom(8 * MIB))
    small = tmp_path / "small"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small))
    cleanup.callback(sh, "umount", str(small))
    attached = attaches.attach(*disks)
    arguments: list[object] = ["--json", "--progress", "none", "--limit-read", "1M"]
    for disk, image in zip(disks, (tmp_path / "out.img", small / "out.img"), strict=True):
        arguments += ["--device", disk, "--container", "memory:1M", "--dest", image]
    result = attached.run("backup", *arguments, check=False)
    assert result.returncode == 20, result.stderr
    lines = [msgspec.json.decode(line) for line in result.stdout.splitlines()]
    states = [line["status"] for line in lines if line["message_type"] == "summary"]
    assert states == ["cancelled", "broken"]
    assert not (tmp_path / "out.img").exists()


def test_what_is_refused_before_the_cut_is_told_with_its_reason(attached: Attach, tmp_path: Path) -> None:
    (tmp_path / "out.img").touch()
    arguments = ("backup", "--device", attached.name, "--container", "memory:1M", "--progress", "none")
    exists = attached.run(*arguments, "--dest", tmp_path / "out.img", check=False)
    assert_one_error(exists, 1, "out.img", "exists already")
    nowhere = attached.run(*arguments, "--dest", tmp_path / "no" / "out.img", check=False)
    assert_one_error(nowhere, 1, "there is no folder")
    planned = attached.run(*arguments, "--dest", tmp_path / "new.img", "--dry-run")
    assert "new.img" in planned.stdout
    assert not (tmp_path / "new.img").exists()
    assert attached.get("/status")["backups"] == []


def test_sigint_cancels_the_daemons_backup(attached: Attach, tmp_path: Path) -> None:
    arguments = ("--device", attached.name, "--container", "memory:1M", "--dest", tmp_path / "out.img")
    process = attached.start("backup", *arguments, "--limit-read", "1M", "--json")
    assert process.stdout is not None
    while "status" not in msgspec.json.decode(process.stdout.readline(), type=dict)["message_type"]:
        pass
    process.send_signal(2)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert summary_of(stdout)["status"] == "cancelled"
    assert attached.get("/status")["backups"][0]["status"] == "cancelled"


def test_detach_refuses_during_a_backup(attached: Attach, tmp_path: Path) -> None:
    arguments = ("--device", attached.name, "--container", "memory:1M", "--dest", tmp_path / "out.img")
    process = attached.start("backup", *arguments, "--limit-read", "1M", "--json")
    wait_until(lambda: [one["status"] for one in attached.get("/status")["backups"]] == ["active"], "the cut")
    assert_one_error(attached.run("detach", attached.name, check=False), 11, "backup is under way", "--force")
    forced = attached.run("detach", attached.name, "--force")
    assert "is cancelled" in forced.stderr
    process.communicate(timeout=60)
    assert process.returncode == 20


def test_status_and_a_waiting_backup_live_through_the_death_of_a_worker(attached: Attach, tmp_path: Path) -> None:
    arguments = ("--device", attached.name, "--container", "memory:1M", "--dest", tmp_path / "out.img")
    process = attached.start("backup", *arguments, "--limit-read", "8M", "--json", "--progress", "none")
    wait_until(lambda: [one["status"] for one in attached.get("/status")["backups"]] == ["active"], "the cut")
    before = attached.pid("worker")
    attached.kill("worker")
    assert attached.run("status", attached.name, "--json").returncode == 0
    attached.wait_for_other_worker(before)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert summary_of(stdout).items() >= {"status": "complete", "worker_restarts": 1}.items()


@pytest.mark.parametrize(
    "options",
    [{"limit_read": []}, {"block_size": 1.5}, {"ranges": [[1]]}, {"force": 3}, {"manifest": 5}, {"nonsense": 1}, []],
    ids=str,
)
def test_options_of_another_kind_are_refused_as_such(
    attached: Attach, disk: Path, tmp_path: Path, options: Any
) -> None:
    wanted = {"device": str(disk), "container": "memory:1M", "dest": str(tmp_path / "out.img"), "options": options}
    for path in ("/plan", "/backups"):
        error = curl(attached, path, "-d", json.dumps({"backups": [wanted]}))["error"]
        assert (error["kind"], "unexpected" in error["message"]) == ("invalid", False), error
    for body in ("[]", "3", '{"force": "yes"}'):
        assert curl(attached, "/detach", "-d", body)["error"]["kind"] == "invalid"
    assert curl(attached, "/status")["backups"] == []
