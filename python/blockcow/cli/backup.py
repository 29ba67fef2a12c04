"""`blockcow backup`: reads the options, shows progress, reports the end. The work is done by a device or a daemon."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import click

from blockcow import Device
from blockcow._blockcow import BusyError
from blockcow.cli.progress import Meter, option_progress
from blockcow.cli.summary import say_end
from blockcow.cli.values import PLACE, SHARE, SIZE, TIME
from blockcow.cli.verb import BROKEN, WARNINGS, Interrupted, Verb, VerbFailedError, print_json, say, say_error
from blockcow.cli.watched import Attached, Own, Watched
from blockcow.consistency import POLICIES
from blockcow.daemon import folders
from blockcow.daemon.client import Client, DaemonGoneError
from blockcow.device import start_together
from blockcow.errors import failure
from blockcow.export import is_uri
from blockcow.hooks import around
from blockcow.plan import FORCES, ON_CBW_ERROR, Plan, make_plan
from blockcow.preflight import check_device
from blockcow.status import Status
from blockcow.units import format_size, parse_time

_TICK = 0.2  # seconds
_PATIENCE = 30.0  # seconds

Hooks = Callable[[], AbstractContextManager[None]]


@click.command(cls=Verb)
@click.option(
    "--device",
    "devices",
    required=True,
    multiple=True,
    type=PLACE,
    help="Block device, image file, or name of what is attached. Repeat it for one cut of several devices.",
)
@click.option(
    "--container",
    "containers",
    required=True,
    multiple=True,
    type=PLACE,
    help="FILE, block device, device:OFFSET+LENGTH, device:free, memory:256M, NBD URI. One a device.",
)
@click.option(
    "--dest",
    "dests",
    required=True,
    multiple=True,
    type=PLACE,
    help="Image file to make, block device or NBD URI. One for each device.",
)
@click.option(
    "--manifest",
    "manifests",
    multiple=True,
    type=PLACE,
    help="Where the manifest goes. One for each device, or none.  [default: DEST.manifest]",
)
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
@click.option("--before-cut", metavar="COMMAND", help="Run before the cut; if it fails, there is no backup.")
@click.option("--after-cut", metavar="COMMAND", help="Run after the cut, whatever came of it.")
@click.option("--hook-timeout", type=TIME, default="60s", show_default=True, help="Longest time for each of the two.")
@click.option("--strict", is_flag=True, help="Exit 3 if there were warnings.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, do nothing.")
@option_progress
def backup(
    devices: tuple[str, ...],
    containers: tuple[str, ...],
    dests: tuple[str, ...],
    manifests: tuple[str, ...],
    before_cut: str | None,
    after_cut: str | None,
    hook_timeout: str,
    strict: bool,
    dry_run: bool,
    progress: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Backs up a device to an image, or to a block device.

    The image equals the device at the cut. Its manifest is what verify and restore check it with. Of an attached device
    the daemon makes the backup, while programs go on.
    """
    wanted = _pair(devices, containers, dests, manifests)
    warnings: list[str] = []
    hooks: Hooks | None = None
    if before_cut is not None or after_cut is not None:
        hooks = lambda: around(before_cut, after_cut, parse_time(hook_timeout), _warner(warnings))  # noqa: E731
    folder = _attached(wanted)
    if dry_run:
        _say_plans(wanted, options, folder, as_json)
        return
    with ExitStack() as stack:
        if folder is None:
            watched: Watched = _begin(stack, wanted, options, hooks, warnings)
        else:
            watched = _ask(folder, wanted, options, hooks, warnings)
        interrupted = _watch(watched, progress, as_json)
        statuses = watched.statuses()
    _report(statuses, [one["manifest"] for one in wanted], progress, as_json)
    if interrupted is not None:
        raise VerbFailedError(interrupted.exit_code)
    if any(status.status != "complete" for status in statuses):
        raise VerbFailedError(BROKEN)
    if strict and warnings:
        raise VerbFailedError(WARNINGS)


