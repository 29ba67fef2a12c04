"""Failures found on the Python side, raised as the extension's own exceptions. Decides nothing about exit codes."""

from typing import TypeVar

from blockcow._blockcow import (
    BlockcowError,
    BusyError,
    ContainerError,
    DestinationError,
    DeviceError,
    ExistsError,
    NotFoundError,
)

_KINDS: dict[type[BlockcowError], str] = {
    BusyError: "busy",
    ContainerError: "container",
    DestinationError: "destination",
    DeviceError: "device",
    ExistsError: "exists",
    NotFoundError: "not-found",
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
