"""What people type and what is read from disks, changed at random: it is understood rightly, or refused in words.

The long runs are `make proof`'s. `fuzz/README.md` says where the seeds come from.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from pathlib import Path

import msgspec
import pytest

from blockcow.container import Container, resolve
from blockcow.daemon.folders import RunFolder, State
from blockcow.errors import expected_text
from blockcow.export import is_uri
from blockcow.node import Node, find
from blockcow.superblock import filesystem_end
from blockcow.units import parse_share, parse_size, parse_time
from conftest import MIB
from mutate import corpus, fuzz

LARGEST = 2**63 - 1
DAY = 86_400
SUPERBLOCKS = {"ext2": 1024, "ext4": 1024, "xfs": 0, "btrfs": 65536}


def refused(parse: Callable[[str], object], text: str) -> bool:
    """Whether it is refused; as it must be then, in words that a person is shown."""
    try:
        parse(text)
    except Exception as error:
        assert isinstance(error, ValueError), error
        assert str(error)
        return True
    return False


def exact(text: str, units: dict[str, Decimal]) -> Decimal:
    """What a number with a unit means, by another arithmetic."""
    digits = text.strip().lower()
    number = digits.rstrip("abcdefghijklmnopqrstuvwxyz% \t\r\n\v\f\x1c\x1d\x1e\x1f\x85\xa0")
    unit = digits[len(number) :].strip()
    return Decimal(number) * units[unit]


def check_units(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    with localcontext(prec=2000):
        steps = {name: Decimal(1024) ** power for power, name in enumerate(["", "k", "m", "g", "t", "p"])}
        units = {form: step for name, step in steps.items() for form in (name, f"{name}b", f"{name}ib")}
        if not refused(parse_size, text):
            size = parse_size(text)
            assert 0 <= size <= LARGEST
            assert size == exact(text, units)
            assert parse_size(str(size)) == size
        times = {"": Decimal(1), "s": Decimal(1), "ms": Decimal("0.001"), "m": Decimal(60)}
        if not refused(parse_time, text):
            seconds = parse_time(text)
            assert 0 < seconds <= DAY
            assert seconds == float(exact(text, times))
        if not refused(lambda value: parse_share(value, 10 * MIB), text):
            share = parse_share(text, 10 * MIB)
            assert 0 <= share <= 10 * MIB
            if text.strip().endswith("%"):
                assert share == int(exact(text, {"%": Decimal(10 * MIB) / 100}))
            else:
                assert share == parse_size(text)


def check_container(text: str, device: Node) -> None:
    if is_uri(text):  # would connect; the tests of URIs are elsewhere
        return
    try:
        found = resolve(text, device, "out.img", None, (), ())
    except Exception as error:
        assert expected_text(error), repr(error)
        return
    assert isinstance(found, Container)
    assert found.length > 0
    if found.kind == "section":
        assert found.offset % 4096 == found.length % 4096 == 0
        assert found.offset + found.length <= device.size
    elif found.kind == "memory":
        assert found.length == parse_size(text.partition(":")[2])
    else:
        assert (found.kind, found.path) == ("file", text)


def check_state(data: bytes, folder: RunFolder) -> None:
    (folder.path / "state.json").write_bytes(data)
    try:
        state = folder.read()
    except (OSError, ValueError) as error:
        assert str(error)
        return
    folder.write(state)
    assert folder.read() == state
    assert msgspec.convert(msgspec.to_builtins(state), State) == state


def check_leftovers(data: bytes, folder: RunFolder) -> None:
    folder.path.with_name(f"{folder.name}.leftovers").write_bytes(data)
    left = folder.leftovers()
    assert all(isinstance(path, str) for path in left)
    folder.remember(left)
    assert folder.leftovers() == left


def check_superblock(data: bytes, disk: Path) -> None:
    for name, offset in SUPERBLOCKS.items():
        disk.write_bytes(bytes(offset) + data)
        try:
            assert filesystem_end(str(disk), name) >= 0
        except LookupError as error:
            assert str(error)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """An empty file as a device, in the folder that paths begin from."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    return find(path)


@pytest.fixture
def folder() -> Iterator[RunFolder]:
    """An empty run folder, in memory where there is such a place: thousands of files are written there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of our own in it
    with tempfile.TemporaryDirectory(dir=memory) as path:
        (found := RunFolder(Path(path) / "t")).path.mkdir()
        yield found


def run(what: str, budget: int, device: Node, folder: RunFolder) -> None:
    """One target."""
    checks: dict[str, Callable[[bytes], object]] = {
        "sizes": check_units,
        "container": lambda data: check_container(data.decode(errors="surrogateescape"), device),
        "state": lambda data: check_state(data, folder),
        "leftovers": lambda data: check_leftovers(data, folder),
        "superblock": lambda data: check_superblock(data, folder.path / "superblock"),
    }
    fuzz(what, budget, checks[what])


@pytest.mark.parametrize("what", ["sizes", "container", "state", "leftovers", "superblock"])
def test_some(what: str, device: Node, folder: RunFolder) -> None:
    run(what, 500, device, folder)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("what", "budget"),
    [("sizes", 100_000), ("container", 50_000), ("state", 50_000), ("leftovers", 50_000), ("superblock", 50_000)],
)
def test_many(what: str, budget: int, device: Node, folder: RunFolder) -> None:
    run(what, budget, device, folder)


def test_superblocks_of_real_file_systems_are_read(tmp_path: Path) -> None:
    for name, data in corpus("superblock").items():
        kind, size = name.split("-")
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(SUPERBLOCKS[kind]) + data)
        assert filesystem_end(str(disk), kind) == int(size), name
