"""Sizes, times and percentages: from what people type to numbers, and back. Knows nothing of devices.

Sizes are in bytes and have IEC steps: 4K = 4KiB = 4096. Times are in seconds.
"""

import re
from fractions import Fraction

_SIZE_STEPS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
_TIME_UNITS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "": Fraction(1)}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m)?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_LARGEST_SIZE = 2**63 - 1  # what a file offset can hold
_SHORTEST_TIME, _LONGEST_TIME = Fraction(1, 10**9), 86_400


def parse_size(text: str | int) -> int:
    """Bytes from ``4096``, ``4K``, ``64MiB``, ``1.5G``. Raises ValueError unless it is a whole number of bytes."""
    if isinstance(text, int):
        return _checked_size(Fraction(text), text)
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with K, M, G or T, for example 4K or 1G")
    number, step = match.groups()
    return _checked_size(Fraction(number) * 1024 ** _SIZE_STEPS[(step or "").upper()], text)


def _checked_size(value: Fraction, text: str | int) -> int:
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if not 0 <= value <= _LARGEST_SIZE:
        raise ValueError(f"{text!r} is out of range: a size is between 0 and 8 EiB")
    return int(value)


def parse_time(text: str | float) -> float:
    """Seconds from ``30``, ``30s``, ``500ms``, ``2m``. Raises ValueError unless it is above zero and at most a day."""
    if isinstance(text, str):
        match = _TIME.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a time: write seconds, or a number with ms, s or m, for example 500ms")
        number, unit = match.groups()
        seconds: Fraction | float = Fraction(number) * _TIME_UNITS[(unit or "").lower()]
    else:
        seconds = text
    if not _SHORTEST_TIME <= seconds <= _LONGEST_TIME:  # floats cannot hold all that people type
        raise ValueError(f"{text!r} is out of range: a time is above zero and at most a day")
    return float(seconds)


def parse_share(text: str | int, whole: int) -> int:
    """Bytes from a percentage of ``whole`` (``90%``) or from a size. Raises ValueError if it exceeds ``whole``."""
    match = _PERCENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is not None:
        share = Fraction(match.group(1)) / 100
        if not 0 < share <= 1:
            raise ValueError(f"{text!r} is out of range: a percentage is above 0% and at most 100%")
        return int(whole * share)
    try:
        size = parse_size(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither a percentage, for example 90%, nor a size") from error
    if not 0 < size <= whole:
        raise ValueError(f"{text!r} is out of range: it is a part of {format_size(whole)}")
    return size


def format_size(size: float) -> str:
    """For people, at most four digits: ``512 B``, ``1.5 MiB``, ``16 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if round(value, 1) < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + " PiB"


def format_time(seconds: float) -> str:
    """For people: ``250 us``, ``1.5 ms``, ``12.3 s``, ``1 min 5 s``, ``2 h 3 min``."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
