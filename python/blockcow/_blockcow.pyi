"""The Rust extension: devices, backups, verify and restore. Everything here releases the GIL while it works.

All offsets, lengths and sizes are in bytes, all times in seconds, unless a name says otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, final

from typing_extensions import Buffer, disjoint_base

__all__ = [
    "Backup",
    "BlockcowError",
    "BusyError",
    "CancelledError",
    "ContainerError",
    "DestinationError",
    "Device",
    "DeviceError",
    "ExistsError",
    "FuseExport",
    "ManifestError",
    "MismatchError",
    "NbdExport",
    "NbdServer",
    "NotFoundError",
    "StateError",
    "TimeoutExpired",
    "TrespassError",
    "__version__",
    "cut_together",
    "read_manifest",
    "restore",
    "verify",
]

__version__: str

class BlockcowError(Exception):
    """Base of all failures. ``str()`` is one sentence: the operation, the offset, the reason, what to do."""

    kind: str
    """Stable name of the kind, e.g. ``"busy"``, ``"exists"``, ``"destination"``."""
    operation: str
    errno: int | None
    offset: int | None

class BusyError(BlockcowError): ...
class ExistsError(BlockcowError): ...
class NotFoundError(BlockcowError): ...
class DeviceError(BlockcowError): ...
class ContainerError(BlockcowError): ...
class DestinationError(BlockcowError): ...
class ManifestError(BlockcowError): ...
class MismatchError(BlockcowError): ...
class TimeoutExpired(BlockcowError): ...
class TrespassError(BlockcowError): ...
class CancelledError(BlockcowError): ...
class StateError(BlockcowError): ...

@disjoint_base
class Device:
    """A block device or image file, held exclusively, that blockcow stands in front of. Safe from many threads."""

    def __new__(cls, path: str, *, read_only: bool = False, descriptors: Sequence[int] | None = None) -> Self:
        """Opens the device; or, given what `descriptors` was in another process, stands in for that process: the
        descriptors are duplicated, and their lock stays as it is."""
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def logical_block_size(self) -> int: ...
    @property
    def direct_io(self) -> bool:
        """Whether O_DIRECT is in use; otherwise I/O goes through the page cache."""
    @property
    def read_only(self) -> bool: ...
    @property
    def state(self) -> Literal["passing", "holding", "backing-up"]: ...
    def descriptors(self) -> list[int]:
        """The open descriptors behind it, for a process that keeps them alive. They stay the device's own."""
    def counters(self) -> dict[str, int]:
        """What programs asked of the device since it was opened: ``read_requests``, ``read_bytes``, ``read_errors``,
        the same for ``write``, ``zero``, ``discard`` and ``flush``; ``suspended_us`` in all, and ``suspended_le_N``:
        writes that were suspended for at most N microseconds (``inf``: all)."""
    def pread(self, length: int, offset: int) -> bytes: ...
    def pwrite(self, data: Buffer, offset: int) -> int: ...
    def flush(self) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def close(self) -> None:
        """Cancels a backup under way, waits for I/O in flight, releases the device. Idempotent."""
    def _prepare(
        self,
        *,
        dest: str,
        manifest: str,
        dest_overwrite: bool,
        container_kind: Literal["file", "block", "sections", "memory", "nbd"],
        container_path: str | None,
        container_sections: Sequence[tuple[int, int]],
        container_bytes: int,
        staging_bytes: int,
        capacity_bytes: int,
        drain_bytes: int,
        block_size: int | None,
        cbw_timeout: float,
        fail_write: bool,
        limit_read: int | None,
        ranges: Sequence[tuple[int, int]] | None,
        identity: dict[str, str],
        keep: bool = False,
        container_export: NbdExport | None = None,
        dest_export: NbdExport | None = None,
    ) -> Backup:
        """Creates a backup: opens the container and the destination, allocates memory, lists the blocks.

        ``container_sections`` are (offset, length) pairs on the device, for the kind ``sections``. ``container_bytes``
        0 means the whole block device. ``ranges`` are (offset, length) pairs and replace the list of all blocks less
        holes. ``identity`` is recorded in the manifest as given.
        ``container_export`` and ``dest_export``, where given, are taken and stand for the paths.
        ``keep``: the memory is a memfd, so that another process can go on with the backup; see `Backup.kept`.
        """

    def _resume(self, kept: dict[str, int], note: str, *, dest_export: NbdExport | None = None) -> Backup:
        """Goes on with a backup of this device whose process is dead, given what `Backup.kept` returned there.

        The descriptors are duplicated. Before the first request of a program comes through. The backup may have been
        published already; then it is complete. Raises, mostly `StateError`, if it cannot go on: then it is broken, and
        what it left at the destination is removed. Of a group that was cut together, cancel the others then.
        ``dest_export``: a destination on an NBD server, opened anew. With a container there no backup goes on: what the
        dead process had sent may still come to it.
        """

@final
class NbdExport:
    """An export of an NBD server, open for writing, that can be looked at before a backup takes it."""

    def __new__(cls, uri: str, role: Literal["container", "destination"], *, timeout: float) -> Self:
        """Connects. ``timeout``: after how many seconds without any sign of it the server is given up. ``role`` is the
        kind of the errors. Raises ValueError for a URI that means nothing, and for a read-only export."""
    @property
    def uri(self) -> str: ...
    @property
    def identity(self) -> str:
        """Equal for two URIs that lead to one export by one way. Two that differ may still be one disk."""
    @property
    def size(self) -> int: ...
    @property
    def can_sync(self) -> bool:
        """Whether the server can make data durable on demand, which a destination needs."""
    def pread(self, length: int, offset: int) -> bytes: ...
    def close(self) -> None:
        """Ends the connections, unless a backup has taken them. Idempotent."""

