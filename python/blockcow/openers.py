"""Processes that have a device or file open for writing, from /proc. Needs root to see those of other users."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockcow.node import key_of

_PROC = Path("/proc")


@dataclass(frozen=True)
class Opener:
    """A process that can write."""

    pid: int
    name: str
    key: tuple[str, int, int]
    """Which node it has open."""


def writers() -> list[Opener]:
    """Everything of block or regular-file kind that is open for writing anywhere, once per process and node."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            keys = set(_writable_keys(entry))
            found += [Opener(int(entry.name), _name(entry), key) for key in sorted(keys)]
    return found


def _writable_keys(process: Path) -> Iterator[tuple[str, int, int]]:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:  # it ended, or belongs to another user
        return
    for descriptor in descriptors:
        try:
            if not descriptor.readlink().as_posix().startswith("/") or not _writable(process, descriptor.name):
                continue
            yield key_of(descriptor.stat())
        except OSError:  # closed meanwhile
            continue


def _writable(process: Path, descriptor: str) -> bool:
    for line in (process / "fdinfo" / descriptor).read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
