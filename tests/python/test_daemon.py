"""The daemon when its processes die, and what is left then: keeper and worker killed, a worker that cannot start."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from blockcow import loop
from blockcow.daemon import keeper
from conftest import MIB, assert_one_error, sh
from live import Attach, Attaches, wait_until

SIZE = 48 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image file full of noise."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def attached(root: None, disk: Path, attaches: Attaches) -> Attach:
    """The image file behind FUSE and a loop device."""
    return attaches.attach(disk, frontend="fuse")


@contextmanager
def mounted(path: str, point: Path) -> Iterator[Path]:
    """Mounts, and unmounts even if the device is gone."""
    point.mkdir(exist_ok=True)
    sh("mount", path, str(point))
    try:
        yield point
    finally:
        sh("umount", str(point))


def backup_under_way(attached: Attach, dest: Path, cleanup: ExitStack) -> "subprocess.Popen[str]":
    """A backup of many seconds, past its cut."""
    arguments = ("--device", attached.name, "--container", "memory:4M", "--dest", dest, "--limit-read", "2M")
    process = attached.start("backup", *arguments, "--progress", "none")
    cleanup.callback(process.kill)
    wait_until(lambda: [one["status"] for one in attached.get("/status")["backups"]] == ["active"], "the cut")
    return process


def test_what_a_killed_daemon_leaves_is_cleaned(
    attached: Attach, disk: Path, attaches: Attaches, tmp_path: Path, cleanup: ExitStack
) -> None:
    sh("mkfs.ext4", "-q", attached.path)
    with mounted(attached.path, tmp_path / "mnt") as point:
        (point / "flushed").write_bytes(b"safe" * 10_000)
        sh("sync", str(point / "flushed"))
        process = backup_under_way(attached, tmp_path / "out.img", cleanup)
        attached.kill("keeper", "worker")
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 20, stderr
        assert "no answer" in stderr
    assert (tmp_path / "out.img.partial").exists()
    assert "was killed" in attached.run("status").stderr
    cleaned = attached.run("detach", "--clean").stderr
    assert f"{tmp_path}/out.img: the backup is broken" in cleaned
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    assert list(attaches.base.iterdir()) == []
    assert not Path(f"/sys/block/{Path(attached.path).name}/loop").exists()
    assert str(attached.folder) not in Path("/proc/self/mountinfo").read_text()
    again = attaches.attach(disk)
    with mounted(again.path, tmp_path / "mnt") as point:
        assert (point / "flushed").read_bytes() == b"safe" * 10_000
    sh("e2fsck", "-fn", again.path)


def test_killed_processes_do_not_wait_for_what_nobody_can_write_any_more(attached: Attach) -> None:
    pids = [attached.pid(who) for who in ("keeper", "worker")]
    Path(attached.path).write_bytes(os.urandom(16 * MIB))
    with Path(attached.path).open("r+b") as program:
        program.write(os.urandom(16 * MIB))
        program.flush()  # to the page cache, where it is dirty
        attached.kill("keeper", "worker")
        wait_until(lambda: not any(is_running(pid) for pid in pids), "their end")
    assert f"{attached.path}: detached" in attached.run("detach", "--clean").stderr


def is_running(pid: int) -> bool:
    """Whether a process is there, and not only its name in the table."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_next_attach_cleans_as_well(attached: Attach, disk: Path, attaches: Attaches) -> None:
    attached.kill("keeper", "worker")
    wait_until(lambda: not attached.is_live(), "their death")
    again = attaches.try_attach(disk, "--name", "other", "--json")
    assert again.returncode == 0, again.stderr
    assert "cleaned up" in again.stderr
    assert [folder.name for folder in attaches.base.iterdir()] == ["other"]


def test_a_live_daemon_is_not_cleaned(attached: Attach) -> None:
    assert attached.run("detach", "--clean").stderr == ""
    assert_one_error(attached.run("detach", "--clean", attached.name, check=False), 11, "alive")
    assert attached.is_live()


