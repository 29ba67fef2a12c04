"""attach under systemd and for users who are not root: in the foreground, by its unit, as a file served by FUSE."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from conftest import MIB, sh
from live import PATIENCE, Attaches

UNIT = Path(__file__).parents[2] / "contrib" / "blockcow@.service"
NOBODY = 65534


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "blockcow@sdb1.service"
    shutil.copy(UNIT, unit)
    sh("systemd-analyze", "verify", str(unit))


def test_in_the_foreground_it_tells_systemd_and_detaches_on_sigterm(
    attaches: Attaches, tmp_path: Path, cleanup: ExitStack
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(8 * MIB))
    notify = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    notify.bind(str(attaches.base / "notify"))
    notify.settimeout(PATIENCE)
    command = [sys.executable, "-m", "blockcow", "attach", str(disk), "--foreground", "--frontend", "nbd", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**attaches.environment, "NOTIFY_SOCKET": str(attaches.base / "notify")},
    )
    cleanup.callback(process.kill)
    assert notify.recv(100) == b"READY=1"
    assert process.stdout is not None
    assert msgspec.json.decode(process.stdout.readline())["devices"][0]["device"] == str(disk)
    assert int((attaches.base / "disk.img" / "keeper.pid").read_text()) == process.pid
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not (attaches.base / "disk.img").exists()


def test_a_user_without_root_has_a_file(root: None, cleanup: ExitStack) -> None:
    if shutil.which("fusermount3") is None or shutil.which("setpriv") is None:
        pytest.skip("fusermount3 (package fuse3) or setpriv (util-linux) is missing")
    base = Path(tempfile.mkdtemp(prefix="bc-"))
    cleanup.callback(shutil.rmtree, base, ignore_errors=True)
    disk, run = base / "disk.img", base / "run"
    disk.write_bytes(bytes(8 * MIB))
    for path in (base, disk):
        os.chown(path, NOBODY, NOBODY)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", f"BLOCKCOW_RUN_DIR={run}"]
    blockcow = [*user, sys.executable, "-m", "blockcow"]
    if Path("/dev/fuse").stat().st_mode & 0o006 != 0o006:
        pytest.skip("/dev/fuse is not for every user here")
    if subprocess.run([*blockcow, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("another user may not read this Python")
    attached = msgspec.json.decode(sh(*blockcow, "attach", str(disk), "--name", "t", "--json"))
    try:
        assert attached["frontend"] == "fuse"
        file = attached["devices"][0]["path"]
        sh(
            *user,
            "sh",
            "-c",
            f"echo hello > {file}.new; dd if={file}.new of={file} conv=notrunc status=none; rm {file}.new",
        )
        arguments = ("--device", file, "--container", "memory:1M", "--dest", str(base / "out.img"))
        sh(*blockcow, "backup", *arguments, "--progress", "none")
        assert (base / "out.img").read_bytes()[:6] == b"hello\n"
    finally:
        sh(*blockcow, "detach", "t")
    assert disk.read_bytes()[:6] == b"hello\n"
    assert list(run.iterdir()) == []
