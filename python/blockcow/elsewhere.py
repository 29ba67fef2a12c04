"""Refuses that blockcow writes through a device that it serves: such a write would wait for itself.

Sees file systems and swap on the front-end's block devices, their partitions and what is made of them. What hides where
it lies (a network file system of this same host, an overlay over the device) is not seen.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from blockcow import mounts, sysfs
from blockcow._blockcow import BusyError
from blockcow.errors import failure
from blockcow.node import find

Number = tuple[int, int]


def require_elsewhere(paths: Mapping[str, str | os.PathLike[str]], front: Iterable[str | os.PathLike[str]]) -> None:
    """Raises BusyError if one of ``paths``, by role, or swap space lies on a device behind ``front``.

    ``front`` are what programs use in the device's place: block devices, and files that loop devices may stand on. A
    path that does not exist yet counts as its folder.
    """
    numbers = served(front)
    places = _file_systems_on(numbers)
    for role, path in paths.items():
        point = places.get(_nearest(path).stat().st_dev)
        if point is not None:
            reason = (
                f"it lies in the file system mounted at {point}, whose device blockcow itself serves, so a write there "
                "could wait for itself; choose a place on another device"
            )
            raise failure(BusyError, f"use {os.fspath(path)} as the {role}", reason)
    for kind, *number in sysfs.swaps():
        on_it = tuple(number) in numbers if kind == "block" else number[0] in places
        if on_it:
            reason = (
                "there is swap space on a device that it serves, and memory must not wait for it; run swapoff first"
            )
            raise failure(BusyError, "stay up when memory is short", reason)


def served(front: Iterable[str | os.PathLike[str]]) -> set[Number]:
    """Major and minor of every block device that ends in ``front``: itself, partitions, and what is made of them."""
    found: set[Number] = set()
    for path in front:
        loops = sysfs.loops_over(path)
        for folder in loops:
            _add(folder, found)
        if not loops and (node := find(path, "front-end")).is_block:
            _add(node.sysfs, found)
    return found


def _add(folder: Path, found: set[Number]) -> None:
    number = sysfs.number(folder)
    if number in found:
        return
    found.add(number)
    for partition in sysfs.partitions(folder):
        _add(sysfs.folder_of(partition.number), found)
    for holder in (folder / "holders").glob("*"):
        _add(holder.resolve(), found)


def _file_systems_on(numbers: set[Number]) -> dict[int, str]:
    """``st_dev`` of each file system on these devices, with a mount point of it."""
    known = mounts.mounted()
    points = [mount.point for number in numbers for mount in mounts.of_device(known, number)]
    return {Path(point).stat().st_dev: point for point in points}


def _nearest(path: str | os.PathLike[str]) -> Path:
    """The path, or the nearest folder above it that exists."""
    place = Path(path).resolve()
    return next(one for one in (place, *place.parents) if one.exists())