def _pair(
    devices: tuple[str, ...], containers: tuple[str, ...], dests: tuple[str, ...], manifests: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Device, container, destination and manifest that belong together."""
    for option, given in (("--container", containers), ("--dest", dests), ("--manifest", manifests)):
        if len(given) != len(devices) and (given or option != "--manifest"):
            raise ValueError(
                f"there are {len(devices)} --device and {len(given)} {option}: give one for each, in one order"
            )
    return [
        {"device": device, "container": container, "dest": dest, "manifest": manifest}
        for device, container, dest, manifest in zip(
            devices, containers, dests, manifests or (None,) * len(devices), strict=True
        )
    ]


def _attached(wanted: list[dict[str, Any]]) -> folders.RunFolder | None:
    """The daemon that all of the devices are attached to; None if none is. Puts their own paths in their places."""
    matches = [folders.match(one["device"]) for one in wanted]
    found = [match for match in matches if match is not None]
    if not found:
        return None
    names = {match.folder.name for match in found}
    if len(found) < len(wanted) or len(names) > 1:
        reason = "some are attached and some are not, or not together; one cut needs one attach of all of them"
        raise failure(BusyError, "make one cut for these devices", reason)
    for one, match in zip(wanted, found, strict=True):
        if match.part is not None:
            say(f"blockcow: {match.part} is a part of the attached {match.device}, which is backed up as a whole")
        one["device"] = match.device
    return found[0].folder


def _begin(
    stack: ExitStack, wanted: list[dict[str, Any]], options: dict[str, Any], hooks: Hooks | None, warnings: list[str]
) -> Own:
    """Holds the devices in this process and makes the cut."""
    plans = [
        make_plan(check_device(one["device"]), one["container"], one["dest"], manifest=one["manifest"], **options)
        for one in wanted
    ]
    group = []
    for one, plan in zip(wanted, plans, strict=True):
        device = stack.enter_context(Device(one["device"], read_only=plan.container.kind != "section"))
        for warning in _warnings(plan, device):
            _warner(warnings)(warning)
        group.append((device, plan))
    return Own(start_together(group, hooks) if hooks is not None else start_together(group))


def _ask(
    folder: folders.RunFolder,
    wanted: list[dict[str, Any]],
    options: dict[str, Any],
    hooks: Hooks | None,
    warnings: list[str],
) -> Attached:
    """Has the daemon make the backup."""
    name = os.urandom(8).hex()
    watched = Attached(Client(folder), name)
    try:
        answer = watched.start({"id": name, "backups": _request(wanted, options)}, hooks)
    except DaemonGoneError as error:  # it may have begun
        say_error(error)
        raise VerbFailedError(BROKEN) from error
    except Interrupted:
        watched.cancel()
        raise
    for warning in answer:
        _warner(warnings)(warning)
    return watched


def _request(wanted: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """With absolute paths: the daemon has another working folder."""
    for one in wanted:
        one["manifest"] = None if one["manifest"] is None else os.path.abspath(one["manifest"])  # noqa: PTH100 - a link stays one
    return [
        {
            "device": one["device"],
            "container": _absolute(one["container"]),
            "dest": _absolute(one["dest"]),
            "options": {**options, "manifest": one["manifest"]},
        }
        for one in wanted
    ]


def _absolute(place: str) -> str:
    if place.startswith(("device:", "memory:")) or is_uri(place):
        return place
    return os.path.abspath(place)  # noqa: PTH100 - as above


def _warner(warnings: list[str]) -> Callable[[str], None]:
    def warn(text: str) -> None:
        warnings.append(text)
        say(f"blockcow: warning: {text}")

    return warn


def _say_plans(
    wanted: list[dict[str, Any]], options: dict[str, Any], folder: folders.RunFolder | None, as_json: bool
) -> None:
    if folder is None:
        described = [
            make_plan(
                check_device(one["device"]), one["container"], one["dest"], manifest=one["manifest"], **options
            ).describe()
            for one in wanted
        ]
    else:
        answer = Client(folder).post("/plan", {"backups": _request(wanted, options)})
        described = answer["plans"]
    if not as_json:
        click.echo("blockcow would make this backup; nothing was done:")
    for plan in described:
        if as_json:
            print_json("plan", {word.replace(" ", "_"): text for word, text in plan})
            continue
        for word, text in plan:
            click.echo(f"  {word:14} {text}")


def _warnings(plan: Plan, device: Device) -> list[str]:
    warnings = []
    if os.geteuid() != 0:
        warnings.append("programs of other users that write to the device cannot be seen; run as root to be sure")
    if not device.direct_io:
        warnings.append(f"{plan.device.path} does not take direct I/O; reads and writes go through the page cache")
    return warnings + plan.warnings()


def _watch(backup: Watched, progress: str, as_json: bool) -> Interrupted | None:
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
    for event in backup.last_events(_PATIENCE):
        if as_json:
            print_json("event", event)
    return interrupted


def _show(backup: Watched, meter: Meter, as_json: bool) -> None:
    for event in backup.events() if as_json else ():
        print_json("event", event)
    statuses = backup.statuses()
    used, capacity, suspended, done, total = (
        sum(getattr(status, name) for status in statuses)
        for name in (
            "container_used_bytes",
            "container_capacity_bytes",
            "suspended_writes",
            "done_bytes",
            "device_bytes",
        )
    )
    note = f"container {format_size(used)} of {format_size(capacity)}, {suspended} suspended writes"
    figures = statuses[0] if len(statuses) == 1 else {"done_bytes": done, "device_bytes": total, "parts": statuses}
    meter.update(done, total, note, lambda: figures)


def _report(statuses: list[Status], manifests: list[str | None], progress: str, as_json: bool) -> None:
    for status, manifest in zip(statuses, manifests, strict=True):
        if as_json:
            print_json("summary", status)
        if progress != "none" or status.status != "complete":
            say_end(status, manifest)
