"""Exports of NBD servers, named by URIs, as places for the container and the destination: opened, found fit, kept open.

A server may end with its last client, or take only one: what is looked at here is what the backup then writes to, if it
starts in the same process.
"""

import os
import re
from typing import Literal, cast

from blockcow._blockcow import ContainerError, DestinationError, NbdExport
from blockcow.errors import failure
from blockcow.signature import Signature, probe_path

__all__ = ["TIMEOUT", "NbdExport", "held", "hold", "is_uri", "open_blank", "probe", "take"]

TIMEOUT = 60.0
"""Seconds without any sign of a server after which it is given up."""
Role = Literal["container", "destination"]
_EDGE = 1024 * 1024  # signatures lie in the first or in the last MiB
_URI = re.compile(r"nbds?(\+[a-z]*)?:", re.IGNORECASE)


def is_uri(text: str) -> bool:
    """Whether ``text`` is meant as a URI of NBD, right or wrong, and not as a path."""
    return _URI.match(text) is not None


def hold(owner: object, export: NbdExport) -> None:
    """Keeps an export open with a frozen object, beside its fields: who gets a copy of those must open it anew."""
    vars(owner)["_export"] = export


def held(owner: object) -> NbdExport | None:
    """What is kept open with an object."""
    return cast("NbdExport | None", vars(owner).get("_export"))


def take(owner: object, uri: str, role: Role, timeout: float) -> NbdExport:
    """The export that is kept open with an object, and is not any more then; or else it is opened."""
    export = held(owner)
    vars(owner).pop("_export", None)
    return export or NbdExport(uri, role, timeout=timeout)


def open_blank(uri: str, role: Role, force: bool, timeout: float) -> NbdExport:
    """The export, open for writing. Raises unless it holds nothing, or ``force`` is given.

    Raises ValueError for a URI that means nothing and for an export that is read-only.
    """
    export = NbdExport(uri, role, timeout=timeout)
    if not force:
        _require_blank(export, role)
    return export


def _require_blank(export: NbdExport, role: str) -> None:
    kind = ContainerError if role == "container" else DestinationError
    option = "container-has-filesystem" if role == "container" else "dest-has-filesystem"
    operation, advice = f"open the {role} {export.uri}", f"to overwrite it, add --force {option}"
    try:
        found = probe(export)
    except LookupError as error:
        raise failure(kind, operation, f"cannot tell whether it is in use: {error}; {advice}") from error
    if found:
        raise failure(kind, operation, f"it holds {found}; choose another, or {advice}")


def probe(export: NbdExport) -> Signature:
    """What lies on the export. Raises LookupError with the reason if it cannot be told for sure."""
    descriptor = os.memfd_create("blockcow-export")
    try:
        os.truncate(descriptor, export.size)
        for offset in sorted({0, max(0, export.size - _EDGE)}):
            data = export.pread(min(_EDGE, export.size - offset), offset)
            if data.strip(b"\0"):
                os.pwrite(descriptor, data, offset)
        return probe_path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)
