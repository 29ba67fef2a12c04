"""A file system is at rest inside `quiesced`, and moves again afterwards whatever happens. Real ext4 on loops."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from blockcow.consistency import POLICIES, quiesced
from conftest import sh

Mount = Callable[[str], Path]


@pytest.fixture
def point(loop_device: Callable[..., str], mount: Mount) -> Path:
    return mount(loop_device(filesystem="ext4"))


def is_frozen(point: Path) -> bool:
    """A freeze of a frozen file system is refused; of another one it works and is undone at once."""
    if subprocess.run(["fsfreeze", "--freeze", str(point)], capture_output=True, check=False).returncode != 0:
        return True
    sh("fsfreeze", "--unfreeze", str(point))
    return False


@pytest.mark.parametrize("policy", POLICIES)
def test_without_mounts_nothing_happens(policy: str) -> None:
    with quiesced(policy, [], 1):
        pass


@pytest.mark.parametrize(("policy", "frozen"), [("freeze", True), ("auto", True), ("sync", False), ("none", False)])
def test_only_freeze_and_auto_freeze(point: Path, policy: str, frozen: bool) -> None:
    with quiesced(policy, [str(point)], 30):
        assert is_frozen(point) is frozen
    assert not is_frozen(point)


def test_a_write_waits_while_frozen_and_goes_on_afterwards(point: Path) -> None:
    done = threading.Event()

    def write() -> None:
        (point / "new").write_bytes(b"x")
        done.set()

    with quiesced("freeze", [str(point)], 30):
        writer = threading.Thread(target=write)
        writer.start()
        assert not done.wait(0.3)
    assert done.wait(30)
    writer.join()


def test_thawed_after_an_exception(point: Path) -> None:
    with pytest.raises(KeyError), quiesced("freeze", [str(point)], 30):
        raise KeyError
    assert not is_frozen(point)


def test_one_that_cannot_be_frozen_thaws_the_others(point: Path) -> None:
    held = Path("/proc")  # procfs has no freeze
    with pytest.raises(OSError, match="freeze the file system"), quiesced("freeze", [str(point), str(held)], 30):
        pytest.fail("was quiesced")
    assert not is_frozen(point)
    with quiesced("auto", [str(point), str(held)], 30):
        assert is_frozen(point)
    assert not is_frozen(point)


def test_somebody_elses_freeze_is_refused_and_left_alone(point: Path) -> None:
    sh("fsfreeze", "--freeze", str(point))
    try:
        with pytest.raises(OSError, match="frozen already"), quiesced("auto", [str(point)], 30):
            pytest.fail("was quiesced")
        assert is_frozen(point)
    finally:
        sh("fsfreeze", "--unfreeze", str(point))


def test_the_same_file_system_at_two_places_is_frozen_once(point: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    sh("mount", "--bind", str(point), str(other))
    try:
        with quiesced("freeze", [str(point), str(other)], 30):
            assert is_frozen(point)
        assert not is_frozen(point)
    finally:
        sh("umount", str(other))


def test_a_freeze_that_lasts_too_long_is_ended_and_reported(point: Path) -> None:
    with pytest.raises(TimeoutError, match="lasted longer than"), quiesced("freeze", [str(point)], 0.2):
        (point / "waits for the thaw").write_bytes(b"x")
    assert not is_frozen(point)


def test_thawed_even_if_the_process_is_killed(point: Path) -> None:
    code = (
        "import sys\nfrom blockcow.consistency import quiesced\n"
        "with quiesced('freeze', [sys.argv[1]], 600): print('frozen', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(point)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        assert is_frozen(point)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (point / "waits for the thaw").write_bytes(b"x")
    assert not is_frozen(point)


def test_what_must_be_written_during_the_cut_may_not_lie_inside(point: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="cannot freeze .* lies in it"),
        quiesced("auto", [str(point)], 30, [str(point / "d")]),
    ):
        pytest.fail("was quiesced")
    with quiesced("auto", [str(point)], 30, [str(tmp_path / "dest.img")]):
        pass


def test_sync_brings_dirty_pages_down(loop_device: Callable[..., str], mount: Mount) -> None:
    device = loop_device(filesystem="ext4")
    point = mount(device)
    mark = os.urandom(64)
    (point / "file").write_bytes(mark * 1000)
    with quiesced("sync", [str(point)], 30):
        pass
    assert mark in Path(device).read_bytes()


def test_an_unknown_policy_and_a_missing_mount_point() -> None:
    with pytest.raises(ValueError, match="not a consistency"), quiesced("lazy", [], 1):
        pass
    with pytest.raises(FileNotFoundError), quiesced("sync", ["/no/such/place"], 1):
        pass
