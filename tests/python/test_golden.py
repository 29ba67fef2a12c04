"""Backups of every version so far are verified and restored by this one. `tests/golden/make.py` made them."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest

import blockcow
from conftest import Run, assert_one_error
from proof import tallied

GOLDEN = Path(__file__).parent.parent / "golden"
BACKUPS = sorted(path.with_suffix("").with_suffix("") for path in GOLDEN.glob("*/*.img.manifest"))
BUDGET = 2


def unpack(backup: Path, folder: Path) -> Path:
    """The image, with its manifest beside it."""
    image = folder / f"{backup.parent.name}-{backup.name}.img"
    with gzip.open(f"{backup}.img.gz") as packed, image.open("wb") as file:
        shutil.copyfileobj(packed, file)
    shutil.copyfile(f"{backup}.img.manifest", f"{image}.manifest")
    return image


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_this_version_has_backups_here() -> None:
    assert any(backup.parent.name == blockcow.__version__ for backup in BACKUPS), "run tests/golden/make.py"


def test_backups_of_all_versions_are_verified_and_restored(blockcow: Run, tmp_path: Path) -> None:
    with tallied("golden", "test_backups_of_all_versions_are_verified_and_restored", BUDGET) as tally:
        for backup in BACKUPS:
            image, restored = unpack(backup, tmp_path), tmp_path / "restored.img"
            for arguments in (["verify", image], ["restore", image, "--device", restored]):
                result = blockcow(*arguments)
                assert result.returncode == 0, f"{backup}: {result.stderr}"
            assert sha256(restored) == json.loads(backup.with_suffix(".json").read_text())["sha256"], backup
            restored.unlink()
            tally.executed += 1


@pytest.mark.parametrize("backup", BACKUPS, ids=lambda path: "-".join(path.parts[-2:]))
def test_headers_are_read_as_they_were_written(backup: Path) -> None:
    expected = json.loads(backup.with_suffix(".json").read_text())["header"]
    manifest = Path(f"{backup}.img.manifest")
    assert blockcow.read_manifest(str(manifest)) == expected
    assert json.loads(manifest.read_text().splitlines()[0]) == expected


@pytest.mark.parametrize("backup", BACKUPS, ids=lambda path: "-".join(path.parts[-2:]))
def test_what_has_changed_since_is_refused(backup: Path, blockcow: Run, tmp_path: Path) -> None:
    image = unpack(backup, tmp_path)
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    assert_one_error(blockcow("verify", image), 21, "is damaged")
    assert_one_error(blockcow("restore", image, "--device", "restored.img"), 21, "nothing was written")
    assert not (tmp_path / "restored.img").exists()
