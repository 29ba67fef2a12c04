"""The end of a backup in a few lines for people. The same figures as JSON are the summary itself."""

from pathlib import Path

from blockcow.cli.verb import say
from blockcow.status import Status
from blockcow.units import format_size, format_time


def figures(status: Status) -> list[str]:
    """What happened, a line a subject."""
    rate = f", {format_size(status.device_bytes / status.duration_s)}/s" if status.duration_s > 0 else ""
    waits = status.suspended_us
    lines = [f"{format_size(status.device_bytes)} in {format_time(status.duration_s)}{rate}"]
    if status.suspended_writes:
        shares = (("p50", waits.p50), ("p99", waits.p99), ("longest", waits.max))
        times = ", ".join(f"{name} {format_time(us / 1e6)}" for name, us in shares)
        lines.append(f"{status.suspended_writes} suspended writes: {times}")
    fill = f"{format_size(status.container_peak_bytes)} of {format_size(status.container_capacity_bytes)}"
    held = format_time(status.hold_us / 1e6)
    lines.append(f"container: peak {fill}, {status.drains} drains; writes held for {held} at the cut")
    written, zeroes = format_size(status.dest_written_bytes), format_size(status.zero_bytes)
    lines.append(f"destination: {written} written, {zeroes} of zeroes left out")
    return lines


def _left_at(dest: Path) -> str:
    """What a backup that is not complete leaves there."""
    if dest.is_block_device():
        return "what is on it now is no backup"
    if dest.exists():  # an earlier one, or a daemon was killed just after it had published this one
        return "the image of that name is an earlier one, or verify finds it complete"
    return "no image was made"


def say_end(status: Status, manifest: str | None) -> None:
    """Tells people how the backup ended and what to do next."""
    if status.status != "complete":
        say(f"blockcow: the backup to {status.dest} is {status.status}; {_left_at(Path(status.dest))}")
        if status.status == "broken":
            say(f"blockcow: {status.error}")
        return
    say(f"blockcow: the backup to {status.dest} is complete")
    for line in figures(status):
        say(f"  {line}")
    beside = "" if manifest in (None, f"{status.dest}.manifest") else f" --manifest {manifest}"
    say(f"  check it at any time: blockcow verify {status.dest}{beside}")
