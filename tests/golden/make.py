"""Makes backups with this version, to be verified and restored by all later ones. Run it once a version.

They go to `tests/golden/VERSION`: of each backup the image (gzip), the manifest as it was written, and what must come
out of both, `NAME.json`.
"""

import gzip
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

import blockcow

KIB, MIB = 1024, 1024 * 1024
FILE = {"path": "/srv/disk.img", "host": "golden", "kind": "file"}
DISK = {
    "path": "/dev/sdb",
    "host": "golden",
    "kind": "block device",
    "vendor": "ATA",
    "model": 'Disk "of\tall" \u00fc\U0001f980',
    "serial": "0123-\\",
    "wwid": "naa.5000c500a1b2c3d4",
}
README = """\
# Backups made by blockcow {version}

Made by `tests/golden/make.py` with that version, to be verified and restored by every later one; never changed since.
Both are backups of image files, taken while a program wrote to them. `holes` is of 5 MiB and 777 bytes with holes, so
that its list and its digests have gaps, its last block and extent are short, and some extents are zero. `whole` has
no holes, blocks of 512 bytes, and every key of an identity that this version writes, as for a disk. `NAME.img.gz` is
the image, compressed; `NAME.img.manifest` the manifest, as it was written; `NAME.json` says what must come of them:
the SHA-256 of the image, computed from the device before the cut, and the manifest's header.
"""


def device(path: Path, size: int, data: list[tuple[int, int]]) -> None:
    """A sparse file with noise at (offset, length)."""
    chance = random.Random(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in data:
            file.seek(offset)
            file.write(chance.randbytes(length))


def back_up(folder: Path, name: str, source: Path, identity: dict[str, str], block_size: str) -> None:
    """Backs up ``source`` while all its data are overwritten, and keeps what came of it."""
    content = source.read_bytes()
    with tempfile.TemporaryDirectory() as scratch, mock.patch("blockcow.plan._identity", return_value=identity):
        image = Path(scratch) / "x.img"
        with blockcow.Device(source) as opened:
            backup = opened.backup(container="memory:64K", dest=image, limit_read="1M", block_size=block_size)
            for offset in range(0, len(content) - 512, 16 * KIB):
                opened.pwrite(b"\xff" * 512, offset)
            backup.wait()
        (folder / f"{name}.img.gz").write_bytes(gzip.compress(image.read_bytes(), 9, mtime=0))
        manifest = folder / f"{name}.img.manifest"
        manifest.write_bytes(image.with_name("x.img.manifest").read_bytes())
    expected = {"sha256": hashlib.sha256(content).hexdigest(), "header": blockcow.read_manifest(str(manifest))}
    (folder / f"{name}.json").write_text(json.dumps(expected, indent=2) + "\n")


def main() -> None:
    """Makes this version's folder, which must not exist."""
    folder = Path(__file__).parent / blockcow.__version__
    folder.mkdir()
    (folder / "README.md").write_text(README.format(version=blockcow.__version__))
    with tempfile.TemporaryDirectory() as scratch:
        holes, whole = Path(scratch) / "holes", Path(scratch) / "whole"
        device(holes, 5 * MIB + 777, [(0, 20 * KIB), (MIB - 8 * KIB, 16 * KIB), (3 * MIB, 4 * KIB), (5 * MIB, 777)])
        device(whole, 100 * KIB, [(0, 40 * KIB), (40 * KIB, 60 * KIB)])
        back_up(folder, "holes", holes, FILE, "4K")
        back_up(folder, "whole", whole, DISK, "512")
    sys.stdout.write(f"made {folder}\n")


if __name__ == "__main__":
    main()
