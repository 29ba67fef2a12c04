"""`blockcow restart`: puts a new worker in place of the running one, from the code that is installed now."""

import time

import click

from blockcow._blockcow import TimeoutExpired
from blockcow.cli.verb import Verb, say
from blockcow.daemon import folders
from blockcow.daemon.client import Client
from blockcow.errors import failure

_PATIENCE = 60.0  # seconds


@click.command(cls=Verb)
@click.argument("name")
def restart(name: str) -> None:
    """Replaces the worker of NAME, after an upgrade for example. Programs see a pause; backups go on."""
    client = Client(folders.live(name))
    before = client.get("/status")
    client.post("/restart")
    until = time.monotonic() + _PATIENCE
    while True:
        now = client.get("/status")
        if now["worker_pid"] != before["worker_pid"]:
            say(f"blockcow: {name} is served by process {now['worker_pid']} now")
            return
        if time.monotonic() > until:
            raise failure(TimeoutExpired, f"restart {name}", f"no new worker came; see {client.folder.log}")
        time.sleep(0.05)
