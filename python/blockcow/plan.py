"""From what the user asks to what the engine is told: every option read, every place checked, nothing written.

A `Plan` that exists is ready to run; the same object describes a dry run.
"""

import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from blockcow import sysfs
from blockcow.consistency import POLICIES
from blockcow.container import Container, node_of, require_outside, resolve
from blockcow.node import Node
from blockcow.preflight import check_dest, check_manifest
from blockcow.units import format_size, format_time, parse_share, parse_size, parse_time

FORCES = ("dest-exists", "dest-has-filesystem", "container-exists", "container-has-filesystem")
ON_CBW_ERROR = ("break-backup", "fail-write")
_MOST_STAGING = 64 * 1024 * 1024


class Options(TypedDict, total=False):
    """What `Device.backup` and `blockcow.backup` take besides the container and the destination."""

    container_size: str | int | None
    """For a file, device:free or block container. A sixteenth of the device, 64 MiB to 4 GiB; all of a block device."""
    capacity: str | int
    """How full the container may be before writes wait; part of the container or bytes. ``90%``."""
    drain: str | int
    """How much is drained then; part of the container or bytes. ``25%``."""
    cbw_timeout: str | float
    """Longest time in seconds for which a write is held up. 30."""
    on_cbw_error: str
    """``break-backup`` (the default) or ``fail-write``."""
    consistency: str
    """``auto`` (the default), ``freeze``, ``sync`` or ``none``, for the file systems at ``mounts``."""
    block_size: str | int | None
    """A power of two; grows with the device by default."""
    limit_read: str | int | None
    """Most bytes a second that the sweep reads."""
    ranges: Sequence[tuple[int, int]] | None
    """Back up only these (offset, length) pairs."""
    manifest: str | os.PathLike[str] | None
    """Where the manifest goes; beside a file destination by default, required for a block device."""
    staging_size: str | int | None
    """Memory in front of the container; at most 64 MiB by default."""
    force: Collection[str]
    """Names of refusals to override; see `FORCES`."""
    mounts: Sequence[str] | None
    """Mount points of file systems that lie on the device through the caller's own front-end."""


