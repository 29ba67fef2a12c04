"""The control interface, asked at random over its own socket: it answers, foresees every failure, and goes on.

All of it is real but for the keeper, the processes that do errands, and the end of the daemon.
"""

import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blockcow import Device
from blockcow.daemon import errand, keeper
from blockcow.daemon.backups import Asked, Backups
from blockcow.daemon.control import Control, listen
from blockcow.daemon.folders import Config, Place, RunFolder, State
from blockcow.daemon.served import Served
from blockcow.daemon.store import Store
from blockcow.export import is_uri
from blockcow.plan import Plan
from blockcow.units import parse_size
from conftest import MIB
from mutate import corpus, fuzz

PATIENCE = 60.0
MOST_STAGING = 64 * MIB
CODES = {"invalid": 400, "not-found": 404, "busy": 409, "exists": 409, "state": 409}
"""As in docs/formats.md."""


class Daemon:
    """What a worker answers with, and what stands in for its surroundings."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        self.disk, self.out = folder / "disk.img", folder / "out"
        self.out.mkdir()
        self.disk.write_bytes(random.Random(1).randbytes(MIB))
        run = RunFolder(folder / "run")
        run.path.mkdir()
        device = cleanup.enter_context(Device(self.disk))
        config = Config(
            name="t", devices=[str(self.disk)], frontend="nbd", listen=None, foreground=False, as_json=False
        )
        state = State(name="t", frontend="nbd", places=[Place(device=str(self.disk))])
        self.served = Served(run, config, self._store(cleanup), state, [device])
        self.backups = Backups(self.served)
        self.backups.watch_resumed()
        self.path = str(run.control)
        self.force: list[bool] = []
        pids = {"keeper_pid": os.getppid(), "worker_pid": os.getpid()}
        control = Control(listen(self.path), self.served, self.backups, pids, self._detach, lambda: None)
        control.start()
        cleanup.callback(control.close)

    def begin(self) -> None:
        """Makes the first backup."""
        body = self.localised(corpus("control")["backup"].partition(b"\n")[2])
        assert b" 201 " in self.ask(b"POST /backups HTTP/1.1", body.replace(b"nightly7", b"first")).splitlines()[0]
        self.backups.find("first").after(2**62, PATIENCE)
        self.settle()

    @staticmethod
    def _store(cleanup: ExitStack) -> Store:
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper.send(theirs, {"do": "begin", "restarts": 0, "keeper": os.getppid(), "first": True})

        def keep() -> None:
            while (received := keeper.receive(theirs)) is not None:
                for descriptor in received[1]:
                    os.close(descriptor)
                keeper.send(theirs, {})

        threading.Thread(target=keep, daemon=True).start()
        cleanup.callback(theirs.close)
        store = Store(ours.detach())
        cleanup.callback(store._link.close)
        return store

    def _detach(self, force: bool) -> dict[str, Any]:
        self.force.append(force)
        return {"detached": "t", "cut_off": [], "hanging": []}

    def localised(self, data: bytes) -> bytes:
        """With this daemon's paths in it."""
        return data.replace(b"DEVICE", bytes(self.disk)).replace(b"FOLDER", bytes(self.out))

    def plan(
        self, device: str, loop_path: str | None, other_loops: list[str], folder: Path, options: dict[str, Any]
    ) -> Plan:
        """As `errand.plan` without another process; refuses what would harm this machine."""
        paths = [options["dest"], options.get("manifest") or options["dest"]]
        if not options["container"].startswith(("memory:", "device:")):
            paths.append(options["container"])
        if any(is_uri(path) or Path(path).parent != self.out for path in paths):
            raise ValueError("not in this test")
        if parse_size(options.get("staging_size") or 0) > MOST_STAGING:
            raise ValueError("not in this test either")
        request = {"device": device, "loop": loop_path, "others": other_loops, "folder": str(folder)}
        return errand._make({**request, "options": options})

    def ask(self, line: bytes, body: bytes) -> bytes:
        """The whole answer to a request."""
        head = [line, b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body)]
        return self.say(b"\r\n".join([*head, b"", body]))

    def say(self, raw: bytes) -> bytes:
        """What comes back until the connection ends."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(self.path)
            heard = b""
            try:
                client.sendall(raw)
                while part := client.recv(65536):
                    heard += part
            except (BrokenPipeError, ConnectionResetError):
                pass
        return heard

    def settle(self) -> None:
        """Ends what was begun, and removes what came of it."""
        for entry in self.backups.under_way():
            self.backups.cancel(entry)
            while not entry.over:
                entry.after(2**62, 1.0)
        for path in self.out.iterdir():
            path.unlink()


@pytest.fixture
def daemon(tmp_path: Path, cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon of one disk, with one backup that has ended: ``first``."""
    daemon = Daemon(tmp_path, cleanup)
    monkeypatch.setattr(errand, "plan", daemon.plan)
    daemon.begin()
    yield daemon
    daemon.settle()


