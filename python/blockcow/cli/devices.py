"""`blockcow devices`: the table of what there is, and whether it can be backed up now."""

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blockcow.cli.verb import Verb, print_json, say
from blockcow.discovery import Found, discover
from blockcow.units import format_size


@click.command(cls=Verb)
@click.argument("images", nargs=-1, type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def devices(images: tuple[str, ...], as_json: bool) -> None:
    """Lists devices, and the IMAGES named, and whether they can be backed up now."""
    inventory = discover(images)
    for warning in inventory.warnings:
        say(f"blockcow: {warning}")
    if as_json:
        for found in inventory.devices:
            print_json("device", found)
        return
    _print_table(inventory.devices)


def _print_table(found: list[Found]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 400  # piped: one line a device, whatever reads it
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("DEVICE", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    for name in ("TYPE", "CONTENT", "MODEL", "BACKUP"):
        table.add_column(name, overflow="fold")
    for device in found:
        size = "?" if device.size is None else format_size(device.size)
        state = "[green]can be backed up now[/]" if device.can_backup else f"[yellow]no:[/] {escape(device.reason)}"
        table.add_row(escape(device.name), size, device.type, escape(device.content), escape(device.model), state)
    console.print(table)