def test_a_worker_that_cannot_start_is_given_up_and_programs_get_errors(
    root: None, disk: Path, attaches: Attaches, tmp_path: Path
) -> None:
    flag = tmp_path / "no-more-workers"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if 'blockcow.daemon.worker' in sys.orig_argv and os.path.exists({str(flag)!r}):\n    os._exit(9)\n"
    )
    attaches.environment["PYTHONPATH"] = str(tmp_path)
    attached = attaches.attach(disk)
    keeper = attached.pid("keeper")
    flag.touch()
    attached.kill("worker")
    with Path(attached.path).open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output error"):
        file.read(4096)
    wait_until(lambda: not Path(f"/proc/{keeper}").exists(), "the keeper to give up")
    assert "10 times in a row" in attached.log()
    attached.run("detach", "--clean")


def test_a_worker_killed_again_and_again_is_replaced_each_time(attached: Attach) -> None:
    descriptor = os.open(attached.path, os.O_RDWR | os.O_SYNC)
    try:
        for number in range(6):
            os.pwrite(descriptor, bytes([number]) * 4096, number * MIB)
            attached.kill_worker()
            assert os.pread(descriptor, 4096, number * MIB) == bytes([number]) * 4096
    finally:
        os.close(descriptor)
    assert attached.get("/status")["worker_restarts"] == 6
    attached.run("detach", attached.name)


def test_a_worker_whose_keeper_is_killed_serves_on_and_can_be_detached(attached: Attach, attaches: Attaches) -> None:
    attached.kill("keeper")
    wait_until(lambda: attached.get("/status")["warnings"], "the worker to see it")
    with Path(attached.path).open("r+b", buffering=0) as file:
        file.write(bytes(4096))
    assert_one_error(attached.run("restart", attached.name, check=False), 1, "keeper was killed")
    assert attached.run("detach", "--clean").stderr == ""
    attached.run("detach", attached.name)
    assert list(attaches.base.iterdir()) == []


def test_an_attach_that_fails_says_why_and_leaves_nothing(attaches: Attaches, disk: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    failed = attaches.try_attach(disk, "--frontend", "nbd", "--listen", f"unix:{taken}")
    assert_one_error(failed, 11, str(taken), "in use")
    assert list(attaches.base.iterdir()) == []
    assert_one_error(attaches.try_attach(tmp_path / "nothing"), 1, "nothing", "no such file")
    assert_one_error(attaches.try_attach(disk, disk), 2, "named twice")
    assert_one_error(attaches.try_attach(disk, "--name", "a/b"), 2, "a/b")
    assert_one_error(attaches.try_attach(disk, "--listen", "udp:1"), 2, "udp:1")
    attached = attaches.attach(disk, frontend="nbd")
    assert_one_error(attaches.try_attach(disk, "--name", "other"), 11, f"attached as {attached.name}")


def test_a_frozen_file_system_is_thawed_though_the_worker_is_killed(
    root: None, tmp_path: Path, cleanup: ExitStack
) -> None:
    image = tmp_path / "fs.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    sh("mkfs.ext4", "-q", str(image))
    device = loop.attach(str(image), sector=512)
    cleanup.callback(device.detach)
    with mounted(device.path, tmp_path / "mnt") as point:
        script = (
            "import sys\nfrom blockcow.daemon import errand\n"
            f"with errand.at_rest('freeze', [{str(point)!r}], 100.0, []):\n"
            "    print('frozen', flush=True)\n    sys.stdin.read()"
        )
        worker = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        cleanup.callback(worker.kill)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "frozen\n"
        worker.kill()
        worker.communicate()
        sh("timeout", "30", "touch", str(point / "thawed"))


def test_an_errand_whose_worker_died_leaves_no_loop_device(root: None, tmp_path: Path) -> None:
    """The cleaning after the worker may have been over before the device was there."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.send(ours, {"file": str(image), "sector": 512, "read_only": False})
    ours.close()
    with theirs:
        command = [sys.executable, "-P", "-m", "blockcow.daemon.errand", "loop", str(theirs.fileno())]
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert loop.on_file(str(image)) == []
