"""The figures of a backup, typed. The words are those of the summary in docs/formats.md."""

import msgspec

SCHEMA = 1
"""Version of everything that is printed as JSON."""


class Percentiles(msgspec.Struct, frozen=True):
    """How long writes were suspended, in microseconds."""

    p50: int
    p99: int
    p999: int
    max: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one backup so far, or at its end. Sizes in bytes unless a name says otherwise."""

    status: str
    """``created``, ``active``, ``complete``, ``broken`` or ``cancelled``."""
    device: str
    dest: str
    device_bytes: int
    block_size: int
    done_bytes: int
    """Bytes of the device with which the sweep is done."""
    blocks_listed: int
    blocks_swept: int
    blocks_copied_before_write: int
    suspended_writes: int
    """Writes that were suspended and have gone on."""
    suspended_now: int
    suspended_us: Percentiles
    hold_us: int
    """For how long the cut held writes."""
    container_capacity_bytes: int
    """The selected capacity."""
    container_used_bytes: int
    container_peak_bytes: int
    drains: int
    draining: bool
    """Whether writes wait for a drain now."""
    dest_written_bytes: int
    zero_bytes: int
    """Bytes found zero, or off the list, and not written."""
    cut_at: str | None
    """RFC 3339 in UTC."""
    duration_s: float
    """Seconds since the cut, until the end."""
    digest: str | None
    error: str | None
    """The first cause, when it is broken or cancelled."""
    worker_restarts: int
    """How often the process that made the backup died and another went on with it."""
    events_dropped: int
    """Events that nobody read in time."""
