"""What lies on a device or file, as blkid's low-level probe sees it: file system, RAID or LUKS member, partition table.

Asks the device itself, never a cache. Where blkid is missing or unsure, nobody guesses.
"""

from dataclasses import dataclass

from blockcow import programs
from blockcow._blockcow import BlockcowError, ContainerError, DestinationError
from blockcow.errors import failure
from blockcow.node import Node

_NOTHING, _SEVERAL = 2, 8  # blkid's exit codes


@dataclass(frozen=True)
class Signature:
    """What was found; empty strings where nothing was."""

    content: str
    """``ext4``, ``xfs``, ``swap``, ``crypto_LUKS``, ``linux_raid_member``, ..."""
    table: str
    """``gpt``, ``dos``, ..."""

    def __str__(self) -> str:
        table = f"a {self.table} partition table" if self.table else ""
        return " and ".join(part for part in (self.content, table) if part)

    def __bool__(self) -> bool:
        return bool(self.content or self.table)


def probe(node: Node) -> Signature:
    """The signature of ``node``. Raises LookupError with the reason if it cannot be told for sure."""
    return probe_path(node.path)


def probe_path(path: str) -> Signature:
    """The same for a path that leads to a device or file."""
    result = programs.run("blkid", ["-p", "-o", "export", path])
    if result is None:
        raise LookupError("the program blkid (package util-linux) is missing")
    if result.returncode == _NOTHING and not result.stderr.strip():
        return Signature("", "")
    if result.returncode == _SEVERAL:
        raise LookupError("blkid finds several signatures that contradict each other")
    if result.returncode != 0:
        reason = result.stderr.strip() or f"exit code {result.returncode}"
        raise LookupError(f"blkid failed: {reason}")
    fields = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    return Signature(fields.get("TYPE", ""), fields.get("PTTYPE", ""))


def require_none(node: Node, role: str, force: str) -> None:
    """Raises unless ``node`` certainly holds nothing. ``force`` is the name that the user may force this with."""
    kind: type[BlockcowError] = ContainerError if role == "container" else DestinationError
    operation = f"open the {role} {node.path}"
    advice = f"to overwrite it, add --force {force}"
    try:
        found = probe(node)
    except LookupError as error:
        raise failure(kind, operation, f"cannot tell whether it is in use: {error}; {advice}") from error
    if found:
        raise failure(kind, operation, f"it holds {found}; choose another, or {advice}")
