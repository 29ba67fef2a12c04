"""Who uses an attached device: what is mounted from it, what else lies on it, which programs have it open."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from blockcow import mounts, sysfs
from blockcow._blockcow import BusyError
from blockcow.errors import failure
from blockcow.node import Node, find, find_if_there

_PROC = Path("/proc")
_CLASS = Path("/sys/class/block")


def folders_on(loop: str | None) -> list[Path]:
    """The sysfs folders of a loop device, its partitions, and the devices that are made of them."""
    if loop is None:
        return []
    found: list[Path] = []
    waiting = [_CLASS / Path(loop).name]
    while waiting:
        folder = waiting.pop().resolve()
        if folder in found or not folder.is_dir():
            continue
        found.append(folder)
        waiting += [_CLASS / Path(part.name).name for part in sysfs.partitions(folder)]
        if (folder / "holders").is_dir():
            waiting += [_CLASS / entry.name for entry in (folder / "holders").iterdir()]
    return found


def mounts_on(loop: str | None) -> list[str]:
    """Mount points of all file systems on a loop device."""
    known = mounts.mounted()
    numbers = [sysfs.number(folder) for folder in folders_on(loop)]
    return [mount.point for number in numbers for mount in mounts.of_device(known, number)]


def uses_of(loop: str | None, file: str | None, own: Collection[int]) -> list[str]:
    """Everybody who uses it, each with a verb. Processes of ``own`` are ourselves."""
    found = []
    folders = folders_on(loop)
    known, swaps = mounts.mounted(), sysfs.swaps()
    for folder in folders:
        number = sysfs.number(folder)
        found += [f"/dev/{folder.name} is mounted at {mount.point}" for mount in mounts.of_device(known, number)]
        found += [f"/dev/{folder.name} is held by {holder}" for holder in sysfs.holders(folder)]
        if ("block", *number) in swaps:
            found.append(f"/dev/{folder.name} is in use as swap")
    paths = {f"/dev/{folder.name}" for folder in folders}
    if file is not None:
        paths.add(file)
    return found + [f"{path} is open in process {pid} ({name})" for pid, name, path in _openers(paths, own)]


def _openers(paths: Collection[str], own: Collection[int]) -> list[tuple[int, str, str]]:
    """By the names of open files, so that no file system is asked."""
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            links = {os.readlink(descriptor) for descriptor in (entry / "fd").iterdir()}  # noqa: PTH115 - a str is wanted
            name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # it ended, or belongs to another user
            continue
        found += [(int(entry.name), name, path) for path in sorted(links & set(paths))]
    return found


def require_outside_all(path: str, role: str, device: str, loop: str | None, others: Sequence[str]) -> None:
    """Raises BusyError if ``path`` would be written through a device that the same daemon serves: it would wait for
    itself. A container inside a file system on ``loop`` has rules of its own, in `container`."""
    node = find_if_there(path, role)
    loops = [one for one in (loop, *others) if one is not None]
    for one in loops:
        if node is not None and node.is_block and _lies_on(node, one):
            reason = f"it lies on {one}, behind which blockcow serves the attached device; choose a place elsewhere"
            raise failure(BusyError, f"use {path} as the {role} for {device}", reason)
    here = Path(path).absolute().parent
    number = here.stat().st_dev if here.is_dir() else None
    for one in others if role == "container" else loops:
        for point in mounts_on(one):
            if number == Path(point).stat().st_dev:
                reason = f"it lies in the file system mounted at {point}, which is on the attached device {one}"
                advice = "a write there would wait for itself; choose a place on another device"
                raise failure(BusyError, f"use {path} as the {role} for {device}", f"{reason}; {advice}")


def _lies_on(node: Node, loop: str) -> bool:
    return (
        any(("block", *sysfs.number(folder)) == node.key for folder in folders_on(loop)) or node.key == find(loop).key
    )
