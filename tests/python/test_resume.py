"""A backup goes on in another process when its own is killed: the extension's part of it, `Backup.kept` and
`Device._resume`. Kills at every moment are tried by the engine's tests (rust/engine/tests/resume)."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockcow
from blockcow import StateError
from blockcow.node import find
from blockcow.plan import make_plan
from nbd_servers import Servers

FIRST = """
import itertools, os, socket, sys
import blockcow
from blockcow.node import find
from blockcow.plan import make_plan

device_path, container, dest, manifest, number = sys.argv[1:]
keeper = socket.socket(fileno=int(number))
with blockcow.Device(device_path) as device:
    plan = make_plan(find(device_path), container, dest, manifest=manifest, limit_read="1M", cbw_timeout="120s")
    backup = device._prepare(**plan.arguments(), keep=True)
    kept, note = backup.kept()
    names = " ".join(kept)
    socket.send_fds(keeper, [f"{names}\\n{note}".encode()], list(kept.values()))
    for descriptor in kept.values():
        os.close(descriptor)
    assert keeper.recv(1)
    backup.cut(10.0)
    # Every second block is written over before the keeper hears of the cut.
    for offset in range(0, device.size, 8192):
        device.pwrite(os.urandom(4096), offset)
    keeper.send(b"cut")
    for block in itertools.cycle(range(device.size // 4096)):
        device.pwrite(os.urandom(4096), block * 4096)
"""

SECOND = """
import json, os, sys
import blockcow
from blockcow.export import NbdExport, is_uri

device_path, note, kept, dest = sys.argv[1:]
kept = json.loads(kept)
export = NbdExport(dest, "destination", timeout=60) if is_uri(dest) else None
with blockcow.Device(device_path) as device:
    backup = device._resume(kept, note, dest_export=export)
    for descriptor in kept.values():
        os.close(descriptor)
    for offset in range(4096, device.size, 8192):
        device.pwrite(os.urandom(4096), offset)
    backup.wait()
    print(json.dumps(backup.status()))
"""


@pytest.mark.parametrize("container", ["memory:16M", "file"])
def test_a_killed_backup_goes_on_in_another_process(image: Path, tmp_path: Path, container: str) -> None:
    dest = tmp_path / "dest.img"
    killed_and_resumed(image, str(tmp_path / "container") if container == "file" else container, str(dest), dest)


def test_a_killed_backup_to_a_server_goes_on(image: Path, tmp_path: Path, cleanup: ExitStack) -> None:
    dest = tmp_path / "dest.img"
    dest.touch()
    os.truncate(dest, image.stat().st_size)
    server = Servers(tmp_path, cleanup).nbdkit("file", str(dest))
    killed_and_resumed(image, "memory:16M", server.uri, dest)


def killed_and_resumed(image: Path, container: str, dest: str, made: Path) -> None:
    """Kills a backup, has another process go on, and compares ``made``, the file at the destination."""
    expected = image.read_bytes()
    manifest = f"{made}.manifest"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        number = theirs.fileno()
        command = [sys.executable, "-c", FIRST, str(image), container, dest, manifest, str(number)]
        first = subprocess.Popen(command, pass_fds=[number])
        try:
            message, descriptors, _, _ = socket.recv_fds(ours, 1 << 16, 16)
            ours.send(b"go")
            theirs.close()
            assert ours.recv(8) == b"cut"
        finally:
            first.kill()
            first.wait()
    names, note = message.decode().split("\n", 1)
    kept = dict(zip(names.split(), descriptors, strict=True))
    second = [sys.executable, "-c", SECOND, str(image), note, json.dumps(kept), dest]
    said = subprocess.run(second, pass_fds=descriptors, check=True, capture_output=True, text=True, timeout=120).stdout
    for descriptor in descriptors:
        os.close(descriptor)
    status = json.loads(said)
    assert (status["status"], status["worker_restarts"]) == ("complete", 1)
    assert made.read_bytes() == expected
    assert not blockcow.verify(dest, manifest)["damaged"]


def test_only_what_was_prepared_for_it_is_kept(image: Path, tmp_path: Path) -> None:
    with blockcow.Device(image) as device:
        arguments = make_plan(find(str(image)), "memory:1M", tmp_path / "dest.img").arguments()
        backup = device._prepare(**arguments)
        with pytest.raises(StateError, match="not prepared for that"):
            backup.kept()
        backup.cancel()
        assert backup.wait(60)
        kept, note = {"image": os.open(image, os.O_RDONLY)}, "{}"
        with pytest.raises(StateError, match="arena was not kept"):
            device._resume(kept, note)
        os.close(kept["image"])
