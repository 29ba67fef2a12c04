"""Backups of attached devices whose container or destination is on an NBD server, through kills of the worker."""

import os
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from conftest import MIB, assert_one_error, sh
from live import Attach, Attaches, summary_of
from nbd_servers import Servers, content

SIZE = 32 * MIB


def new(path: Path) -> Path:
    """A file of zeroes as large as the device."""
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def data() -> bytes:
    return content(SIZE)


@pytest.fixture
def near(attaches: Attaches, tmp_path: Path, data: bytes) -> Attach:
    """The device, attached, with something on it."""
    attached = attaches.attach(new(tmp_path / "near.img"), frontend="nbd", name="near")
    (tmp_path / "in").write_bytes(data)
    sh("nbdcopy", str(tmp_path / "in"), attached.path)
    return attached


def test_one_blockcow_is_container_and_destination_of_another(
    near: Attach, attaches: Attaches, tmp_path: Path, data: bytes
) -> None:
    small = new(tmp_path / "cow.img")
    os.truncate(small, 4 * MIB)
    far = attaches.attach(new(tmp_path / "far.img"), small, frontend="nbd", name="far")
    dest, container = far.paths
    sheet = tmp_path / "sheet"
    arguments = ("--device", near.name, "--container", container, "--dest", dest, "--manifest", sheet, "--json")
    assert summary_of(near.run("backup", *arguments, "--progress", "none").stdout)["status"] == "complete"
    near.run("verify", dest, "--manifest", sheet)
    near.run("detach", "far")
    assert (tmp_path / "far.img").read_bytes() == data


def killed_meanwhile(near: Attach, *arguments: object) -> tuple[int, str, str]:
    """A backup whose worker is killed while it sweeps; its exit code and what it printed."""
    process = near.start("backup", "--device", near.name, *arguments, "--limit-read", "8M", "--json")
    assert process.stdout is not None
    while msgspec.json.decode(process.stdout.readline(), type=dict)["message_type"] != "status":
        pass
    near.kill_worker()
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def test_a_backup_to_a_server_goes_on_when_the_worker_is_killed(
    near: Attach, tmp_path: Path, cleanup: ExitStack, data: bytes
) -> None:
    far, sheet = new(tmp_path / "far.img"), tmp_path / "sheet"
    dest = Servers(tmp_path, cleanup).nbdkit("file", str(far)).uri
    code, stdout, stderr = killed_meanwhile(near, "--container", "memory:4M", "--dest", dest, "--manifest", sheet)
    assert code == 0, stderr + near.log()
    summary = summary_of(stdout)
    assert (summary["status"], summary["worker_restarts"]) == ("complete", 1)
    assert far.read_bytes() == data
    near.run("verify", dest, "--manifest", sheet)


def test_with_its_container_on_a_server_it_is_broken_and_says_so(
    near: Attach, tmp_path: Path, cleanup: ExitStack
) -> None:
    servers, out = Servers(tmp_path, cleanup), tmp_path / "out.img"
    container = servers.nbdkit("memory", "size=4M").uri
    code, stdout, stderr = killed_meanwhile(near, "--container", container, "--dest", out)
    assert code == 20, stderr + near.log()
    summary = summary_of(stdout)
    assert summary["status"] == "broken"
    assert "may still arrive" in summary["error"]
    assert not out.exists()
    assert near.backup(out, container=container)["status"] == "complete"


def test_what_cannot_be_is_refused_by_the_daemon_too(near: Attach, tmp_path: Path, cleanup: ExitStack) -> None:
    servers, sheet = Servers(tmp_path, cleanup), tmp_path / "sheet"
    small, good = servers.nbdkit("memory", "size=1M").uri, servers.nbdkit("memory", f"size={SIZE}").uri
    for container, dest, words in (
        ("memory:1M", small, "too small"),
        (good, good, "also the destination"),
        ("memory:1M", "nbds://localhost/", "TLS"),
    ):
        arguments = ("--device", near.name, "--container", container, "--dest", dest, "--manifest", sheet)
        assert_one_error(near.run("backup", *arguments, check=False), 2, words)
