"""The process that serves a file is killed with -9 under load, again and again: programs see a pause, not an error."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

import blockcow
from blockcow import loop
from blockcow._blockcow import FuseExport
from conftest import MIB, sh
from fuse_keeper import PATIENCE, Keeper

KILLS = 40


@pytest.fixture
def keeper(root: None, tmp_path: Path, cleanup: ExitStack) -> Callable[[int], Keeper]:
    """A kept server of a device of so many bytes: ``keeper(size)``; its file is ``tmp_path / "file"``."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE: /dev/fuse is missing")

    def make(size: int) -> Keeper:
        device = tmp_path / "served.img"
        with device.open("wb") as file:
            file.truncate(size)
        kept = Keeper(device, tmp_path / "file")
        cleanup.callback(sh, "umount", "--lazy", str(tmp_path / "file"))
        cleanup.callback(kept.end)
        if not json.loads(kept.note)["resend"]:
            pytest.skip("this kernel cannot send FUSE requests again (Linux 6.9)")
        return kept

    return make


def fio(folder: Path, *options: str) -> subprocess.Popen[str]:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    common = ["--minimal", "--verify_fatal=1", "--verify_state_save=0", "--group_reporting", f"--directory={folder}"]
    command = ["fio", "--name=load", *common, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)


def test_killed_at_random_moments_under_ext4(
    keeper: Callable[[int], Keeper], mount: Callable[[str], Path], tmp_path: Path, cleanup: ExitStack
) -> None:
    kept = keeper(256 * MIB)
    made = loop.attach(str(tmp_path / "file"), sector=512)
    cleanup.callback(made.detach)
    sh("mkfs.ext4", "-q", made.path)
    point = mount(made.path)
    random = Random()
    load = fio(
        point,
        "--rw=randrw",
        "--bsrange=512-128k",
        "--size=24m",
        "--numjobs=2",
        "--iodepth=16",
        "--ioengine=libaio",
        "--direct=1",
        "--fsync=64",
        "--verify=crc32c",
        "--time_based",
        "--runtime=600",
        "--do_verify=1",
    )
    cleanup.callback(load.wait, PATIENCE)
    cleanup.callback(load.kill)
    for turn in range(KILLS):
        assert load.poll() is None, f"after {turn} kills: {load.stdout.read() if load.stdout else ''}"
        time.sleep(random.expovariate(20))
        kept.kill()
        # Half of them are killed again while they start, adopt, or ask for the requests in flight.
        if random.random() < 0.5:
            kept.restart(wait=False)
            time.sleep(random.uniform(0, 0.4))
            kept.kill()
            kept.forget()
        kept.restart()
    load.send_signal(signal.SIGINT)
    said, _ = load.communicate(timeout=PATIENCE)
    for word in ("error", "bad", "verify:"):
        assert word not in said.lower(), said
    sh("umount", str(point))
    sh("e2fsck", "-fn", made.path)
    sh("mount", made.path, str(point))


def test_what_was_written_before_each_kill_is_there(keeper: Callable[[int], Keeper], tmp_path: Path) -> None:
    size = 4 * MIB + 777
    kept = keeper(size)
    model = bytearray(size)
    random = Random(3)
    fd = os.open(tmp_path / "file", os.O_RDWR)
    try:
        for _ in range(10):
            for _ in range(50):
                offset = random.randrange(size)
                data = random.randbytes(min(size - offset, random.choice([1, 4096, 300_000])))
                assert os.pwrite(fd, data, offset) == len(data)
                model[offset : offset + len(data)] = data
            kept.kill()
            kept.restart()
            assert os.pread(fd, size, 0) == model
    finally:
        os.close(fd)
    assert (tmp_path / "served.img").read_bytes() == model


def test_without_a_keeper_programs_get_an_error_and_do_not_hang(
    keeper: Callable[[int], Keeper], tmp_path: Path
) -> None:
    kept = keeper(MIB)
    fd = os.open(tmp_path / "file", os.O_RDWR)
    try:
        kept.kill()
        kept.close_descriptors()
        refused = [os.strerror(number) for number in (errno.ENOTCONN, errno.ECONNABORTED)]
        with pytest.raises(OSError, match="|".join(refused)):
            os.pread(fd, 1, 0)
    finally:
        os.close(fd)


def test_where_the_kernel_cannot_resend_nobody_takes_over(
    keeper: Callable[[int], Keeper], tmp_path: Path, image: Path
) -> None:
    kept = keeper(image.stat().st_size)
    note = json.loads(kept.note)
    with blockcow.Device(image) as device:
        fuse = kept.descriptors[-4:]
        with pytest.raises(blockcow.BlockcowError, match="cannot send again") as raised:
            FuseExport.adopt(device, fuse, json.dumps(note | {"resend": False}))
        assert raised.value.kind == "state"
        with pytest.raises(ValueError, match="the device 8388608"):
            FuseExport.adopt(device, fuse, json.dumps(note | {"size": 5}))
        for damaged in ["", "{}", json.dumps(note | {"schema": 2}), json.dumps(note | {"resend": 1})]:
            with pytest.raises(ValueError, match="its note"):
                FuseExport.adopt(device, fuse, damaged)
        with pytest.raises(ValueError, match="at least one"):
            FuseExport.adopt(device, [], json.dumps(note))
