"""The oracle itself: it takes true cuts and refuses every other image. Needs no attached device and no root."""

from pathlib import Path

import pytest

from stamps import SECTOR, Log, Region, Stream, Writer, assert_one_instant, find, find_flushed, reader, stamp

SECTORS = 64
WRITES = 300


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    """Two files that were written for a while."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(SECTORS * SECTOR + 4096))
    regions = [Region(str(tmp_path / name), 4096, SECTORS) for name in ("a", "b")]
    stream = Stream(7, regions, tmp_path / "log", flush_every=10)
    with Writer(stream) as writer:
        writer.wait_for(WRITES)
    return stream


def replay(stream: Stream, upto: int, *, skip: int = 0) -> list[bytearray]:
    """The images after so many writes, one of them left out."""
    images = [bytearray(region.offset + region.sectors * SECTOR) for region in stream.targets]
    for number, target, first, run in stream.moves():
        if number > upto:
            return images
        for sector in range(first, first + run) if number != skip else ():
            at = stream.targets[target].offset + sector * SECTOR
            images[target][at : at + SECTOR] = stamp(stream.seed, number, at)
    return images


def find_in(stream: Stream, images: list[bytearray]) -> int:
    def read_from(image: bytearray) -> "type[bytes]":
        return lambda length, offset: bytes(image[offset : offset + length])  # type: ignore[return-value]

    return find(stream, [read_from(image) for image in images]).number


def test_what_was_written_is_a_cut_and_bounds_its_instant(stream: Stream) -> None:
    found = find(stream, [reader(region.path) for region in stream.targets])
    last = Log(stream.log).last(1)
    assert found.number == last >= WRITES
    assert_one_instant([found], before=Log(stream.log).times(last)[1])
    with pytest.raises(AssertionError, match="no instant fits"):
        assert_one_instant([found], after=Log(stream.log).times(last)[0] - 1)
    assert find_flushed(stream, [reader(region.path) for region in stream.targets]) == last - last % 10


@pytest.mark.parametrize("upto", [0, 1, 2, 150, WRITES])
def test_every_prefix_is_a_cut(stream: Stream, upto: int) -> None:
    assert find_in(stream, replay(stream, upto)) == upto


def test_a_missing_write_is_found(stream: Stream) -> None:
    with pytest.raises(AssertionError, match="not of one cut"):
        find_in(stream, replay(stream, WRITES, skip=WRITES - 1))


def test_images_of_two_instants_are_found(stream: Stream) -> None:
    early, late = replay(stream, WRITES - 10), replay(stream, WRITES)
    with pytest.raises(AssertionError, match="not of one cut"):
        find_in(stream, [early[0], late[1]])


def test_a_foreign_or_torn_sector_is_found(stream: Stream) -> None:
    images = replay(stream, WRITES)
    images[0][4096 + 100] ^= 1
    with pytest.raises(AssertionError, match="written by nobody"):
        find_in(stream, images)


def test_what_was_flushed_and_is_gone_is_found(stream: Stream) -> None:
    path = Path(stream.targets[0].path)
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(AssertionError, match="was flushed"):
        find_flushed(stream, [reader(region.path) for region in stream.targets])
