"""`blockcow demo`: the story of one backup under full write load, on the screen. What happens is in blockcow.demo."""

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from blockcow import Device
from blockcow import demo as scene
from blockcow._blockcow import verify
from blockcow.backup import Backup
from blockcow.cli.blockmap import CELLS, draw, legend, shares
from blockcow.cli.summary import figures
from blockcow.cli.values import SIZE
from blockcow.cli.verb import FAILURE, Verb, VerbFailedError, print_json, say
from blockcow.status import Status
from blockcow.units import format_size, parse_size

_SEED = 1
_WRITERS = 4
_WARM_UP = 0.5  # seconds of writing before the cut
_SECONDS = 4  # for which the sweep is stretched, so that there is something to see
_SMALLEST = 16 * 1024 * 1024


@dataclass(frozen=True)
class _Proof:
    equal: bool
    first_difference: int | None
    damaged: list[int]
    filesystem_clean: bool | None
    blocks_overwritten: int
    writes: int
    failed_write: str | None

    @property
    def holds(self) -> bool:
        return self.equal and not self.damaged and self.filesystem_clean is not False and self.failed_write is None


@click.command(cls=Verb)
@click.option("--size", type=SIZE, default="256M", show_default=True, help="Size of the device file.")
@click.option("--container", type=SIZE, default="16M", show_default=True, help="Size of the container.")
@click.option("--keep", is_flag=True, help="Keep the files and say where they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def demo(size: str, container: str, keep: bool, as_json: bool) -> None:
    """Shows a backup under full write load, and proves it. Needs no disk and no root."""
    device_bytes = parse_size(size) // 4096 * 4096
    if device_bytes < _SMALLEST:
        raise click.UsageError(f"the size {size} is too small for a demo: give at least {format_size(_SMALLEST)}")
    folder = Path(tempfile.mkdtemp(prefix="blockcow-demo-"))
    try:
        _require_space(folder, 4 * device_bytes + parse_size(container))
        teller = _Teller(as_json)
        status, proof = _play(folder, device_bytes, parse_size(container), teller)
        teller.tell_end(status, proof)
    finally:
        if keep:
            say(f"blockcow: the demo's files are in {folder}")
        else:
            shutil.rmtree(folder)
    if not proof.holds:
        raise VerbFailedError(FAILURE)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        where = f"{folder.parent} has {format_size(free)} free, the demo needs {format_size(needed)}"
        raise OSError(f"{where}; set TMPDIR to a larger place, or choose a smaller --size")


def _play(folder: Path, size: int, container: int, teller: "_Teller") -> tuple[Status, _Proof]:
    device_path, copy, image = folder / "device.img", folder / "copy-at-the-cut.img", folder / "backup.img"
    teller.line(f"Making a device of {format_size(size)} in {device_path}")
    free_from = scene.make_device(device_path, size, _SEED)
    what = "with an ext4 file system full of files" if free_from else "full of noise (mkfs.ext4 is not here)"
    teller.line(f"It is ready, {what}. {_WRITERS} writers start at full speed.")
    with ExitStack() as stack:
        device = stack.enter_context(Device(device_path))
        writers = scene.Writers(device, (free_from, size), _WRITERS, _SEED)
        stack.callback(writers.stop)
        time.sleep(_WARM_UP)
        writers.pause()
        try:
            shutil.copyfile(device_path, copy)
            cow, limit = folder / "container", max(size // _SECONDS, 1)
            backup = device.backup(container=cow, container_size=container, dest=image, limit_read=limit)
            writers.region = (0, size)
            before = writers.writes
        finally:
            writers.resume()
        stack.enter_context(backup)
        teller.line(
            f"The cut is made. The writers now overwrite everything; the container holds {format_size(container)}."
        )
        teller.watch(backup)
        writes = writers.writes - before
        status = backup.status()
    return status, _prove(device_path, copy, image, writes, writers.failure, bool(free_from))


def _prove(
    device: Path, copy: Path, image: Path, writes: int, failure: Exception | None, has_filesystem: bool
) -> _Proof:
    result = scene.compare(image, copy)
    damaged = verify(str(image), f"{image}.manifest")["damaged"]
    clean = scene.check_filesystem(image) if has_filesystem else None
    overwritten = scene.compare(device, copy).differing_blocks
    failed = None if failure is None else str(failure)
    return _Proof(result.first_difference is None, result.first_difference, damaged, clean, overwritten, writes, failed)


class _Teller:
    """Tells the story: live on a terminal, a few plain lines when piped, JSON lines if asked."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        if not self._as_json:
            self._console.print(text, markup=False)

    def watch(self, backup: Backup) -> None:
        cells = CELLS[0] * CELLS[1]
        if self._console.is_terminal and not self._as_json:
            with Live(self._picture(backup), console=self._console, refresh_per_second=10) as live:
                while not backup.ended(0.1):
                    live.update(self._picture(backup))
                live.update(self._picture(backup))
            return
        ended = False
        while not ended:
            ended = backup.ended(1.0)
            if self._as_json:
                print_json("status", backup.status())
            self.line(f"  {shares(backup.block_map(cells))}; {backup.status().suspended_writes} suspended writes")

    def _picture(self, backup: Backup) -> Group:
        rows, columns = CELLS
        status = backup.status()
        drains = f"{status.suspended_writes} suspended writes, {status.drains} drains"
        return Group(draw(backup.block_map(rows * columns)), legend(), Text(drains))

    def tell_end(self, status: Status, proof: _Proof) -> None:
        if self._as_json:
            print_json("summary", status)
            print_json("proof", proof)
            return
        self.line("")
        for line in figures(status):
            self.line(f"  {line}")
        self.line("")
        for line in _proof_lines(proof):
            self.line(f"  {line}")
        self.line("")
        self.line("The same for real:  blockcow backup --device /dev/sdX --container memory:256M --dest sdX.img")


def _proof_lines(proof: _Proof) -> list[str]:
    equal = "The image equals the device at the cut, byte for byte."
    if not proof.equal:
        equal = f"The image DIFFERS from the device at the cut, first at offset {proof.first_difference}."
    checked = "found it undamaged" if not proof.damaged else f"found damage, first at offset {proof.damaged[0]}"
    failed = "none failed" if proof.failed_write is None else f"ONE FAILED: {proof.failed_write}"
    lines = [
        equal,
        f"blockcow verify {checked}.",
        f"Meanwhile the device saw {proof.writes} writes, discards and zeroes; {failed}.",
        f"{proof.blocks_overwritten} of its blocks of 4 KiB are no longer what they were.",
    ]
    if proof.filesystem_clean is not None:
        state = "clean" if proof.filesystem_clean else "DAMAGED"
        lines.insert(2, f"e2fsck finds the file system in the image {state}.")
    return lines
