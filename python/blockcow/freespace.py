"""Finds the part of a device that nothing uses (`device:free`), and what a given section would overlap.

Never guesses: a device about which anything is unknown has no free part. Known are a partition table, and a file system
whose superblock says where it ends.
"""

from dataclasses import dataclass

from blockcow import programs, sysfs
from blockcow.node import SECTOR, Node
from blockcow.signature import Signature, probe
from blockcow.superblock import filesystem_end

MARGIN = 1024 * 1024
"""Left alone at both ends of a partitioned disk: tables, boot loader, the backup table."""
ALIGNMENT = 4096


@dataclass(frozen=True)
class Stretch:
    """A part of the device, with what it is for people."""

    start: int
    end: int
    what: str


def used(node: Node, found: Signature) -> list[Stretch]:
    """What is known to be in use, by start. Raises LookupError with the reason if that cannot be told."""
    if found.content and found.table:
        raise LookupError(f"it holds {found}, which contradict each other")
    if found.content:
        return [Stretch(0, filesystem_end(node.path, found.content), f"the {found.content} file system")]
    if found.table:
        return _partitioned(node, found)
    return []


def largest_free(node: Node) -> tuple[int, int]:
    """Offset and length of the largest free part. Raises LookupError with the reason and what to do."""
    found = probe(node)
    if not found:
        raise LookupError("it has neither a partition table nor a file system, so nothing says which part is free")
    gaps = [(0, 0)]
    position = 0
    for stretch in used(node, found):
        gaps.append((_up(position), _down(stretch.start)))
        position = max(position, stretch.end)
    gaps.append((_up(position), _down(node.size)))
    start, end = max(gaps, key=lambda gap: gap[1] - gap[0])
    if end - start < ALIGNMENT:
        raise LookupError("no part of it is free")
    return start, end - start


def _up(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _down(offset: int) -> int:
    return offset // ALIGNMENT * ALIGNMENT


def _partitioned(node: Node, found: Signature) -> list[Stretch]:
    """Partitions by the table and by the kernel, and the margins. In front of the first partition boot loaders live."""
    if node.is_block and sysfs.disk_of(node.sysfs) is not None:
        raise LookupError("it is a partition that holds a partition table of its own")
    stretches = _table(node)
    if node.is_block:
        known = sysfs.partitions(node.sysfs)
        stretches += [Stretch(one.start, one.start + one.size, f"partition {one.name}") for one in known]
    stretches.sort(key=lambda stretch: stretch.start)
    first = stretches[0].start if stretches else MARGIN
    head = Stretch(0, max(MARGIN, first), f"the {found.table} partition table and what boots from it")
    tail = Stretch(max(node.size - MARGIN, 0), node.size, "the end of the disk, where backup tables lie")
    return [head, *stretches, tail]


def _table(node: Node) -> list[Stretch]:
    result = programs.run("partx", ["--raw", "--noheadings", "-o", "NR,START,SECTORS", node.path])
    if result is None:
        raise LookupError("the program partx (package util-linux) is missing, so its partitions cannot be read")
    if result.returncode != 0:
        raise LookupError(f"partx cannot read its partition table: {result.stderr.strip()}")
    rows = [[int(field) for field in line.split()] for line in result.stdout.splitlines()]
    return [
        Stretch(start * SECTOR, (start + sectors) * SECTOR, f"partition {number}") for number, start, sectors in rows
    ]