@dataclass(frozen=True)
class Plan:
    """A backup that may start."""

    device: Node
    container: Container
    dest: str
    dest_is_file: bool
    dest_overwrite: bool
    manifest: str
    staging_bytes: int
    capacity_bytes: int
    drain_bytes: int
    block_size: int | None
    cbw_timeout: float
    fail_write: bool
    limit_read: int | None
    ranges: Sequence[tuple[int, int]] | None
    consistency: str
    mounts: Sequence[str]

    def arguments(self, inside: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
        """What the extension's ``Device._prepare`` is called with; ``inside``: where a container inside lies."""
        place = self.container
        return {
            "dest": self.dest,
            "manifest": self.manifest,
            "dest_overwrite": self.dest_overwrite,
            "container_kind": "sections" if place.kind in ("section", "inside") else place.kind,
            "container_path": place.path,
            "container_sections": inside if place.kind == "inside" else [(place.offset, place.length)],
            "container_bytes": place.length,
            "staging_bytes": self.staging_bytes,
            "capacity_bytes": self.capacity_bytes,
            "drain_bytes": self.drain_bytes,
            "block_size": self.block_size,
            "cbw_timeout": self.cbw_timeout,
            "fail_write": self.fail_write,
            "limit_read": self.limit_read,
            "ranges": self.ranges,
            "identity": _identity(self.device),
        }

    def outside(self) -> list[str]:
        """Paths that are written during the backup through their own file system: it must not be frozen."""
        container = self.container.path if self.container.kind != "inside" else None
        return [path for path in (container, self.dest) if path is not None]

    def describe(self) -> list[tuple[str, str]]:
        """The plan for people, as pairs of a word and what it will be."""
        whole = f"{format_size(self.device.size)} ({self.device.size} bytes)"
        listed = "all blocks less holes" if self.ranges is None else f"{len(self.ranges)} ranges"
        policy = "the program's write fails" if self.fail_write else "the backup breaks and the write goes through"
        limit = "no limit" if self.limit_read is None else f"{format_size(self.limit_read)}/s"
        return [
            ("device", f"{self.device.path}, {whole}"),
            ("list", f"{listed}, in blocks of {format_size(self.block_size) if self.block_size else 'automatic size'}"),
            ("container", str(self.container)),
            ("staging", f"{format_size(self.staging_bytes)} of memory"),
            ("capacity", f"{format_size(self.capacity_bytes)}; then {format_size(self.drain_bytes)} are drained"),
            ("destination", f"{self.dest}{' (replaced if it exists)' if self.dest_overwrite else ''}"),
            ("manifest", self.manifest),
            ("a write waits", f"at most {format_time(self.cbw_timeout)}; beyond that {policy}"),
            ("sweep reads", limit),
            ("consistency", f"{self.consistency}, for {', '.join(self.mounts) or 'no file system mounted here'}"),
        ]


def make_plan(
    device: Node,
    container: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    container_size: str | int | None = None,
    capacity: str | int = "90%",
    drain: str | int = "25%",
    cbw_timeout: str | float = 30.0,
    on_cbw_error: str = "break-backup",
    consistency: str = "auto",
    block_size: str | int | None = None,
    limit_read: str | int | None = None,
    ranges: Sequence[tuple[int, int]] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    staging_size: str | int | None = None,
    force: Collection[str] = (),
    mounts: Sequence[str] | None = None,
) -> Plan:
    """Reads and checks everything. Raises ValueError for bad options, a BlockcowError for what the machine forbids."""
    _one_of("consistency", consistency, POLICIES)
    _one_of("policy on copy-before-write errors", on_cbw_error, ON_CBW_ERROR)
    for name in force:
        _one_of("force", name, FORCES)
    block_bytes = None if block_size is None else _block_size(block_size)
    dest_path, own_mounts = os.fspath(dest), list(mounts or ())
    dest_node = check_dest(device, dest_path, force)
    place = resolve(container, device, dest_path, container_size, force, own_mounts)
    _check_places(device, place, dest_node, dest_path, own_mounts)
    if place.length < (block_bytes or 1):
        sizes = f"{format_size(place.length)} is less than one block of {format_size(block_bytes or 1)}"
        raise ValueError(f"the container is too small: {sizes}")
    manifest_path = _manifest(manifest, dest_path, dest_node)
    check_manifest(manifest_path, force)
    return Plan(
        device=device,
        container=place,
        dest=dest_path,
        dest_is_file=dest_node is None or not dest_node.is_block,
        dest_overwrite="dest-exists" in force,
        manifest=manifest_path,
        staging_bytes=min(_MOST_STAGING, place.length) if staging_size is None else parse_size(staging_size),
        capacity_bytes=parse_share(capacity, place.length),
        drain_bytes=parse_share(drain, place.length),
        block_size=block_bytes,
        cbw_timeout=parse_time(cbw_timeout),
        fail_write=on_cbw_error == "fail-write",
        limit_read=None if limit_read is None else _positive("limit on reading", limit_read),
        ranges=ranges,
        consistency=consistency,
        mounts=own_mounts,
    )


def _one_of(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"{name!r} is not a {what}: choose one of {', '.join(names)}")


def _positive(what: str, text: str | int) -> int:
    size = parse_size(text)
    if size == 0:
        raise ValueError(f"the {what} is {text}: give more, or leave it out for no limit")
    return size


def _block_size(text: str | int) -> int:
    size = parse_size(text)
    if size < 512 or size & (size - 1):
        raise ValueError(f"the block size {text} is not a power of two of at least 512: choose for example 4K or 64K")
    return size


def _check_places(device: Node, place: Container, dest_node: Node | None, dest: str, own_mounts: Sequence[str]) -> None:
    container_node = node_of(place)
    if dest_node is not None and container_node is not None and dest_node.key == container_node.key:
        raise ValueError(f"the container {place.path} is also the destination: name another place")
    if dest_node is None or not dest_node.is_block:
        require_outside(dest, "destination", device, own_mounts)


def _manifest(manifest: str | os.PathLike[str] | None, dest: str, dest_node: Node | None) -> str:
    if manifest is not None:
        return os.fspath(manifest)
    if dest_node is not None and dest_node.is_block:
        raise ValueError(
            f"the destination {dest} is a block device: say where the manifest goes, with the option manifest"
        )
    return f"{dest}.manifest"


def _identity(device: Node) -> dict[str, str]:
    identity = {"path": device.path, "host": platform.node()}
    if not device.is_block:
        return identity | {"kind": "file"}
    folder = sysfs.disk_of(device.sysfs) or device.sysfs
    found = {name: sysfs.text(folder / "device" / name) for name in ("vendor", "model", "serial", "wwid")}
    return identity | {"kind": "block device"} | {name: value for name, value in found.items() if value}
