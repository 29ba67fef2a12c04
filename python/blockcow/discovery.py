"""Lists what can be backed up: block devices, loop devices, and image files named by the user, with who uses them."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from blockcow import lsblk, sysfs
from blockcow._blockcow import BlockcowError
from blockcow.node import Node, find
from blockcow.preflight import ADVICE
from blockcow.signature import probe
from blockcow.usage import Survey, Use


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One device or image file."""

    name: str
    size: int | None
    """In bytes; None where it is not there."""
    model: str
    type: str
    """``disk``, ``part``, ``loop``, ``lvm``, ``image``, ..."""
    content: str
    """The file system or other signature on it; ``?`` where that cannot be told."""
    use: list[str]
    can_backup: bool
    reason: str
    """Why it cannot be backed up now, and what to do; empty if it can."""


class Inventory(msgspec.Struct, frozen=True):
    """All that was found, and what could not be asked."""

    devices: list[Found]
    warnings: list[str]


def discover(images: Sequence[str] = ()) -> Inventory:
    """All block devices of this machine, then the ``images``."""
    survey = Survey()
    warnings = []
    try:
        descriptions = lsblk.describe()
    except LookupError as error:
        warnings.append(f"{error.args[0]}; models are not shown")
        descriptions = {}
    devices = [_device(folder, survey, descriptions.get(folder.name)) for folder in sysfs.all_devices()]
    return Inventory([*devices, *(_image(path, survey) for path in images)], warnings)


def _device(folder: Path, survey: Survey, description: lsblk.Description | None) -> Found:
    name = f"/dev/{folder.name.replace('!', '/')}"
    kind = "part" if (folder / "partition").exists() else "disk"
    model = sysfs.text(folder / "device" / "model")
    if description is not None:
        kind, model = description.type, description.model or model
    backing = sysfs.text(folder / "loop" / "backing_file")
    return _found(name, survey, model=backing or model, kind=kind)


def _image(path: str, survey: Survey) -> Found:
    return _found(path, survey, model="", kind="image")


def _found(name: str, survey: Survey, *, model: str, kind: str) -> Found:
    try:
        node = find(name)
    except (BlockcowError, ValueError, OSError) as error:
        return Found(
            name=name, size=None, model=model, type=kind, content="", use=[], can_backup=False, reason=str(error)
        )
    uses = survey.uses(node)
    try:
        reason = _reason(node, uses)
    except OSError as error:
        reason = f"it cannot be opened: {error.strerror}"
    return Found(
        name=name,
        size=node.size,
        model=model,
        type=kind,
        content=_content(node),
        use=[use.text for use in uses],
        can_backup=not reason,
        reason=reason,
    )


def _content(node: Node) -> str:
    try:
        return str(probe(node))
    except LookupError:
        return "?"


def _reason(node: Node, uses: list[Use]) -> str:
    if node.size == 0:
        return "it has size zero"
    if uses:
        return f"{uses[0].text}; {ADVICE[uses[0].kind]}"
    os.close(os.open(node.path, os.O_RDONLY | os.O_CLOEXEC))  # raises the reason
    return ""
