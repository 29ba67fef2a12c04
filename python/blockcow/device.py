"""A device that a program opens and writes through blockcow. Reads and writes go straight to the extension."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from blockcow import _blockcow
from blockcow.backup import Backup
from blockcow.consistency import quiesced
from blockcow.inside import clean, make, remove
from blockcow.node import find
from blockcow.plan import Options, Plan, make_plan
from blockcow.preflight import check_device


class Device(_blockcow.Device):
    """A block device or image file, held exclusively while open. Safe from many threads; releases the GIL.

    Raises BusyError with the reason if it is mounted or another program can write to it.
    """

    def __new__(cls, path: str | os.PathLike[str], *, read_only: bool = False) -> Self:
        node = check_device(path)
        return super().__new__(cls, node.path, read_only=read_only)

    @classmethod
    def adopt(cls, path: str, descriptors: Sequence[int]) -> Self:
        """Stands in for a process that has died or gives way, with its `descriptors`; the lock is theirs and stays."""
        return super().__new__(cls, path, descriptors=descriptors)

    def backup(
        self, *, container: str | os.PathLike[str], dest: str | os.PathLike[str], **options: Unpack[Options]
    ) -> Backup:
        """Makes the cut now and returns the active backup. `Options` lists what else there is.

        ``container`` is a file path, a block device, ``device:OFFSET+LENGTH``, ``device:free`` or ``memory:256M``. A
        file in a file system at one of ``mounts`` is gone again once the end of the backup was waited for.
        Raises ValueError for bad arguments, a BlockcowError for the rest; the device goes on as before then.
        """
        return self.start(make_plan(find(self.path), container, dest, **options))

    def start(self, plan: Plan) -> Backup:
        """Makes the cut for a plan made by `make_plan` for this device."""
        self.flush()
        place = plan.container
        if place.kind != "inside" or place.path is None:
            return self._cut(plan, self._prepare(**plan.arguments()), None)
        inside = make(place.path, place.length, place.offset, self.pread)
        try:
            inner = self._prepare(**plan.arguments(inside.sections))
        except BaseException:
            clean(inside.path)
            raise
        return self._cut(plan, inner, inside.path)

    def _cut(self, plan: Plan, inner: _blockcow.Backup, inside: str | None) -> Backup:
        try:
            with quiesced(plan.consistency, plan.mounts, 2 * plan.cbw_timeout, plan.outside()):
                inner.cut(plan.cbw_timeout)
        except BaseException:
            inner.cancel()
            if inside is not None and inner.wait(None):
                remove(inside, inner.at_rest)
            raise
        return Backup(inner, plan.device.path, plan.dest, inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
