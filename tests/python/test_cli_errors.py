"""Bad input through the real command line: the right exit code, one clear message, nothing left behind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from conftest import MIB, Run, assert_one_error

Backup = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def backup(blockcow: Run, image: Path, tmp_path: Path) -> Backup:
    """``blockcow backup`` of the image with sane options, any of which may be replaced; nothing may be left behind."""

    def run(*more: object, **options: object) -> subprocess.CompletedProcess[str]:
        named = {"device": image, "container": "memory:1M", "dest": tmp_path / "out.img", **options}
        arguments = [text for name, value in named.items() for text in (f"--{name.replace('_', '-')}", value)]
        before = sorted(tmp_path.iterdir())
        result = blockcow("backup", *arguments, *more)
        assert sorted(tmp_path.iterdir()) == before
        return result

    return run


def test_no_such_device(backup: Backup) -> None:
    assert_one_error(backup(device="missing"), 1, "missing", "no such file or device", "blockcow devices")


def test_a_directory_as_device(backup: Backup, tmp_path: Path) -> None:
    assert_one_error(backup(device=tmp_path), 2, str(tmp_path), "is a directory")


def test_a_terminal_as_device(backup: Backup) -> None:
    assert_one_error(backup(device="/dev/null"), 2, "/dev/null", "neither a block device nor a file")


def test_size_zero(backup: Backup, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert_one_error(backup(device=tmp_path / "empty"), 2, "size zero")


@pytest.mark.parametrize("size", ["3000", "256", "0"])
def test_block_size_that_is_no_power_of_two(backup: Backup, size: str) -> None:
    assert_one_error(backup(block_size=size), 2, f"block size {size}", "power of two", "4K")


def test_container_is_the_device(backup: Backup, image: Path) -> None:
    assert_one_error(backup(container=image), 2, "is the device itself")


def test_dest_is_the_device(backup: Backup, image: Path) -> None:
    assert_one_error(backup(dest=image), 2, "is the device itself")


def test_dest_is_the_container(backup: Backup, tmp_path: Path) -> None:
    assert_one_error(backup(dest=tmp_path / "same", container=tmp_path / "same"), 2, "also the destination")


def test_dest_exists(backup: Backup, tmp_path: Path) -> None:
    (tmp_path / "out.img").write_bytes(b"precious")
    assert_one_error(backup(), 1, "out.img", "exists already", "--force dest-exists")
    assert (tmp_path / "out.img").read_bytes() == b"precious"


def test_manifest_exists(backup: Backup, tmp_path: Path) -> None:
    (tmp_path / "out.img.manifest").write_bytes(b"precious")
    assert_one_error(backup(), 1, "out.img.manifest", "exists already", "--force dest-exists")


def test_dest_in_no_folder(backup: Backup, tmp_path: Path) -> None:
    assert_one_error(backup(dest=tmp_path / "no" / "out.img"), 1, "there is no folder")


@pytest.mark.parametrize("role", ["dest", "container"])
def test_a_misspelt_device_does_not_become_a_file_in_dev(backup: Backup, role: str) -> None:
    assert_one_error(backup(**{role: "/dev/blockcow-none"}), 2, "/dev/blockcow-none", "is no device")
    assert not Path("/dev/blockcow-none").exists()


@pytest.mark.parametrize(("container", "options"), [("memory:2K", {}), ("memory:32K", {"block_size": "64K"})])
def test_container_too_small_for_one_block(backup: Backup, container: str, options: dict[str, str]) -> None:
    assert_one_error(backup(container=container, **options), 2, "block of")


def test_unreadable_file(backup: Backup, image: Path, root: None, tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is missing: root can read everything")
    image.chmod(0)
    capabilities = "--bounding-set=-dac_override,-dac_read_search"
    command = [sys.executable, "-m", "blockcow", "backup", "--device", str(image), "--container", "memory:1M"]
    command = ["setpriv", capabilities, *command, "--dest", str(tmp_path / "out.img")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_one_error(result, 1, str(image), "Permission denied")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("container-size", "big", "is not a size"),
        ("cbw-timeout", "1h", "is not a time"),
        ("cbw-timeout", "0", "out of range"),
        ("capacity", "120%", "out of range"),
        ("drain", "none", "neither a percentage"),
        ("limit-read", "0", "no limit"),
        ("on-cbw-error", "ignore", "break-backup"),
        ("consistency", "lazy", "freeze"),
        ("force", "everything", "dest-exists"),
        ("container", "device:1M", "device:OFFSET+LENGTH"),
        ("container", "memory:", "is not a size"),
    ],
)
def test_bad_values_name_the_option_or_the_value(backup: Backup, option: str, value: str, word: str) -> None:
    result = backup(**{option: value})
    assert_one_error(result, 2, word)
    assert option in result.stderr or value in result.stderr


def test_missing_and_unknown_options(blockcow: Run) -> None:
    assert_one_error(blockcow("backup", "--dest", "x"), 2, "--device", "--help")
    assert_one_error(blockcow("backup", "--devise", "x"), 2, "--devise", "--device")
    assert_one_error(blockcow("backupp"), 2, "backupp")


def test_without_a_verb_help_is_shown(blockcow: Run) -> None:
    result = blockcow()
    assert result.returncode == 2
    assert "Usage: blockcow" in result.stderr


def test_an_error_as_json(backup: Backup, tmp_path: Path) -> None:
    result = backup("--json", device="missing")
    error = msgspec.json.decode(result.stdout)
    assert_one_error(result, 1, "missing")
    expected = {"message_type": "error", "schema": 1, "kind": "not-found", "errno": 2, "offset": None, "exit_code": 1}
    assert error.items() >= expected.items()
    assert error["operation"] == "open the device missing"
    usage = msgspec.json.decode(backup("--json", block_size="3000").stdout)
    assert (usage["kind"], usage["exit_code"]) == ("invalid", 2)
    unknown = msgspec.json.decode(backup("--json", "--frob").stdout)
    assert (unknown["kind"], unknown["exit_code"]) == ("usage", 2)


def test_an_option_from_the_environment(blockcow: Run, image: Path) -> None:
    arguments = ("backup", "--device", image, "--container", "memory:1M", "--dest", "out.img", "--dry-run")
    result = blockcow(*arguments, BLOCKCOW_BACKUP_BLOCK_SIZE="3000")
    assert_one_error(result, 2, "block size 3000")


@pytest.fixture
def made(blockcow: Run, image: Path, tmp_path: Path) -> Path:
    """A complete backup."""
    result = blockcow("backup", "--device", image, "--container", "memory:1M", "--dest", "out.img")
    assert result.returncode == 0, result.stderr
    return tmp_path / "out.img"


def manifest_of(made: Path) -> Path:
    return Path(f"{made}.manifest")


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1]))


def each_verb(blockcow: Run, made: Path) -> list[subprocess.CompletedProcess[str]]:
    """verify and restore of the same image; restore may not have begun to write."""
    verified = blockcow("verify", made)
    restored = blockcow("restore", made, "--device", "new.img")
    assert not made.with_name("new.img").exists()
    assert not made.with_name("new.img.partial").exists()
    return [verified, restored]


def test_damaged_manifest(blockcow: Run, made: Path) -> None:
    flip_byte(manifest_of(made), manifest_of(made).stat().st_size // 2)
    for result in each_verb(blockcow, made):
        assert_one_error(result, 1, "out.img.manifest")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_manifest(blockcow: Run, made: Path, keep: int) -> None:
    whole = manifest_of(made).read_bytes()
    manifest_of(made).write_bytes(whole[:keep])
    for result in each_verb(blockcow, made):
        assert_one_error(result, 1, "out.img.manifest")


def test_manifest_of_a_newer_schema(blockcow: Run, made: Path) -> None:
    text = manifest_of(made).read_text()
    assert '"schema":1' in text
    manifest_of(made).write_text(text.replace('"schema":1', '"schema":2', 1))
    for result in each_verb(blockcow, made):
        assert_one_error(result, 1, "schema is 2", "newer")


def test_no_manifest(blockcow: Run, made: Path) -> None:
    manifest_of(made).unlink()
    for result in each_verb(blockcow, made):
        assert_one_error(result, 1, "out.img.manifest")


def test_image_shorter_than_its_manifest(blockcow: Run, made: Path) -> None:
    os.truncate(made, 5 * MIB)
    for result in each_verb(blockcow, made):
        assert_one_error(result, 21, "out.img")


def test_damaged_image_names_the_first_offset(blockcow: Run, made: Path) -> None:
    flip_byte(made, 5 * MIB + 7)
    verified, restored = each_verb(blockcow, made)
    header = msgspec.json.decode(manifest_of(made).read_text().splitlines()[0])
    first = (5 * MIB + 7) // header["extent_size"] * header["extent_size"]
    assert_one_error(verified, 21, str(first))
    assert_one_error(restored, 21, str(first))
    report = msgspec.json.decode(blockcow("verify", made, "--json", "--progress", "none").stdout)
    assert (report["message_type"], report["status"], report["damaged"]) == ("summary", "damaged", [first])
    forced = blockcow("restore", made, "--device", "new.img", "--force", "damaged")
    assert forced.returncode == 0, forced.stderr
    assert str(first) in forced.stderr
    assert made.with_name("new.img").read_bytes() == made.read_bytes()


def test_restore_to_unfit_devices(
    blockcow: Run, made: Path, loop_device: Callable[..., str], mount: Callable[[str], Path]
) -> None:
    assert_one_error(blockcow("restore", made, "--device", made), 2, "is the image itself")
    assert_one_error(blockcow("restore", made, "--device", made.parent), 2, "is a directory")
    assert_one_error(blockcow("restore", made, "--device", loop_device(4 * MIB)), 2, "too small", "larger")
    device = loop_device(filesystem="ext4")
    point = mount(device)
    assert_one_error(blockcow("restore", made, "--device", device), 11, f"mounted at {point}", "unmount")
