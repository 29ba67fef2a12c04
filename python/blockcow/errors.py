"""Failures found on the Python side, raised as the extension's own exceptions, and failures as they go from process to
process. Decides nothing about exit codes."""

import errno as numbers
from typing import Any, TypeVar

from blockcow._blockcow import (
    BlockcowError,
    BusyError,
    CancelledError,
    ContainerError,
    DestinationError,
    DeviceError,
    ExistsError,
    ManifestError,
    MismatchError,
    NotFoundError,
    StateError,
    TimeoutExpired,
    TrespassError,
)

_KINDS: dict[type[BlockcowError], str] = {
    BusyError: "busy",
    CancelledError: "cancelled",
    ContainerError: "container",
    DestinationError: "destination",
    DeviceError: "device",
    ExistsError: "exists",
    ManifestError: "manifest",
    MismatchError: "mismatch",
    NotFoundError: "not-found",
    StateError: "state",
    TimeoutExpired: "timeout",
    TrespassError: "trespass",
}

E = TypeVar("E", bound=BlockcowError)


def failure(kind: type[E], operation: str, reason: str, errno: int | None = None) -> E:
    """An exception of ``kind`` with the same text and attributes as one from the extension."""
    error = kind(f"{operation}: {reason}")
    error.kind = _KINDS[kind]
    error.operation = operation
    error.errno = errno
    error.offset = None
    return error


def expected_text(error: BaseException) -> str | None:
    """A failure in one line for people; None for one that nobody foresaw."""
    if isinstance(error, (BlockcowError, ValueError, TimeoutError)) and str(error):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return "not enough memory; choose a smaller container in memory or a smaller staging size"
    return None


def fields_of(error: BaseException) -> dict[str, Any]:
    """A failure as the fields of a JSON object, from which `rebuilt` makes it again in another process."""
    text = expected_text(error) or f"unexpected {type(error).__name__}: {error}".split("\n", 1)[0]
    if isinstance(error, BlockcowError):
        place = {"operation": error.operation, "errno": error.errno, "offset": error.offset}
        return {"kind": error.kind, **place, "message": text}
    kind = "invalid" if isinstance(error, ValueError) else "internal"
    return {"kind": kind, "operation": None, "errno": getattr(error, "errno", None), "offset": None, "message": text}


def rebuilt(fields: dict[str, Any]) -> Exception:
    """The failure that `fields_of` described."""
    message = str(fields.get("message") or "no reason was given")
    if fields.get("kind") == "invalid":
        return ValueError(message)
    for kind, name in _KINDS.items():
        if name == fields.get("kind"):
            error = kind(message)
            error.kind, error.operation = name, str(fields.get("operation") or "")
            error.errno, error.offset = fields.get("errno"), fields.get("offset")
            return error
    return OSError(fields.get("errno") or numbers.EIO, message)
