"""Who uses a block device or image file: mounts, swap, devices made of it, loop devices, programs that write.

One `Survey` looks at the machine once and answers for any number of nodes. It refuses nothing; preflight does.
"""

from dataclasses import dataclass
from pathlib import Path

from blockcow import mounts, openers, sysfs
from blockcow.node import Node


@dataclass(frozen=True)
class Use:
    """One use of a node."""

    kind: str
    """``mounted``, ``swap``, ``held``, ``loop`` or ``open``."""
    text: str
    """For people, with a verb: ``it is mounted at /srv``."""


class Survey:
    """The state of the machine at one moment."""

    def __init__(self) -> None:
        self._mounts = mounts.mounted()
        self._swaps = set(sysfs.swaps())
        self._loops = sysfs.loops_on()
        self._writers = openers.writers()

    def uses(self, node: Node) -> list[Use]:
        """Every known use that forbids standing in front of ``node``."""
        if not node.is_block:
            return self._uses_of_key(node.key, "it is")
        folder = node.sysfs
        found = self._uses_of_device(folder, "it is")
        for partition in sysfs.partitions(folder):
            found += self._uses_of_device(sysfs.folder_of(partition.number), f"its partition {partition.name} is")
        disk = sysfs.disk_of(folder)
        if disk is not None:
            found += self._uses_of_device(disk, f"its disk /dev/{disk.name} is")
        return found

    def _uses_of_device(self, folder: Path, whose: str) -> list[Use]:
        device = sysfs.number(folder)
        places = [mount.point for mount in mounts.of_device(self._mounts, device)]
        found = [Use("mounted", f"{whose} mounted at {place}") for place in places]
        found += [Use("held", f"{whose} held by {holder}") for holder in sysfs.holders(folder)]
        return found + self._uses_of_key(("block", *device), whose)

    def _uses_of_key(self, key: tuple[str, int, int], whose: str) -> list[Use]:
        found = []
        if key in self._swaps:
            found.append(Use("swap", f"{whose} in use as swap"))
        if key in self._loops:
            found.append(Use("loop", f"{whose} the backing file of {self._loops[key]}"))
        found += [
            Use("open", f"{whose} open for writing by process {writer.pid} ({writer.name})")
            for writer in self._writers
            if writer.key == key
        ]
        return found
