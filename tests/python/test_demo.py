"""`blockcow demo` proves what it says, leaves nothing behind, and fails when the proof fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from blockcow import demo
from conftest import MIB, Run


def test_demo_piped(blockcow: Run, tmp_path: Path) -> None:
    result = blockcow("demo", "--size", "32M", "--container", "2M", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "equals the device at the cut, byte for byte" in result.stdout
    assert "found it undamaged" in result.stdout
    assert "none failed" in result.stdout
    assert "copied by the sweep" in result.stdout
    assert "blockcow backup --device" in result.stdout
    assert "\x1b" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_as_json(blockcow: Run, tmp_path: Path) -> None:
    result = blockcow("demo", "--size", "32M", "--container", "2M", "--json", TMPDIR=str(tmp_path))
    lines = {line["message_type"]: line for line in map(msgspec.json.decode, result.stdout.splitlines())}
    assert lines["summary"]["status"] == "complete"
    assert lines["proof"].items() >= {"equal": True, "damaged": [], "failed_write": None}.items()
    assert lines["proof"]["filesystem_clean"] in (True, None)
    assert lines["summary"]["drains"] > 0


def test_demo_keeps_its_files_if_asked(blockcow: Run, tmp_path: Path) -> None:
    result = blockcow("demo", "--size", "16M", "--container", "1M", "--keep", TMPDIR=str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert str(folder) in result.stderr
    assert (folder / "backup.img").read_bytes() == (folder / "copy-at-the-cut.img").read_bytes()
    assert blockcow("verify", folder / "backup.img").returncode == 0


def test_demo_fails_when_image_and_copy_differ(blockcow: Run, tmp_path: Path) -> None:
    code = "import blockcow.demo\nblockcow.demo.compare = lambda *_: blockcow.demo.Comparison(4097, 1)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    result = blockcow("demo", "--size", "16M", "--container", "1M", PYTHONPATH=path, TMPDIR=str(tmp_path))
    assert result.returncode == 1
    assert "DIFFERS from the device at the cut, first at offset 4097" in result.stdout


def test_demo_refuses_what_cannot_work(blockcow: Run) -> None:
    result = blockcow("demo", "--size", "1M")
    assert (result.returncode, "too small" in result.stderr) == (2, True)


def test_a_demo_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blockcow", "demo", "--size", "64M"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    while "The cut is made" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "blockcow: ended by SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "first", "blocks"),
    [(None, None, 0), (0, 0, 1), (4096, 4096, 1), (2 * MIB - 1, 2 * MIB - 1, 1)],
)
def test_compare_finds_a_single_byte(tmp_path: Path, change: int | None, first: int | None, blocks: int) -> None:
    content = bytearray(os.urandom(2 * MIB))
    (tmp_path / "a").write_bytes(content)
    if change is not None:
        content[change] ^= 1
    (tmp_path / "b").write_bytes(content)
    assert demo.compare(tmp_path / "a", tmp_path / "b") == demo.Comparison(first, blocks)


def test_compare_finds_a_difference_in_length(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5000))
    (tmp_path / "b").write_bytes(bytes(5001))
    assert demo.compare(tmp_path / "a", tmp_path / "b") == demo.Comparison(5000, 1)
