"""Where the container goes: reads `--container`, finds the place, refuses places that would lose or corrupt data.

Forms: a file path, also in a file system that lies on the device; a block device; ``device:OFFSET+LENGTH``;
``device:free``; ``memory:256M``; the URI of an NBD server's export. Creates nothing.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockcow import mounts, signature, sysfs
from blockcow._blockcow import BusyError, ContainerError, ExistsError
from blockcow.errors import failure
from blockcow.export import TIMEOUT, hold, is_uri, open_blank
from blockcow.freespace import ALIGNMENT, largest_free, used
from blockcow.inside import origin_of
from blockcow.inside_file import is_marked
from blockcow.node import Node, find, find_if_there
from blockcow.preflight import check_new_file, require_apart, require_idle
from blockcow.pressure import memory_available
from blockcow.units import format_size, parse_size

_SMALLEST_DEFAULT = 64 * 1024 * 1024
_LARGEST_DEFAULT = 4 * 1024 * 1024 * 1024  # a larger one holds up fewer writes, and takes memory for its index
_DEFAULT_PART = 16  # of the device


@dataclass(frozen=True)
class Container:
    """A place for the container, found fit."""

    kind: Literal["file", "block", "section", "memory", "inside", "nbd"]
    path: str | None
    offset: int
    """Of a section on the device. Of a file inside a file system on the device: where that begins."""
    length: int

    def __str__(self) -> str:
        size = format_size(self.length)
        if self.kind == "section":
            return f"{size} of the device itself, at offset {self.offset}"
        if self.kind == "inside":
            return f"{size} in {self.path}, inside the file system that is backed up"
        return f"{size} of memory" if self.path is None else f"{size} in {self.path}"


def default_size(device: Node) -> int:
    """A sixteenth of the device, at least 64 MiB, at most 4 GiB and at most the device itself."""
    wanted = min(max(_SMALLEST_DEFAULT, device.size // _DEFAULT_PART), _LARGEST_DEFAULT)
    return -(-min(wanted, device.size) // ALIGNMENT) * ALIGNMENT


def resolve(
    spec: str | os.PathLike[str],
    device: Node,
    dest: str,
    size: str | int | None,
    force: Collection[str],
    own_mounts: Sequence[str],
    nbd_timeout: float = TIMEOUT,
) -> Container:
    """The container that ``spec`` means for a backup of ``device`` to ``dest``.

    ``own_mounts`` are mount points of file systems that lie on the device through the caller's own front-end. Raises
    ValueError for what can never work, and a BlockcowError for what the machine's state forbids.
    """
    text = os.fspath(spec)
    wanted = None if size is None else parse_size(size)
    if wanted == 0:
        raise ValueError("the container size is zero: give a size, for example 64M")
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "memory":
        return _memory(rest, wanted)
    if colon and scheme == "device":
        return _free_section(device, wanted) if rest == "free" else _section(rest, device, wanted, force)
    if not text:
        raise ValueError("the container is empty: name a file, a block device, device:free or memory:256M")
    if is_uri(text):
        return _export(text, wanted, force, nbd_timeout)
    node = find_if_there(text, "container")
    if node is not None and node.key == device.key:
        raise ValueError(
            f"the container {text} is the device itself: name another place, or a part as device:OFFSET+LENGTH"
        )
    if not is_uri(dest) and _same_place(text, dest):
        raise ValueError(f"the container {text} is also the destination: name another place")
    if node is not None and node.is_block:
        return _block(node, device, wanted, force)
    return _file(text, node, device, wanted or default_size(device), force, own_mounts)


def _memory(rest: str, wanted: int | None) -> Container:
    if wanted is not None:
        raise ValueError(
            "a container in memory has its size in its name, for example memory:256M: drop the container size"
        )
    length = _size_in(f"memory:{rest}", rest)
    if length == 0:
        raise ValueError("the container memory:0 is empty: give a size, for example memory:256M")
    available = memory_available()
    if available is not None and length > available:
        sizes = f"{format_size(length)} are not free, {format_size(available)} are"
        raise failure(ContainerError, f"use memory:{rest} as the container", f"{sizes}; ask for less, or name a file")
    return Container("memory", None, 0, length)


def _size_in(spec: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"the container {spec}: {error}") from error


def _free_section(device: Node, wanted: int | None) -> Container:
    try:
        offset, length = largest_free(device)
    except LookupError as error:
        reason = f"{error.args[0]}; name a part that you know to be unused as device:OFFSET+LENGTH"
        raise failure(ContainerError, f"find a free part of {device.path}", reason) from error
    if wanted is not None and wanted > length:
        reason = f"its largest free part holds {format_size(length)}, not {format_size(wanted)}; ask for less"
        raise failure(ContainerError, f"find a free part of {device.path}", reason)
    return Container("section", None, offset, min(length, wanted or default_size(device)))


def _section(rest: str, device: Node, wanted: int | None, force: Collection[str]) -> Container:
    start, plus, length_text = rest.partition("+")
    if not plus:
        raise ValueError(
            f"the container device:{rest} is not device:OFFSET+LENGTH, for example device:1G+256M, or device:free"
        )
    if wanted is not None:
        raise ValueError("a container device:OFFSET+LENGTH has its size in its name: drop the container size")
    offset, length = (_size_in(f"device:{rest}", part) for part in (start, length_text))
    if length == 0:
        raise ValueError(f"the container device:{rest} holds nothing: give a length, for example 256M")
    if offset % ALIGNMENT or length % ALIGNMENT:
        raise ValueError(f"the container device:{rest} must start and end on multiples of {ALIGNMENT} bytes")
    if offset + length > device.size:
        raise ValueError(
            f"the container device:{rest} ends at {offset + length}, behind the device's end at {device.size}"
        )
    if "container-has-filesystem" not in force:
        _require_unused(device, offset, length)
    return Container("section", None, offset, length)


def _require_unused(device: Node, offset: int, length: int) -> None:
    operation = f"use part of {device.path} as the container"
    try:
        stretches = used(device, signature.probe(device))
    except LookupError as error:
        advice = "if you are sure that the part is unused, add --force container-has-filesystem"
        raise failure(ContainerError, operation, f"{error.args[0]}; {advice}") from error
    for stretch in stretches:
        if stretch.start < offset + length and offset < stretch.end:
            where = f"it overlaps {stretch.what} (bytes {stretch.start} to {stretch.end})"
            raise failure(ContainerError, operation, f"{where}; choose another part, or device:free")


def _block(node: Node, device: Node, wanted: int | None, force: Collection[str]) -> Container:
    require_apart(node, "container", device)
    if node.size < (wanted or 1):
        reason = (
            f"it holds {format_size(node.size)}, not {format_size(wanted or 1)}; ask for less, or name a larger one"
        )
        raise failure(ContainerError, f"open the container {node.path}", reason)
    require_idle(node, "container")
    if "container-has-filesystem" not in force:
        signature.require_none(node, "container", "container-has-filesystem")
    return Container("block", node.path, 0, wanted or node.size)


def _export(uri: str, wanted: int | None, force: Collection[str], timeout: float) -> Container:
    export = open_blank(uri, "container", "container-has-filesystem" in force, timeout)
    if export.size < (wanted or 1):
        reason = (
            f"it holds {format_size(export.size)}, not {format_size(wanted or 1)}; ask for less, or name a larger one"
        )
        raise failure(ContainerError, f"open the container {uri}", reason)
    place = Container("nbd", export.uri, 0, wanted or export.size)
    hold(place, export)
    return place


def _file(
    path: str, node: Node | None, device: Node, length: int, force: Collection[str], own_mounts: Sequence[str]
) -> Container:
    check_new_file(path, "container")
    if _mount_of(path, own_mounts) is not None:
        return _inside(path, node, length, own_mounts)
    require_outside(path, "container", device, own_mounts)
    if node is not None:
        require_idle(node, "container")
        if "container-exists" not in force:
            advice = "it exists already; remove it, choose another name, or let it alone with --force container-exists"
            raise failure(ExistsError, f"create the container {path}", advice)
    return Container("file", path, 0, length)


def _inside(path: str, node: Node | None, length: int, own_mounts: Sequence[str]) -> Container:
    origin = origin_of(path, own_mounts)
    if node is not None and not is_marked(path):  # what an earlier backup left is removed when this one starts
        advice = "it exists already, and is never overwritten inside the file system; remove it, or choose another name"
        raise failure(ExistsError, f"create the container {path}", advice)
    return Container("inside", path, origin, length)


def require_outside(path: str, role: str, device: Node, own_mounts: Sequence[str]) -> None:
    """Raises BusyError if ``path`` lies in a file system on ``device``: a write there would wait for itself."""
    point = _own_mount(path, device, own_mounts)
    if point is None:
        return
    reason = (
        f"it lies in the file system mounted at {point}, which is on the device {device.path} that is to be backed up"
    )
    advice = "choose a place on another device"
    raise failure(BusyError, f"create the {role} {path}", f"{reason}; {advice}")


def _own_mount(path: str, device: Node, own_mounts: Sequence[str]) -> str | None:
    points: list[str] = list(own_mounts)
    if device.is_block:
        numbers = [device.key[1:], *(partition.number for partition in sysfs.partitions(device.sysfs))]
        known = mounts.mounted()
        points += [mount.point for number in numbers for mount in mounts.of_device(known, number)]
    return _mount_of(path, points)


def _mount_of(path: str, points: Sequence[str]) -> str | None:
    here = Path(path).absolute().parent.stat().st_dev
    return next((point for point in points if Path(point).stat().st_dev == here), None)


def _same_place(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def node_of(container: Container) -> Node | None:
    """The block device that the container is, if it is one."""
    return find(container.path, "container") if container.kind == "block" and container.path else None