def check(data: bytes, daemon: Daemon) -> None:
    """An answer, which says what is wrong if anything is, and not that nobody foresaw it."""
    line, _, body = daemon.localised(data).partition(b"\n")
    answer = daemon.ask(line + b" HTTP/1.1", body)
    daemon.settle()
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), answer
    code = int(head.split(b" ")[1])
    assert 200 <= code <= 500, head
    if code >= 400 and b"application/json" in head:
        error = json.loads(content)["error"]
        assert error["message"]
        assert code == CODES.get(error["kind"], 500), error
        assert error["kind"] != "internal", error
    else:  # what is no request, or not for anything that is here
        assert code < 500, head


def bodies(count: int) -> Iterator[bytes]:
    """Requests for backups that are JSON of the right shape, nearly; with values of all kinds in the wrong places."""
    options = [*Asked.__struct_fields__, "later"]
    values: list[Any] = ["", "0", "1", "4K", "90%", "30s", "break-backup", "fail-write", "auto", "none", "dest-exists"]
    values += [
        None,
        True,
        0,
        1,
        -1,
        4096,
        65536,
        2**31,
        2**63,
        2**64,
        10**30,
        0.5,
        1e-320,
        1e308,
        "9" * 400,
        "1" * 5000,
    ]
    values += [
        [],
        {},
        [[]],
        ["dest-exists"],
        ["container-exists", "x"],
        [[0, 4096]],
        [[4096, 1], [0, 1]],
        [[5, 2**63]],
        [[-1, 1]],
    ]
    places = [
        "memory:256K",
        "memory:0",
        "device:0+64K",
        "device:512K+64K",
        "device:free",
        "FOLDER/cow",
        "FOLDER",
        "DEVICE",
        "",
    ]
    dests = ["FOLDER/out.img", "FOLDER/other.img", "FOLDER", "DEVICE", "FOLDER/" + "x" * 300, ""]
    chance = random.Random(count)
    for _ in range(count):
        wanted: list[dict[str, Any]] = [
            {
                "device": chance.choice(["DEVICE"] * 9 + ["FOLDER"]),
                "container": chance.choice(places[:1] * 5 + places),
                "dest": chance.choice(dests[:1] * 5 + dests),
                "options": {chance.choice(options): chance.choice(values) for _ in range(chance.randrange(4))},
            }
            for _ in range(chance.choice([1, 1, 1, 1, 0, 2]))
        ]
        request = {"cut": chance.random() < 0.8, "backups": wanted}
        yield chance.choice([b"POST /backups\n", b"POST /backups\n", b"POST /plan\n"]) + json.dumps(request).encode()


def run(budget: int, daemon: Daemon) -> None:
    fuzz("control", budget, lambda data: check(data, daemon))
    fuzz("control_options", budget // 2, lambda data: check(data, daemon), bodies(budget // 2))
    answer = daemon.ask(b"GET /status HTTP/1.1", b"")
    assert b" 200 " in answer.splitlines()[0], answer
    assert any(daemon.force), "it was asked to detach"


def test_some(daemon: Daemon) -> None:
    run(300, daemon)


@pytest.mark.proof
def test_many(daemon: Daemon) -> None:
    run(3_000, daemon)
