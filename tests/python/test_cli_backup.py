"""The command line on real devices: round trips, output for people and for machines, signals."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blockcow import BusyError, Device, Status
from conftest import MIB, Run, assert_one_error, sh

SLOW = ("--limit-read", "1M")  # of 8 MiB: long enough to be ended in the middle, whatever the machine


def lines_of(stdout: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stdout.splitlines()]


def fill(device: str | Path, size: int) -> None:
    with Path(device).open("r+b") as file:
        file.writelines(os.urandom(MIB) for _ in range(size // MIB))


@pytest.mark.parametrize("container", ["memory:1M", "cow.bin", "block", "device:4M+1M", "device:free"])
def test_backup_verify_restore_and_other_programs_agree(
    blockcow: Run, loop_device: Callable[..., str], tmp_path: Path, container: str
) -> None:
    table = "label: gpt\nstart=2048,size=4096\n" if container == "device:free" else ""
    device, target = loop_device(8 * MIB, table=table), loop_device(8 * MIB)
    if not table:
        fill(device, 8 * MIB)
    place = loop_device(4 * MIB) if container == "block" else container
    before = Path(device).read_bytes()
    result = blockcow("backup", "--device", device, "--container", place, "--dest", "out.img")
    assert result.returncode == 0, result.stderr
    assert "is complete" in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.img", "out.img.manifest"]
    assert not (tmp_path / "cow.bin").exists()
    verified = blockcow("verify", "out.img")
    assert (verified.returncode, verified.stdout) == (0, "")
    restored = blockcow("restore", "out.img", "--device", target)
    assert restored.returncode == 0, restored.stderr
    expected = bytearray(before)
    if container == "device:4M+1M":  # the container's own section is off the list, and zero in the image
        expected[4 * MIB : 5 * MIB] = bytes(MIB)
    elif container == "device:free":
        expected[3 * MIB : 7 * MIB] = bytes(4 * MIB)
    assert (tmp_path / "out.img").read_bytes() == expected
    assert Path(target).read_bytes() == expected
    sh("qemu-img", "compare", "-f", "raw", "-F", "raw", target, str(tmp_path / "out.img"))
    if not container.startswith("device:"):
        assert Path(device).read_bytes() == before


def test_odd_number_of_sectors(blockcow: Run, loop_device: Callable[..., str], tmp_path: Path) -> None:
    device = loop_device(20_003 * 512)
    fill(device, 9 * MIB)
    before = Path(device).read_bytes()
    result = blockcow("backup", "--device", device, "--container", "memory:64K", "--dest", "out.img")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.img").read_bytes() == before


def test_a_block_device_as_destination(
    blockcow: Run, image: Path, loop_device: Callable[..., str], tmp_path: Path
) -> None:
    dest = loop_device(8 * MIB, filesystem="ext4")
    arguments = ("backup", "--device", image, "--container", "memory:1M", "--dest", dest)
    assert_one_error(blockcow(*arguments), 1, "it holds ext4", "--force dest-has-filesystem")
    forced = (*arguments, "--force", "dest-has-filesystem")
    assert_one_error(blockcow(*forced), 2, "block device", "manifest")
    result = blockcow(*forced, "--manifest", "m")
    assert result.returncode == 0, result.stderr
    assert "--manifest m" in result.stderr
    assert Path(dest).read_bytes() == image.read_bytes()
    assert blockcow("verify", dest, "--manifest", "m").returncode == 0
    assert_one_error(blockcow(*forced, "--manifest", "m"), 1, "m", "exists already")
    small = loop_device(4 * MIB)
    assert_one_error(blockcow("backup", "--device", image, "--container", "memory:1M", "--dest", small), 2, "too small")


def test_replacing_a_backup(blockcow: Run, image: Path, tmp_path: Path) -> None:
    arguments = ("backup", "--device", image, "--container", "memory:1M", "--dest", "out.img", "--force", "dest-exists")
    assert blockcow(*arguments).returncode == 0
    image.write_bytes(os.urandom(8 * MIB))
    assert blockcow(*arguments).returncode == 0
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    assert blockcow("verify", "out.img").returncode == 0


def test_json_lines(blockcow: Run, image: Path, tmp_path: Path) -> None:
    result = blockcow("backup", "--device", image, "--container", "memory:1M", "--dest", "out.img", "--json")
    assert result.returncode == 0, result.stderr
    lines = lines_of(result.stdout)
    assert all(line["schema"] == 1 for line in lines)
    types = [line["message_type"] for line in lines]
    assert set(types) == {"event", "status", "summary"}
    assert types.index("summary") == len(types) - 1
    states = [(line["from"], line["to"]) for line in lines if line.get("event") == "state"]
    assert states == [("created", "active"), ("active", "complete")]
    summary = lines[-1]
    assert set(summary) == {"message_type", "schema", *Status.__struct_fields__}
    assert (summary["status"], summary["device_bytes"], summary["blocks_listed"]) == ("complete", 8 * MIB, 2048)
    assert (summary["device"], summary["dest"], summary["error"]) == (str(image), "out.img", None)
    assert set(summary["suspended_us"]) == {"p50", "p99", "p999", "max"}
    report = lines_of(blockcow("verify", "out.img", "--json").stdout)[-1]
    assert (report["status"], report["digest"]) == ("complete", summary["digest"])
    restored = lines_of(blockcow("restore", "out.img", "--device", "new.img", "--json").stdout)[-1]
    assert (restored["message_type"], restored["status"], restored["bytes"]) == ("summary", "complete", 8 * MIB)
    assert (tmp_path / "new.img").read_bytes() == image.read_bytes()


def test_progress_modes(blockcow: Run, image: Path, tmp_path: Path) -> None:
    arguments = ("backup", "--device", image, "--container", "memory:1M", "--force", "dest-exists", "--dest", "o.img")
    silent = blockcow(*arguments, "--progress", "none")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    as_json = blockcow(*arguments, "--progress", "json")
    assert as_json.stdout == ""
    assert msgspec.json.decode(as_json.stderr.splitlines()[0])["message_type"] == "status"
    only_summary = blockcow(*arguments, "--json", "--progress", "none")
    assert "status" not in [line["message_type"] for line in lines_of(only_summary.stdout)]
    assert only_summary.stderr == ""


def test_piped_output_has_no_escapes_and_a_terminal_has_a_bar(blockcow: Run, image: Path, tmp_path: Path) -> None:
    arguments = [
        "backup",
        "--device",
        str(image),
        "--container",
        "memory:1M",
        "--force",
        "dest-exists",
        "--dest",
        "o.img",
    ]
    assert "\x1b" not in blockcow(*arguments).stderr
    plain = on_a_terminal(arguments, tmp_path, {"NO_COLOR": "1"})
    colour = on_a_terminal(arguments, tmp_path, {})
    assert "backup" in plain
    assert "100%" in plain
    assert "suspended writes" in plain
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", colour)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)


def on_a_terminal(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What the command line writes to a terminal of its own."""
    main, other = os.openpty()
    command = [sys.executable, "-m", "blockcow", *arguments]
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    clean |= {"TERM": "xterm-256color", "COLUMNS": "120", **environment}
    process = subprocess.Popen(command, cwd=folder, env=clean, stdin=other, stdout=other, stderr=other)
    os.close(other)
    seen = bytearray()
    try:
        while piece := os.read(main, 65536):
            seen += piece
    except OSError:  # the way in which Linux says that the other end is closed
        pass
    finally:
        os.close(main)
    assert process.wait() == 0, seen.decode()
    return seen.decode()


