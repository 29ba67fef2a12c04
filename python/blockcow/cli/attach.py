"""`blockcow attach`: checks the devices and starts the daemon that stands in front of them."""

import os
import re
from contextlib import suppress
from pathlib import Path

import click

from blockcow._blockcow import BusyError
from blockcow.cli.verb import Verb, say
from blockcow.daemon import folders, report, start
from blockcow.daemon.clean import clean
from blockcow.preflight import check_device
from blockcow.usage import Survey

_TCP = re.compile(r"tcp://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})")


@click.command(cls=Verb)
@click.argument("devices", nargs=-1, required=True, type=click.Path(readable=False))
@click.option("--name", help="What the attached devices are called.  [default: the last part of the first path]")
@click.option(
    "--frontend",
    type=click.Choice(["auto", "fuse", "nbd"]),
    default="auto",
    show_default=True,
    help="How programs come.",
)
@click.option(
    "--listen", help="Where NBD clients connect: unix:PATH or tcp://127.0.0.1:PORT.  [default: in the run folder]"
)
@click.option("--foreground", is_flag=True, help="Do not go to the background; SIGTERM detaches. For systemd.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def attach(
    devices: tuple[str, ...], name: str | None, frontend: str, listen: str | None, foreground: bool, as_json: bool
) -> None:
    """Stands in front of DEVICES, so that any program can go on using them during a backup.

    Prints for each where programs find it from now on: a block device (as root), a file, or an NBD socket. Several
    devices are one group, of which a backup makes one cut.
    """
    paths = [str(Path(device).absolute()) for device in devices]
    folder = folders.folder(name or re.sub(r"[^A-Za-z0-9._@:-]", "-", Path(paths[0]).name))
    target = None if listen is None else _target(listen)
    _require_free(paths)
    _clean_what_is_left()
    with folders.held(folder) as lock:
        config = folders.Config(
            name=folder.name, devices=paths, frontend=frontend, listen=target, foreground=foreground, as_json=as_json
        )
        if foreground:
            start.attach_in_foreground(folder, config, lock)
        report.say(start.attach(folder, config, lock), as_json)


def _clean_what_is_left() -> None:
    for folder in folders.all_folders():
        with suppress(BusyError), folders.held(folder):
            for line in clean(folder):
                say(f"blockcow: cleaned up: {line}")


def _require_free(paths: list[str]) -> None:
    survey = Survey()
    for path in paths:
        if (found := folders.match(path)) is not None:
            raise found.busy(f"attach {path}")
    nodes = [check_device(path, survey) for path in paths]
    for number, node in enumerate(nodes):
        if node.key in [other.key for other in nodes[:number]]:
            raise ValueError(f"{node.path} is named twice: name each device once")


def _target(listen: str) -> str:
    scheme, _, path = listen.partition(":")
    if scheme == "unix" and path:
        return f"unix:{os.path.abspath(path)}"  # noqa: PTH100 - a link is to stay one
    match = _TCP.fullmatch(listen)
    if match is None or not 0 < int(match.group(2)) < 65536:
        raise ValueError(f"{listen!r} is no place to listen: write unix:PATH or tcp://127.0.0.1:PORT")
    if match.group(1) not in ("127.0.0.1", "localhost", "[::1]"):
        say("blockcow: warning: NBD has no password here: whoever reaches that address can read and write the devices")
    return listen
