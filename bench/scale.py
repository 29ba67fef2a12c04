"""How much work a run of the benchmarks does, and where the project is."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Scale:
    """How much work a run does."""

    rounds: int
    idle_bytes: int
    load_bytes: int
    decisions: int
    served_bytes: int
    fio_seconds: float
    fio_rounds: int
    written_bytes: int
    slow_written_bytes: int
    slow_bytes_per_second: int
    database_bytes: int
    database_scale: int


FULL = Scale(
    rounds=5,
    idle_bytes=2 << 30,
    load_bytes=256 << 20,
    decisions=1_000_000,
    served_bytes=256 << 20,
    fio_seconds=1.0,
    fio_rounds=5,
    written_bytes=1 << 30,
    slow_written_bytes=128 << 20,
    slow_bytes_per_second=20_000_000,
    database_bytes=1 << 30,
    database_scale=20,
)
QUICK = Scale(
    rounds=1,
    idle_bytes=64 << 20,
    load_bytes=16 << 20,
    decisions=100_000,
    served_bytes=16 << 20,
    fio_seconds=0.1,
    fio_rounds=1,
    written_bytes=64 << 20,
    slow_written_bytes=32 << 20,
    slow_bytes_per_second=40_000_000,
    database_bytes=256 << 20,
    database_scale=1,
)
