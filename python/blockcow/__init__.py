"""blockcow: backs up a block device by copy-before-write in user space while programs keep writing to it.

This file is the public interface: whatever it does not name may change.
"""

import os
from typing import Unpack

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
    __version__,
    read_manifest,
    restore,
    verify,
)
from blockcow.backup import Backup
from blockcow.device import Device
from blockcow.plan import Options
from blockcow.status import Percentiles, Status

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
    "ManifestError",
    "MismatchError",
    "NotFoundError",
    "Options",
    "Percentiles",
    "StateError",
    "Status",
    "TimeoutExpired",
    "TrespassError",
    "__version__",
    "backup",
    "read_manifest",
    "restore",
    "verify",
]


def backup(
    *,
    device: str | os.PathLike[str],
    container: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    **options: Unpack[Options],
) -> Status:
    """Backs up a device that no other program uses, in one call. Returns its figures; raises if it is not complete."""
    with Device(device, read_only=not os.fspath(container).startswith("device:")) as opened:
        under_way = opened.backup(container=container, dest=dest, **options)
        with under_way:
            under_way.wait()
        return under_way.status()