@final
class Backup:
    """One backup: created, active, then complete, broken or cancelled."""

    def cut(self, timeout: float) -> float:
        """Makes the cut and starts the sweep; returns the seconds for which writes were held."""
    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end; ``False`` if the timeout came first. Never raises for a broken backup: see ``status``."""
    @property
    def at_rest(self) -> bool:
        """Whether it has ended and none of its I/O is under way: then others may use its container's place."""
    def cancel(self) -> None: ...
    def raise_for_state(self) -> None:
        """Raises the first cause if the backup is broken or cancelled."""
    def status(self) -> dict[str, Any]:
        """Figures so far, with the keys of the summary (docs/formats.md) less ``message_type``."""
    def next_events(self, timeout: float) -> list[dict[str, Any]] | None:
        """Waits for events and returns those queued, maybe none at the timeout; ``None`` when no more will come."""
    def kept(self) -> tuple[dict[str, int], str]:
        """What another process needs to go on with this backup: descriptors by name, and a note.

        To be given away before the cut. They are copies and the caller's to close; whoever keeps them lets go of them
        after the end, because memory and the lock on the image last as long as they do. Raises `StateError` without
        ``keep``.
        """
    def block_map(self, cells: int) -> list[tuple[int, int, int, int]]:
        """For each of ``cells`` equal stretches of the device: blocks still to do, in the container, copied before
        write and gone to the destination, copied by the sweep. Blocks off the list are not counted."""

def cut_together(backups: Sequence[Backup], timeout: float) -> float:
    """One cut for backups of several devices: all hold, all are armed, all go on. Returns the seconds for which writes
    were held. If anything fails, all of the backups are cancelled."""

@final
class FuseExport:
    """A device as one file, served by FUSE on threads of its own, which never touch Python.

    The file outlives this object and this process: it ends with `close`, with an unmount, or when every descriptor of
    it is closed. A device stays held until its file is closed, even if the device is closed before.
    """

    @staticmethod
    def mount(device: Device, mountpoint: str, *, threads: int = 4, allow_other: bool = True) -> FuseExport:
        """Mounts the device on a regular file, whose permission bits and owner the file takes.

        Without root this needs ``fusermount3``. Where the machine does not let this user share mounts, ``allow_other``
        is left out.
        """
    @staticmethod
    def adopt(device: Device, descriptors: Sequence[int], note: str) -> FuseExport:
        """Serves a file in the place of a process that is dead: what was in flight is done again.

        Not before that process is gone. The descriptors are duplicated. Raises `StateError` where ``can_resend`` was
        false: nobody can take over then; once all descriptors are closed, programs get errors.
        """
    def descriptors(self) -> list[int]:
        """To be kept open by whoever wants to `adopt`: all of them, since each holds requests of its own."""
    def note(self) -> str:
        """What `adopt` needs beside the descriptors, as JSON."""
    @property
    def can_resend(self) -> bool:
        """Whether the kernel can send again what was in flight when this process dies (Linux 6.9)."""
    @property
    def mountpoint(self) -> str: ...
    def close(self, timeout: float = 30.0) -> None:
        """Unmounts the file, if that has not been done, and ends its threads. Idempotent. Raises `BusyError` while a
        program or a loop device has it open, and goes on then."""

@final
class NbdServer:
    """Serves devices to NBD clients on threads of its own, which never touch Python.

    There is no TLS and no password: whoever can reach a socket can read and write. A device stays held until the server
    is closed, even if the device is closed before.
    """

    def __new__(cls, exports: Sequence[tuple[str, Device]]) -> NbdServer:
        """``exports`` are names and devices; the first is also the default export, whose name is empty."""
    def serve(self, listener_fd: int) -> None:
        """Accepts clients from a listening stream socket, unix or TCP. The descriptor is duplicated, not taken; its
        socket becomes non-blocking. May be called for several sockets."""
    def connections(self) -> int:
        """How many clients are connected now."""
    def close(self) -> None:
        """Accepts nobody any more, answers the requests that were received, for at most five seconds, and ends all
        connections. Idempotent."""

def verify(image: str, manifest: str, progress: Callable[[int, int], object] | None = None) -> dict[str, Any]:
    """Compares an image with its manifest. Returns ``bytes``, ``digest`` and ``damaged``: offsets of the damaged
    extents, ascending. ``progress(done, total)`` is called now and then; an exception from it ends the work and is
    raised."""

def restore(
    image: str,
    manifest: str,
    device: str,
    *,
    force_damaged: bool = False,
    force_mounted: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> dict[str, Any]:
    """Verifies the image, then writes it to a block device or file (created if absent) and syncs it; every extent is
    checked again on its way. Raises ``MismatchError`` before the first write if the image is damaged, unless forced.
    ``progress(phase, done, total)`` has phase ``"verify"`` or ``"restore"``. Returns ``bytes``, ``digest``,
    ``damaged``, ``zero_bytes``."""

def read_manifest(path: str) -> dict[str, Any]:
    """The header of a manifest (docs/formats.md), after its own checksum was found right."""
