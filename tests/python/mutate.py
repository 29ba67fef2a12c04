"""Seeds changed at random, by a known sequence: the fuzzing of what Python parses. Holds no test."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proof import tallied

_CORPUS = Path(__file__).parent.parent.parent / "fuzz" / "corpus"
_WORDS = [
    b"0",
    b"-1",
    b"9" * 30,
    b"1e9",
    b'"',
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"null",
    b"\0",
    b"\n",
    b"%",
    b"/",
]
_EDGES = [0, 1, 0x7FFFFFFF, 0xFFFFFFFF]


def corpus(target: str) -> dict[str, bytes]:
    """The seeds by their names."""
    seeds = {path.name: path.read_bytes() for path in sorted((_CORPUS / target).iterdir())}
    assert seeds
    return seeds


def _mutated(seed: bytes, seeds: list[bytes], chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randint(1, 5)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.randint(1, 64))
        match chance.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 4] = chance.choice(_EDGES).to_bytes(4, chance.choice(["little", "big"]))
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = chance.randbytes(chance.randint(1, 16))
            case 4 | 5:
                data[at:at] = chance.choice(_WORDS)
            case 6:
                data[at:at] = data[at:end] * chance.randint(1, 20)
            case _:
                other = chance.choice(seeds)
                data[at:] = other[chance.randint(0, len(other)) :]
    return bytes(data)


def inputs(target: str, count: int) -> Iterator[bytes]:
    """The seeds, then mutations of them, ``count`` in all and always the same."""
    seeds = list(corpus(target).values())
    chance = random.Random(target)
    yield from seeds
    for _ in range(count - len(seeds)):
        yield _mutated(chance.choice(seeds), seeds, chance)


def fuzz(target: str, budget: int, check: Callable[[bytes], object], made: Iterator[bytes] | None = None) -> None:
    """Shows ``check`` so many inputs, mutated seeds or those ``made`` for it; it raises at what must not be."""
    with tallied("fuzzing", target, budget) as tally:
        for data in made or inputs(target, budget):
            try:
                check(data)
            except Exception as error:
                pytest.fail(f"{target}: the input {data!r}: {type(error).__name__}: {error}")
            tally.executed += 1