@pytest.fixture
def slow_backup(image: Path, tmp_path: Path, cleanup: ExitStack) -> Callable[..., subprocess.Popen[str]]:
    """A backup of several seconds, past its cut."""

    def start(*more: str) -> subprocess.Popen[str]:
        arguments = ["--device", str(image), "--container", "cow.bin", "--dest", "out.img", "--json", *SLOW, *more]
        process = subprocess.Popen(
            ["env", "--default-signal=INT,HUP", sys.executable, "-m", "blockcow", "backup", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        cleanup.callback(process.kill)
        assert process.stdout is not None
        while "status" not in msgspec.json.decode(process.stdout.readline(), type=dict)["message_type"]:
            pass
        return process

    return start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_and_leaves_nothing(
    slow_backup: Callable[..., subprocess.Popen[str]],
    blockcow: Run,
    image: Path,
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    process = slow_backup()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "cancelled" in stderr
    states = [line["to"] for line in lines_of(stdout) if line.get("event") == "state"]
    assert states == ["cancelled"]  # the first, to active, came before the status line that the fixture waited for
    assert lines_of(stdout)[-1].items() >= {"message_type": "summary", "status": "cancelled"}.items()
    assert [path.name for path in tmp_path.iterdir()] == [image.name]
    again = blockcow("backup", "--device", image, "--container", "cow.bin", "--dest", "out.img")
    assert again.returncode == 0, again.stderr


def test_sigusr1_prints_the_status_and_goes_on(
    slow_backup: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = slow_backup()
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert re.match(r"backup: \d+%, .* of 8 MiB done, container .* suspended writes", process.stderr.readline())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_nobody_may_write_to_a_device_under_backup(
    slow_backup: Callable[..., subprocess.Popen[str]], blockcow: Run, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.img").write_bytes(bytes(4096))
    made = blockcow("backup", "--device", "other.img", "--container", "memory:64K", "--dest", "small.img")
    assert made.returncode == 0, made.stderr
    process = slow_backup()
    assert_one_error(blockcow("restore", "small.img", "--device", image), 11, str(image))
    with pytest.raises(BusyError):
        Device(image)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_device_that_a_program_stands_in_front_of_is_busy(blockcow: Run, image: Path) -> None:
    with Device(image):
        result = blockcow("backup", "--device", image, "--container", "memory:1M", "--dest", "out.img")
    assert_one_error(result, 11, f"open for writing by process {os.getpid()}")


def test_a_full_destination_breaks_the_backup(
    blockcow: Run, image: Path, tmp_path: Path, root: None, cleanup: ExitStack
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small))
    cleanup.callback(sh, "umount", str(small))
    result = blockcow("backup", "--device", image, "--container", "memory:1M", "--dest", small / "out.img", "--json")
    assert result.returncode == 20, result.stderr
    assert "No space left on device" in result.stderr
    assert "offset" in result.stderr
    assert lines_of(result.stdout)[-1]["status"] == "broken"
    assert list(small.iterdir()) == []


def test_dry_run_says_all_and_does_nothing(blockcow: Run, image: Path, tmp_path: Path) -> None:
    arguments = ("backup", "--device", image, "--container", "cow.bin", "--dest", "out.img", "--container-size", "1M")
    result = blockcow(*arguments, "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    for word in (str(image), "8388608 bytes", "1 MiB in cow.bin", "out.img.manifest", "nothing was done", "30.0 s"):
        assert word in result.stdout
    assert lines_of(blockcow(*arguments, "--dry-run", "--json").stdout)[0]["message_type"] == "plan"
    assert [path.name for path in tmp_path.iterdir()] == [image.name]
    assert blockcow(*arguments).returncode == 0
    plan = blockcow("restore", "out.img", "--device", "new.img", "--dry-run")
    assert (plan.returncode, (tmp_path / "new.img").exists()) == (0, False)
    assert "it would be created" in plan.stdout


def test_strict_turns_warnings_into_exit_code_3(blockcow: Run, image: Path) -> None:
    arguments = ("backup", "--device", image, "--container", "memory:1M", "--force", "dest-exists", "--dest", "o.img")
    warned = blockcow(*arguments, "--consistency", "freeze", "--strict")
    assert warned.returncode == 3
    assert "warning: there is nothing to freeze" in warned.stderr
    assert blockcow(*arguments, "--consistency", "freeze").returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(blockcow: Run, shell: str) -> None:
    result = blockcow("completion", shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert "_BLOCKCOW_COMPLETE" in result.stdout


def test_completion_completes(blockcow: Run) -> None:
    completed = {"_BLOCKCOW_COMPLETE": "bash_complete", "COMP_WORDS": "blockcow backup --cbw", "COMP_CWORD": "2"}
    assert "--cbw-timeout" in blockcow(**completed).stdout


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m blockcow devices --json {'x ' * 4000} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stderr == ""


def test_an_unexpected_failure_is_one_line_and_debug_shows_more(blockcow: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import blockcow.discovery\ndef broken(*_): 1 / 0\nblockcow.discovery.discover = broken\n"
    )
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    assert_one_error(blockcow("devices", PYTHONPATH=path), 1, "unexpected ZeroDivisionError", "BLOCKCOW_DEBUG=1")
    assert "Traceback" in blockcow("devices", PYTHONPATH=path, BLOCKCOW_DEBUG="1").stderr
