"""Sizes, times and shares: what is accepted, what it means, and that what is printed can be read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockcow.units import format_size, format_time, parse_share, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4KB", 4096),
        ("64M", 64 << 20),
        ("1.5G", 3 << 29),
        ("1 T", 1 << 40),
        ("2PiB", 2 << 50),
        ("7B", 7),
        (12, 12),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "4X", "1e3", "4 K K", "0.3", "9000P", "٤K", "4Ki B", "0x10", -4, 1 << 63]
)
def test_no_sizes(text: str | int) -> None:
    with pytest.raises(ValueError, match="size|whole|range"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("30s", 30), ("500ms", 0.5), ("2m", 120), ("0.5s", 0.5), (3, 3)]
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "0",
        "-1s",
        "1h",
        "2 days",
        "nan",
        "inf",
        "100000m",
        "9" * 400,
        f"0.{'0' * 400}1",
        0,
        -1,
        10**400,
        float("nan"),
    ],
)
def test_no_times(text: str | float) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_time(text)


@pytest.mark.parametrize(("text", "share"), [("90%", 900), ("0.5%", 5), ("100 %", 1000), ("1000", 1000), (10, 10)])
def test_shares(text: str | int, share: int) -> None:
    assert parse_share(text, 1000) == share


@pytest.mark.parametrize("text", ["0%", "101%", "%", "ninety", "1001", "0", "-5%"])
def test_no_shares(text: str) -> None:
    with pytest.raises(ValueError, match="percentage|part"):
        parse_share(text, 1000)


@given(st.integers(0, 2**63 - 1))
def test_a_printed_size_is_short_and_reads_back_to_nearly_itself(size: int) -> None:
    text = format_size(size)
    value, unit = text.split(" ")
    assert len(value) <= 6
    exact = float(value) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(exact - size) <= 0.051 * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)


@given(st.integers(0, 2**52), st.sampled_from(["", "K", "KiB", "k"]))
def test_any_whole_size_is_read_exactly(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * (1024 if unit else 1)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_time, lambda value: parse_share(value, 100)):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00025, "250 us"), (0.0015, "1.5 ms"), (12.34, "12.3 s"), (65, "1 min 5 s"), (7380, "2 h 3 min")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
