"""`blockcow status`: what is attached, where programs find it, and how its backups stand."""

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from blockcow._blockcow import BlockcowError
from blockcow.cli.verb import FAILURE, Verb, VerbFailedError, print_json, say, say_error
from blockcow.daemon import folders
from blockcow.daemon.client import Client
from blockcow.units import format_size


@click.command(cls=Verb)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, one for each attach.")
def status(name: str | None, as_json: bool) -> None:
    """Shows what is attached: all of it, or NAME."""
    if name is None:
        chosen = folders.all_folders()
    else:
        match = folders.match(name) if "/" in name else None
        chosen = [folders.live(name) if match is None else match.folder]
    answers, failed = [], False
    for folder in chosen:
        if not folder.is_live():
            say(f"blockcow: {folder.name} was killed; clean up with: blockcow detach --clean {folder.name}")
            continue
        try:
            answers.append(Client(folder).get("/status"))
        except (BlockcowError, OSError) as error:
            say_error(error)
            failed = True
    if as_json:
        for answer in answers:
            print_json("attached", answer)
    elif answers:
        _show(answers)
    elif not failed:
        say("blockcow: nothing is attached")
    if failed:
        raise VerbFailedError(FAILURE)


def _show(answers: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "DEVICE", "SIZE", "PROGRAMS USE", "STATE", "RESTARTS"):
        table.add_column(title, overflow="fold")
    for answer in answers:
        for device in answer["devices"]:
            size, restarts = format_size(device["size"]), str(answer["worker_restarts"])
            table.add_row(answer["name"], device["device"], size, device["path"], device["state"], restarts)
    console = Console(soft_wrap=True)
    console.print(table)
    for answer in answers:
        for backup in answer["backups"]:
            for part in backup["parts"]:
                console.print(_backup_line(backup["id"], part), markup=False, highlight=False)
        for warning in answer["warnings"]:
            say(f"blockcow: warning: {answer['name']}: {warning}")


def _backup_line(name: str, part: dict[str, Any]) -> str:
    share = 100 * part["done_bytes"] // part["device_bytes"] if part["device_bytes"] else 100
    line = f"backup {name}: {part['device']} to {part['dest']}: {part['status']}"
    if part["status"] == "active":
        fill = f"{format_size(part['container_used_bytes'])} of {format_size(part['container_capacity_bytes'])}"
        line += f", {share}%, container {fill}, {part['suspended_now']} suspended writes now"
    return line if part["error"] is None else f"{line}: {part['error']}"
