"""Two devices attached together have one cut: a write that waited for another is never in an image without it.

A writer alternates between them, each write after the one before it was acknowledged. Two images of one backup must be
what both devices were after one and the same write.
"""

from collections.abc import Callable

import pytest

from conftest import MIB
from rig import attached, scratch_folder
from stamps import SECTOR, Region, Stream, Writer, assert_one_instant, find, reader

SIZE = 4 * MIB
CUTS = 25
SEEDS = (1, 2)


@pytest.mark.timeout(180)
def test_no_later_write_without_the_earlier_one(tried: Callable[[str], None]) -> None:
    writes = []
    with scratch_folder() as scratch:
        devices = [scratch.image(name, SIZE) for name in ("left", "right")]
        with attached(scratch, "pair", *devices) as there:
            half = SIZE // 2
            streams = [
                Stream(
                    seed,
                    [Region(path, index * half, half // SECTOR) for path in there.paths],
                    scratch / f"stream{seed}.log",
                )
                for index, seed in enumerate(SEEDS)
            ]
            with Writer(streams[0]), Writer(streams[1]):
                for cut in range(CUTS):
                    images = [scratch / f"{side}{cut}.img" for side in ("left", "right")]
                    ended = there.start(*images, container="memory:1M", limit_read="16M").wait()
                    assert ended.complete
                    found = [find(stream, [reader(image) for image in images]) for stream in streams]
                    assert_one_instant(found, ended.before, ended.after)
                    writes += [each.number for each in found]
                    for image in images:
                        image.unlink()
    assert min(writes) > 0
    tried(f"{CUTS} cuts of two devices under {len(SEEDS)} writers, after writes {min(writes)} to {max(writes)}")
