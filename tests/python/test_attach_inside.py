"""A container inside the file system on an attached device: from the command line, and through kills of the daemon."""

import random
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import msgspec
import pytest

from attached import mounted
from conftest import MIB, assert_one_error, sh
from live import Attach, Attaches, wait_until
from test_inside import KINDS, assert_clean, fill, overwrite

SIZE = 400 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def attached(root: None, disk: Path, attaches: Attaches) -> Attach:
    return attaches.attach(disk, frontend="fuse")


def names(point: Path) -> set[str]:
    return {entry.name for entry in point.iterdir()} - {"lost+found"}


def begin(attached: Attach, point: Path, dest: Path) -> Popen[str]:
    """Starts a slow backup through a container inside; returns once it is under way."""
    options = ("--container-size", "8M", "--staging-size", "64K", "--limit-read", "8M", "--cbw-timeout", "60s")
    process = attached.start(
        "backup", "--device", attached.path, "--container", point / "cow", "--dest", dest, *options, "--json"
    )
    assert process.stdout is not None
    while True:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        if msgspec.json.decode(line).get("state", msgspec.json.decode(line).get("status")) == "active":
            return process


@pytest.mark.parametrize("filesystem", KINDS)
def test_it_is_made_used_and_removed(attached: Attach, tmp_path: Path, cleanup: ExitStack, filesystem: str) -> None:
    sh(f"mkfs.{filesystem}", "-q", attached.path)
    point = mounted(cleanup, attached.path)
    fill(point, "old", 16 * MIB, 1)
    summary = attached.backup(tmp_path / "out.img", "--container-size", "8M", container=str(point / "cow"))
    assert summary["status"] == "complete"
    assert names(point) == {"old"}
    assert_clean(filesystem, tmp_path / "out.img", cleanup)


def test_a_backup_through_it_goes_on_when_the_worker_is_killed(
    attached: Attach, tmp_path: Path, cleanup: ExitStack
) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    point = mounted(cleanup, attached.path)
    fill(point, "old", 32 * MIB, 1)
    process = begin(attached, point, tmp_path / "out.img")
    fill(point, "old", 16 * MIB, 2)
    attached.kill_worker()
    fill(point, "new", 16 * MIB, 3)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr + attached.log()
    summary = msgspec.json.decode(stdout.splitlines()[-1])
    assert (summary["status"], summary["worker_restarts"]) == ("complete", 1)
    assert not (point / "cow").exists()
    sh("e2fsck", "-fn", str(tmp_path / "out.img"))
    image = mounted(cleanup, str(tmp_path / "out.img"), "-o", "loop")
    assert (image / "old").read_bytes() == random.Random(1).randbytes(32 * MIB)
    assert not (image / "new").exists()


@pytest.mark.parametrize("filesystem", KINDS)
def test_killed_at_random_moments_under_load_the_image_is_whole_or_there_is_none(
    attached: Attach, tmp_path: Path, cleanup: ExitStack, filesystem: str
) -> None:
    sh(f"mkfs.{filesystem}", "-q", attached.path)
    point = mounted(cleanup, attached.path)
    fill(point, "old", 32 * MIB, 1)
    stop, failures, chance = threading.Event(), list[Exception](), random.Random(4)
    writer = threading.Thread(target=overwrite, args=(point, stop, failures))
    cleanup.callback(writer.join)
    cleanup.callback(stop.set)
    writer.start()
    kills = complete = 0
    while complete < 3:
        dest = tmp_path / f"out{kills}.img"
        options = ("--container-size", "2M", "--staging-size", "64K", "--limit-read", "24M", "--cbw-timeout", "60s")
        process = attached.start(
            "backup", "--device", attached.path, "--container", point / "cow", "--dest", dest, *options, "--json"
        )
        for _ in range(2):
            time.sleep(chance.uniform(0, 1))
            attached.kill_worker()
            kills += 1
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 1, 20), stderr
        assert dest.exists() == (process.returncode == 0), stderr
        assert kills < 40, f"it never goes on: {stderr}"
        wait_until(lambda: not (point / "cow").exists(), "the container to be removed")
        if process.returncode == 0:
            assert_clean(filesystem, dest, cleanup)
            complete += 1
            dest.unlink()
    stop.set()
    writer.join()
    assert failures == []


def test_killed_while_the_container_is_made_it_goes(attached: Attach, tmp_path: Path, cleanup: ExitStack) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    point = mounted(cleanup, attached.path)
    for number in range(10):
        dest = tmp_path / f"out{number}.img"
        command = ("backup", "--device", attached.path, "--container", point / "cow", "--container-size", "8M")
        process = attached.start(*command, "--dest", dest)
        wait_until((point / "cow").exists, "the container to be made")
        attached.kill_worker()
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 1, 20), stderr
        wait_until(lambda: not (point / "cow").exists(), "the container to be removed")
        assert not dest.with_name(f"{dest.name}.partial").exists()
    assert attached.get("/status")["backups"][-1]["over"]


@pytest.mark.parametrize("filesystem", KINDS)
def test_what_a_killed_daemon_left_is_removed_when_it_is_mounted_again(
    attached: Attach, disk: Path, attaches: Attaches, tmp_path: Path, cleanup: ExitStack, filesystem: str
) -> None:
    sh(f"mkfs.{filesystem}", "-q", attached.path)
    with ExitStack() as stack:
        point = mounted(stack, attached.path)
        fill(point, "old", 16 * MIB, 1)
        process = begin(attached, point, tmp_path / "out.img")
        fill(point, "flushed", MIB, 3)
        attached.kill("keeper", "worker")
        process.communicate(timeout=60)
        assert process.returncode != 0
        cleaned = attached.run("detach", "--clean")
        assert f"{point}/cow: the container stays until its file system is attached and mounted" in cleaned.stderr
    assert not (tmp_path / "out.img").exists()
    again = attaches.attach(disk, frontend="fuse")
    point.mkdir()
    cleanup.callback(point.rmdir)
    sh("mount", again.path, str(point))
    cleanup.callback(sh, "umount", str(point))
    wait_until(lambda: f"{point}/cow, left by a daemon that was killed, is removed" in again.log(), "the cleaning")
    assert names(point) == {"old", "flushed"}
    assert (point / "flushed").read_bytes() == random.Random(3).randbytes(MIB)
    assert again.backup(tmp_path / "next.img", container=str(point / "cow"))["status"] == "complete"
    wait_until(lambda: [entry.name for entry in attaches.base.iterdir()] == [again.name], "nothing to be left")


def test_nothing_else_is_written_through_the_device(attached: Attach, tmp_path: Path, cleanup: ExitStack) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    point = mounted(cleanup, attached.path)
    common = ("backup", "--device", attached.name, "--container", "memory:1M", "--dest")
    inside = attached.run(*common, point / "out.img", check=False)
    assert_one_error(inside, 11, f"lies in the file system mounted at {point}")
    manifest = attached.run(*common, tmp_path / "out.img", "--manifest", point / "m", check=False)
    assert_one_error(manifest, 11, f"use {point}/m as the manifest", "blockcow itself serves")
    assert names(point) == set()


def test_status_says_how_firm_it_stands(attached: Attach) -> None:
    footing = attached.get("/status")["footing"]
    assert footing["memory_locked"] == "yes", footing
    locked = Path(f"/proc/{attached.pid('worker')}/status").read_text().split("VmLck:")[1].split()[0]
    assert int(locked) > 1024
    before = attached.pid("worker")
    attached.run("restart", attached.name)
    assert attached.pid("worker") != before
    assert attached.get("/status")["footing"] == footing
