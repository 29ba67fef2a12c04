"""What a program saw of its device while it was backed up: when each write was acknowledged, and how long it took.

Holds figures, and measures nothing itself. A "write" may be any request of a program, also a transaction.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Self

_BINS = 200
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


@dataclass(frozen=True)
class Outcome:
    """What became of a backup. Times are in seconds; `began` since 1970, `fill` and `first_full_s` since `began`."""

    status: str
    began: float
    seconds: float
    container_peak_bytes: int
    fill: list[tuple[float, int]] = field(default_factory=list)
    first_full_s: float | None = None
    hold_us: int | None = None
    error: str = ""

    @classmethod
    def of_a_pause(cls, seconds: float) -> Self:
        """No backup at all, for so long."""
        began = time.time()
        time.sleep(seconds)
        return cls("complete", began, seconds, 0)


@dataclass(frozen=True)
class Trace:
    """One round of one contestant."""

    outcome: Outcome
    writes: list[tuple[float, float]]
    """Seconds after the beginning of the backup at which a write was acknowledged, and its latency in milliseconds."""

    @property
    def during(self) -> list[tuple[float, float]]:
        """The writes that were acknowledged while the backup was under way."""
        return [write for write in self.writes if 0 <= write[0] <= self.outcome.seconds]

    def rate(self, since: float = 0.0, until: float | None = None) -> float:
        """Writes a second, from so many seconds after the beginning of the backup to so many, or to its end."""
        end = self.outcome.seconds if until is None else min(until, self.outcome.seconds)
        return sum(since <= at <= end for at, _ in self.during) / (end - since) if end > since else 0.0

    def percentiles(self) -> dict[float, float]:
        """Latency in milliseconds that so many percent of the writes during the backup did not exceed."""
        latencies = sorted(latency for _, latency in self.during)
        if not latencies:
            return dict.fromkeys(PERCENTILES, 0.0)
        return {p: latencies[min(len(latencies) - 1, int(len(latencies) * p / 100))] for p in PERCENTILES}

    def rate_before(self) -> float:
        """Writes a second before the backup began."""
        before = [at for at, _ in self.writes if at < 0]
        return len(before) / -min(before) if before else 0.0

    def longest_before(self) -> float:
        """The longest latency before the backup began, in milliseconds."""
        return max((latency for at, latency in self.writes if at < 0), default=0.0)

    def for_plots(self) -> dict[str, Any]:
        """Few enough points to draw: for each of 200 stretches of time the highest latency and the rate of writes."""
        if not self.writes:
            return {}
        first, last = min(at for at, _ in self.writes), max(at for at, _ in self.writes)
        width = max(last - first, 1e-3) / _BINS
        highest, count = [0.0] * (_BINS + 1), [0] * (_BINS + 1)
        for at, latency in self.writes:
            number = int((at - first) / width)
            highest[number], count[number] = max(highest[number], latency), count[number] + 1
        return {
            "at_s": [first + number * width for number in range(_BINS)],
            "highest_ms": highest[:_BINS],
            "rate": [number / width for number in count[:_BINS]],
            "percentiles": sorted(self.percentiles().items()),
            "fill": self.outcome.fill,
            "ended_s": self.outcome.seconds,
        }
