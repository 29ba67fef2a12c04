"""Refuses what would make a backup or restore a lie or a loss: devices in use, a destination that is there already.

Each refusal says what uses the thing and what to do. Containers have rules of their own, in container.
"""

import os
from collections.abc import Collection
from pathlib import Path

from blockcow import signature, sysfs
from blockcow._blockcow import BusyError, ExistsError, NotFoundError
from blockcow.errors import failure
from blockcow.export import NbdExport, open_blank
from blockcow.node import Node, find, find_if_there
from blockcow.units import format_size
from blockcow.usage import Survey

ADVICE = {
    "mounted": "unmount it first",
    "swap": "run swapoff first",
    "held": "release that device first",
    "loop": "name that loop device instead, or detach it with losetup -d",
    "open": "stop that program first",
}


def require_idle(node: Node, role: str = "device", survey: Survey | None = None, ignore: Collection[str] = ()) -> None:
    """Raises BusyError if anybody uses ``node``. Uses whose kind is in ``ignore`` do not count."""
    uses = [use for use in (survey or Survey()).uses(node) if use.kind not in ignore]
    if not uses:
        return
    more = f" (and {len(uses) - 1} more)" if len(uses) > 1 else ""
    reason = f"{uses[0].text}{more}; {ADVICE[uses[0].kind]}"
    raise failure(BusyError, f"open the {role} {node.path}", reason)


def require_apart(node: Node, role: str, device: Node) -> None:
    """Raises ValueError if the block device ``node`` shares bytes with the device to back up."""
    if not (node.is_block and device.is_block):
        return
    if sysfs.disk_of(device.sysfs) == node.sysfs:
        raise ValueError(f"the {role} {node.path} is the disk that the device {device.path} is a part of: name another")
    for partition in sysfs.partitions(device.sysfs):
        if ("block", *partition.number) == node.key:
            place = f"device:{partition.start}+{partition.size}"
            advice = f"call it {place}" if role == "container" else "name another"
            raise ValueError(f"the {role} {node.path} is a part of the device {device.path}: {advice}")


def check_device(path: str | os.PathLike[str], survey: Survey | None = None) -> Node:
    """The device to back up, found to be there, not empty, and idle."""
    node = find(path)
    if node.size == 0:
        raise ValueError(f"the device {node.path} has size zero: there is nothing to back up")
    require_idle(node, survey=survey)
    return node


def check_dest(device: Node, dest: str, force: Collection[str]) -> Node | None:
    """What stands at ``dest`` (None: nothing yet), found fit to receive a backup of ``device``."""
    node = find_if_there(dest, "destination")
    if node is not None and node.key == device.key:
        raise ValueError(f"the destination {dest} is the device itself: name another file or device")
    if node is None:
        check_new_file(dest, "destination")
        return None
    if not node.is_block:
        return _check_old_file(node, force)
    require_apart(node, "destination", device)
    if node.size < device.size:
        sizes = f"it holds {format_size(node.size)}, the device {format_size(device.size)}"
        raise ValueError(f"the destination {dest} is too small: {sizes}; name a larger one")
    require_idle(node, "destination")
    if "dest-has-filesystem" not in force:
        signature.require_none(node, "destination", "dest-has-filesystem")
    return node


def check_dest_export(device: Node, uri: str, force: Collection[str], timeout: float) -> NbdExport:
    """The export of an NBD server that is the destination, open and found fit to receive a backup of ``device``."""
    export = open_blank(uri, "destination", "dest-has-filesystem" in force, timeout)
    if export.size < device.size:
        sizes = f"it holds {format_size(export.size)}, the device {format_size(device.size)}"
        raise ValueError(f"the destination {uri} is too small: {sizes}; name a larger one")
    if not export.can_sync:
        reason = "its server offers neither FLUSH nor FUA, so nothing tells when a backup is safe there"
        raise ValueError(f"the destination {uri} cannot be used: {reason}; name another")
    return export


def check_new_file(path: str, role: str) -> None:
    """Raises unless a file may be made at ``path``: its folder is there, and it is not a misspelt device."""
    place = Path(path).absolute()
    if place.is_relative_to("/dev") and not place.is_relative_to("/dev/shm"):  # noqa: S108 - shared memory is meant
        raise ValueError(f"the {role} {path} is no device, and a file in /dev would be gone with the next boot")
    if not place.parent.is_dir():
        raise failure(NotFoundError, f"create the {role} {path}", f"there is no folder {place.parent}; create it first")


def _check_old_file(node: Node, force: Collection[str]) -> Node:
    _require_forced(node.path, "destination", force)
    require_idle(node, "destination")
    return node


def check_manifest(manifest: str, force: Collection[str]) -> None:
    """Raises ExistsError if a manifest stands there that may not be replaced."""
    if os.path.lexists(manifest):
        _require_forced(manifest, "manifest", force)


def _require_forced(path: str, role: str, force: Collection[str]) -> None:
    if "dest-exists" not in force:
        advice = "it exists already; choose another name, or replace it with --force dest-exists"
        raise failure(ExistsError, f"create the {role} {path}", advice)
