"""A device that a program opens and writes through blockcow. Reads and writes go straight to the extension."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self, Unpack

from blockcow import _blockcow
from blockcow.backup import Backup, cut_together
from blockcow.consistency import quiesced
from blockcow.inside import clean, make
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
        return start_together([(self, plan)])[0]

    def prepare(self, plan: Plan, *, keep: bool = False) -> Backup:
        """Does everything that can fail or takes time before the cut. `Backup.kept` says what ``keep`` is for."""
        self.flush()
        place = plan.container
        if place.kind != "inside" or place.path is None:
            return Backup(self._prepare(**plan.arguments(), keep=keep), plan.device.path, plan.dest)
        inside = make(place.path, place.length, place.offset, self.pread)
        try:
            inner = self._prepare(**plan.arguments(inside.sections), keep=keep)
        except BaseException:
            clean(inside.path)
            raise
        return Backup(inner, plan.device.path, plan.dest, inside.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def start_together(
    group: Sequence[tuple[Device, Plan]], around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> list[Backup]:
    """Makes one cut for several devices; inside ``around``, once everything is prepared. All of them or none."""
    prepared: list[Backup] = []
    try:
        prepared.extend(device.prepare(plan) for device, plan in group)
        mounts = [point for _, plan in group for point in plan.mounts]
        outside = [path for _, plan in group for path in plan.outside()]
        first = group[0][1]
        with around(), quiesced(first.consistency, mounts, 2 * first.cbw_timeout, outside):
            cut_together(prepared, first.cbw_timeout)
    except BaseException:
        for backup in prepared:
            backup.discard()
        raise
    return prepared
