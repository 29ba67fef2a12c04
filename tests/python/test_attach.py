"""attach, detach, status, restart and backups of attached devices over both front-ends, from the command line."""

import os
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from conftest import MIB, assert_one_error, sh
from live import Attach, Attaches, wait_until

SIZE = 64 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty image file."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def attached(root: None, disk: Path, attaches: Attaches) -> Attach:
    """The image file behind FUSE and a loop device."""
    return attaches.attach(disk, frontend="fuse")


def test_a_file_system_is_made_backed_up_and_detached(attached: Attach, disk: Path, tmp_path: Path) -> None:
    assert attached.path.startswith("/dev/loop")
    assert (attached.folder / "device").readlink() == Path(attached.path)
    sh("mkfs.ext4", "-q", attached.path)
    summary = attached.backup(tmp_path / "out.img")
    assert (summary["status"], summary["worker_restarts"]) == ("complete", 0)
    sh("e2fsck", "-fn", str(tmp_path / "out.img"))
    attached.run("detach", attached.name)
    wait_until(lambda: not attached.folder.exists(), "the run folder to go")
    assert not Path(f"/sys/block/{Path(attached.path).name}/loop").exists()
    assert disk.read_bytes() == (tmp_path / "out.img").read_bytes()


def test_nbd_round_trip(disk: Path, attaches: Attaches, tmp_path: Path) -> None:
    attached = attaches.attach(disk, frontend="nbd")
    content = os.urandom(MIB)
    (tmp_path / "in").write_bytes(content)
    sh("nbdcopy", str(tmp_path / "in"), attached.path)
    assert attached.backup(tmp_path / "out.img")["status"] == "complete"
    assert (tmp_path / "out.img").read_bytes()[:MIB] == content
    attached.run("detach", attached.name)
    assert disk.read_bytes()[:MIB] == content
    assert list(attaches.base.iterdir()) == []


def test_a_backup_goes_on_when_the_worker_is_killed(attached: Attach, tmp_path: Path) -> None:
    Path(attached.path).write_bytes(os.urandom(SIZE))
    sh("sync")
    arguments = ("--device", attached.path, "--container", "memory:4M", "--dest", tmp_path / "out.img")
    process = attached.start("backup", *arguments, "--limit-read", "16M", "--json")
    assert process.stdout is not None
    while "status" not in msgspec.json.decode(process.stdout.readline(), type=dict)["message_type"]:
        pass
    before = Path(attached.path).read_bytes()
    attached.kill_worker()
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr + attached.log()
    summary = msgspec.json.decode(stdout.splitlines()[-1])
    assert (summary["status"], summary["worker_restarts"]) == ("complete", 1)
    assert (tmp_path / "out.img").read_bytes() == before


@pytest.mark.parametrize(("consistency", "clean"), [("auto", True), ("freeze", True), ("none", False)])
def test_a_mounted_file_system_is_frozen_around_the_cut(
    attached: Attach, tmp_path: Path, cleanup: ExitStack, consistency: str, clean: bool
) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    point = tmp_path / "mnt"
    point.mkdir()
    sh("mount", attached.path, str(point))
    cleanup.callback(sh, "umount", str(point))
    (point / "dirty").write_bytes(os.urandom(MIB))  # not synced: a freeze writes it
    attached.backup(tmp_path / "out.img", "--consistency", consistency)
    features = sh("dumpe2fs", "-h", str(tmp_path / "out.img"))
    assert ("needs_recovery" not in features) == clean
    if clean:
        sh("debugfs", "-R", f"dump /dirty {tmp_path}/dirty", str(tmp_path / "out.img"))
        assert (tmp_path / "dirty").read_bytes() == (point / "dirty").read_bytes()
    (point / "thawed").write_bytes(b"goes on")


def test_places_that_would_wait_for_themselves_are_refused(
    attached: Attach, tmp_path: Path, cleanup: ExitStack
) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    point = tmp_path / "mnt"
    point.mkdir()
    sh("mount", attached.path, str(point))
    cleanup.callback(sh, "umount", str(point))
    arguments = ("backup", "--device", attached.path, "--container", "memory:1M", "--dest")
    assert_one_error(attached.run(*arguments, point / "out.img", check=False), 11, "another device")
    assert_one_error(attached.run(*arguments, attached.path, check=False), 11, attached.path)
    assert attached.get("/status")["backups"] == []


def test_detach_refuses_while_mounted_and_forces(attached: Attach, tmp_path: Path) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    point = tmp_path / "mnt"
    point.mkdir()
    sh("mount", attached.path, str(point))
    try:
        assert_one_error(attached.run("detach", attached.name, check=False), 11, f"mounted at {point}", "--force")
        forced = attached.run("detach", attached.name, "--force")
        assert "get errors" in forced.stderr
        assert f"cut off: {attached.path} is mounted at {point}" in forced.stderr
    finally:
        sh("umount", "--lazy", str(point))
    wait_until(lambda: not attached.folder.exists(), "the run folder to go")


def test_status_and_restart(attached: Attach, disk: Path) -> None:
    answer = msgspec.json.decode(attached.run("status", "--json").stdout)
    assert answer["devices"][0].items() >= {"device": str(disk), "path": attached.path, "size": SIZE}.items()
    assert "passing" in attached.run("status").stdout
    before = attached.pid("worker")
    attached.run("restart", attached.name)
    assert attached.pid("worker") != before
    assert msgspec.json.decode(attached.run("status", "--json").stdout)["worker_restarts"] == 1
    assert_one_error(attached.run("status", "nobody", check=False), 1, "nobody", attached.name)
