"""`blockcow backup`: reads the options, shows progress, reports the end. The work is in blockcow.device."""

import os
import time
from typing import Any

import click

from blockcow import Device
from blockcow.backup import Backup
from blockcow.cli.progress import Meter, option_progress
from blockcow.cli.summary import say_end
from blockcow.cli.values import SHARE, SIZE, TIME
from blockcow.cli.verb import BROKEN, WARNINGS, Interrupted, Verb, VerbFailedError, print_json, say
from blockcow.consistency import POLICIES
from blockcow.plan import FORCES, ON_CBW_ERROR, Plan, make_plan
from blockcow.preflight import check_device
from blockcow.status import Status
from blockcow.units import format_size

_TICK = 0.2  # seconds
_PATIENCE = 30.0  # seconds


@click.command(cls=Verb)
@click.option("--device", required=True, type=click.Path(readable=False), help="Block device or image file to back up.")
@click.option(
    "--container",
    required=True,
    help="FILE, block device, device:OFFSET+LENGTH, device:free, memory:256M or NBD URI.",
)
@click.option("--dest", required=True, type=click.Path(readable=False), help="Image file to make, device or NBD URI.")
@click.option("--manifest", type=click.Path(readable=False), help="Where the manifest goes.  [default: DEST.manifest]")
@click.option("--container-size", type=SIZE, help="[default: a sixteenth of the device, 64M to 4G]")
@click.option("--staging-size", type=SIZE, help="Memory in front of the container.  [default: at most 64M]")
@click.option("--capacity", type=SHARE, default="90%", show_default=True, help="Fill at which writes wait for a drain.")
@click.option("--drain", type=SHARE, default="25%", show_default=True, help="How much is drained then.")
@click.option(
    "--cbw-timeout", type=TIME, default="30s", show_default=True, help="Longest time that a write is held up."
)
@click.option("--on-cbw-error", type=click.Choice(ON_CBW_ERROR), default="break-backup", show_default=True)
@click.option("--consistency", type=click.Choice(POLICIES), default="auto", show_default=True)
@click.option("--block-size", type=SIZE, help="Unit of copy-before-write.  [default: 4K, more for huge devices]")
@click.option("--limit-read", type=SIZE, help="Most bytes a second that the sweep reads.  [default: no limit]")
@click.option(
    "--nbd-timeout", type=TIME, default="60s", show_default=True, help="Silence after which an NBD server is given up."
)
@click.option("--force", multiple=True, type=click.Choice(FORCES), help="Override one refusal; may be repeated.")
@click.option("--strict", is_flag=True, help="Exit 3 if there were warnings.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, do nothing.")
@option_progress
def backup(
    device: str, container: str, dest: str, strict: bool, dry_run: bool, progress: str, as_json: bool, **options: Any
) -> None:
    """Backs up a device to an image, or to a block device.

    The image equals the device at the cut. Its manifest is what verify and restore check it with.
    """
    plan = make_plan(check_device(device), container, dest, **options)
    if dry_run:
        _say_plan(plan, as_json)
        return
    with Device(device, read_only=plan.container.kind != "section") as opened:
        warnings = _warnings(plan, opened)
        for warning in warnings:
            say(f"blockcow: warning: {warning}")
        under_way = opened.start(plan)
        interrupted = _watch(under_way, progress, as_json)
        status = under_way.status()
    _report(status, plan, progress, as_json)
    if interrupted is not None:
        raise VerbFailedError(interrupted.exit_code)
    if status.status != "complete":
        raise VerbFailedError(BROKEN)
    if strict and warnings:
        raise VerbFailedError(WARNINGS)


def _say_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        print_json("plan", {word.replace(" ", "_"): text for word, text in plan.describe()})
        return
    click.echo("blockcow would make this backup; nothing was done:")
    for word, text in plan.describe():
        click.echo(f"  {word:14} {text}")


def _warnings(plan: Plan, device: Device) -> list[str]:
    warnings = []
    if os.geteuid() != 0:
        warnings.append("programs of other users that write to the device cannot be seen; run as root to be sure")
    if not device.direct_io:
        warnings.append(f"{plan.device.path} does not take direct I/O; reads and writes go through the page cache")
    if plan.consistency == "freeze" and not plan.mounts:
        warnings.append("there is nothing to freeze: no file system on the device is mounted")
    return warnings


def _watch(backup: Backup, progress: str, as_json: bool) -> Interrupted | None:
    """Shows progress until the backup has ended; returns the signal that ended it, if one did."""
    interrupted = None
    try:
        with Meter("backup", progress, as_json) as meter:
            while not backup.ended(_TICK):
                _show(backup, meter, as_json)
            _show(backup, meter, as_json)
    except Interrupted as signal:
        backup.cancel()
        interrupted = signal
    except BaseException:
        backup.cancel()
        raise
    _show_last_events(backup, as_json)
    return interrupted


def _show(backup: Backup, meter: Meter, as_json: bool) -> None:
    while as_json and (batch := backup.next_events(0.0)):
        for event in batch:
            print_json("event", event)
    status = backup.status()
    fill = f"container {format_size(status.container_used_bytes)} of {format_size(status.container_capacity_bytes)}"
    note = f"{fill}, {status.suspended_writes} suspended writes"
    meter.update(status.done_bytes, status.device_bytes, note, lambda: status)


def _show_last_events(backup: Backup, as_json: bool) -> None:
    """Events end when the backup has cleaned up after itself, so this waits for that; not for ever, I/O may hang."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and (batch := backup.next_events(_TICK)) is not None:
        for event in batch if as_json else ():
            print_json("event", event)


def _report(status: Status, plan: Plan, progress: str, as_json: bool) -> None:
    if as_json:
        print_json("summary", status)
    if progress != "none" or status.status != "complete":
        say_end(status, plan)
