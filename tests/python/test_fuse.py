"""Devices as files by FUSE, and as block devices by loop on top: every byte, every request, real file systems."""

import ctypes
import errno
import mmap
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

import blockcow
from blockcow import loop
from blockcow._blockcow import FuseExport
from conftest import MIB, sh

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
NOBODY = 65534
ODD_SIZES = [1, 511, 513, 4097, MIB + 123, 3 * MIB + 4096 + 512]

Export = Callable[..., str]


@pytest.fixture
def export(root: None, tmp_path: Path, cleanup: ExitStack) -> Export:
    """Exports a device as a file: ``export(device)`` is the file's path."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE: /dev/fuse is missing")

    def make(path: str | os.PathLike[str], *, threads: int = 4, read_only: bool = False) -> str:
        device = cleanup.enter_context(blockcow.Device(path, read_only=read_only))
        point = tmp_path / f"file{len(list(tmp_path.glob('file*')))}"
        point.touch(0o600)
        served = FuseExport.mount(device, str(point), threads=threads)
        cleanup.callback(served.close)
        return str(point)

    return make


@pytest.fixture
def attach(cleanup: ExitStack) -> Callable[..., loop.Loop]:
    """Attaches a loop device: ``attach(path, sector=512)``."""

    def make(path: str, *, sector: int = 512) -> loop.Loop:
        made = loop.attach(path, sector=sector)
        cleanup.callback(made.detach)
        return made

    return make


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which Python has only without a mode."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("size", ODD_SIZES)
def test_file_equals_a_model(export: Export, tmp_path: Path, size: int) -> None:
    device = tmp_path / "device.img"
    model = bytearray(os.urandom(size))
    device.write_bytes(model)
    random = Random(size)
    path = export(device)
    assert Path(path).stat().st_size == size
    fd = os.open(path, os.O_RDWR)
    try:
        for _ in range(400):
            offset = random.randrange(size)
            length = min(size - offset, random.choice([1, 7, 512, 4096, 70_000, 3 * MIB]))
            match random.choice(["read", "write", "punch", "zero"]):
                case "read":
                    assert os.pread(fd, length + random.choice([0, 5000]), offset)[:length] == model[offset:][:length]
                case "write":
                    data = random.randbytes(length)
                    assert os.pwrite(fd, data, offset) == length
                    model[offset : offset + length] = data
                case "punch":
                    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
                    model[offset : offset + length] = bytes(length)
                case "zero":
                    fallocate(fd, ZERO_RANGE, offset, length)
                    model[offset : offset + length] = bytes(length)
        assert os.pread(fd, size + 1, 0) == model
        os.fsync(fd)
    finally:
        os.close(fd)
    assert device.read_bytes() == model


def test_direct_io_equals_a_model(export: Export, tmp_path: Path) -> None:
    size = 4 * MIB
    device = tmp_path / "device.img"
    model = bytearray(os.urandom(size))
    device.write_bytes(model)
    random = Random(1)
    fd = os.open(export(device), os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 2 * MIB)
    try:
        for _ in range(300):
            offset = random.randrange(size // 512) * 512
            length = min(size - offset, random.choice([512, 4096, MIB, 2 * MIB]))
            view = memoryview(buffer)[:length]
            if random.random() < 0.5:
                assert os.preadv(fd, [view], offset) == length
                assert view == model[offset : offset + length]
            else:
                view[:] = random.randbytes(length)
                assert os.pwritev(fd, [view], offset) == length
                model[offset : offset + length] = view
            view.release()
    finally:
        os.close(fd)
        buffer.close()
    assert device.read_bytes() == model


def test_a_program_may_map_the_file_for_itself(export: Export, image: Path) -> None:
    with (
        Path(export(image)).open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == image.read_bytes()


def test_holes_are_where_the_device_has_them(export: Export, tmp_path: Path) -> None:
    device = tmp_path / "device.img"
    with device.open("wb") as file:
        file.truncate(8 * MIB)
        os.pwrite(file.fileno(), b"x" * MIB, 2 * MIB)
    fd = os.open(export(device), os.O_RDWR)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 2 * MIB
        assert os.lseek(fd, 2 * MIB, os.SEEK_HOLE) == 3 * MIB
        assert os.lseek(fd, 2 * MIB + 5, os.SEEK_DATA) == 2 * MIB + 5
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
        for offset, whence in [(3 * MIB, os.SEEK_DATA), (8 * MIB, os.SEEK_HOLE), (9 * MIB, os.SEEK_DATA)]:
            with pytest.raises(OSError, match="No such device or address"):
                os.lseek(fd, offset, whence)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 2 * MIB, MIB)
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(fd, 0, os.SEEK_DATA)
    finally:
        os.close(fd)
    assert device.stat().st_blocks == 0


def test_what_a_file_in_front_of_a_device_cannot_do(export: Export, image: Path) -> None:
    path = export(image)
    size = image.stat().st_size
    before = image.read_bytes()
    fd = os.open(path, os.O_RDWR)
    try:
        refused: list[tuple[int, Callable[[], object]]] = [
            (errno.EPERM, lambda: os.truncate(path, size + 1)),
            (errno.EPERM, lambda: os.truncate(path, 0)),
            (errno.EPERM, lambda: Path(path).chmod(0o640)),
            (errno.ENOSPC, lambda: os.pwrite(fd, b"x", size)),
            (errno.ENOSPC, lambda: fallocate(fd, 0, size, 1)),
            (errno.ENOSPC, lambda: fallocate(fd, ZERO_RANGE, size - 1, 2)),
            (errno.EOPNOTSUPP, lambda: fallocate(fd, 8, 0, 4096)),
            (errno.ENOTDIR, lambda: Path(path, "child").stat()),
            (errno.EOPNOTSUPP, lambda: os.setxattr(path, "user.x", b"y")),
        ]
        for number, attempt in refused:
            with pytest.raises(OSError, match=os.strerror(number)):
                attempt()
        assert os.pwrite(fd, b"xy", size - 1) == 1  # what fits is written
        os.truncate(path, size)
        os.utime(path)
        fallocate(fd, 0, 0, size)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, size, 4096)
        os.fsync(fd)
    finally:
        os.close(fd)
    assert image.read_bytes() == before[:-1] + b"x"


def test_read_only(export: Export, image: Path) -> None:
    path = export(image, read_only=True)
    assert Path(path).read_bytes() == image.read_bytes()
    with pytest.raises(OSError, match="Read-only"):
        os.open(path, os.O_RDWR)


def test_bad_places_are_refused(root: None, image: Path, tmp_path: Path) -> None:
    with blockcow.Device(image) as device:
        with pytest.raises(ValueError, match="regular file"):
            FuseExport.mount(device, str(tmp_path))
        with pytest.raises(blockcow.BlockcowError, match="No such file"):
            FuseExport.mount(device, str(tmp_path / "absent"))
        with pytest.raises(ValueError, match="at least one thread"):
            FuseExport.mount(device, str(image), threads=0)


def test_close_waits_for_programs(export: Export, image: Path, tmp_path: Path, cleanup: ExitStack) -> None:
    device = cleanup.enter_context(blockcow.Device(image))
    point = tmp_path / "file"
    point.touch(0o640)
    served = FuseExport.mount(device, str(point))
    assert stat.S_IMODE(point.stat().st_mode) == 0o640
    with point.open("rb"), pytest.raises(blockcow.BusyError, match="has the file open"):
        served.close()
    served.close()
    served.close()
    assert point.stat().st_size == 0


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_file_systems_through_loop(
    export: Export,
    attach: Callable[..., loop.Loop],
    mount: Callable[[str], Path],
    tmp_path: Path,
    sector: int,
    filesystem: str,
) -> None:
    device = tmp_path / "device.img"
    with device.open("wb") as file:
        file.truncate(400 * MIB)
    made = attach(export(device), sector=sector)
    sh(f"mkfs.{filesystem}", "-q", made.path)
    point = mount(made.path)
    random = Random(7)
    files = {f"file{number}": random.randbytes(random.randrange(1, 2 * MIB)) for number in range(60)}
    for name, data in files.items():
        (point / name).write_bytes(data)
    for name in list(files)[::3]:
        (point / name).unlink()
        del files[name]
    sh("sync", "-f", str(point))
    sh("fstrim", str(point))
    sh("umount", str(point))
    check = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check"]}[filesystem]
    sh(*check, made.path)
    sh("mount", made.path, str(point))
    assert {file.name: file.read_bytes() for file in point.iterdir() if file.is_file()} == files


def test_discards_and_zeroes_through_loop_read_as_zeroes(
    export: Export, attach: Callable[..., loop.Loop], tmp_path: Path
) -> None:
    device = tmp_path / "device.img"
    model = bytearray(os.urandom(MIB)) * 16
    device.write_bytes(model)
    made = attach(export(device))
    for option in [[], ["--zeroout"]]:
        sh("blkdiscard", *option, "--offset", str(3 * MIB), "--length", str(2 * MIB + 512), made.path)
        model[3 * MIB : 5 * MIB + 512] = bytes(2 * MIB + 512)
        assert Path(made.path).read_bytes() == model
        model[4 * MIB : 4 * MIB + 512] = b"z" * 512
        with Path(made.path).open("r+b") as file:
            os.pwrite(file.fileno(), b"z" * 512, 4 * MIB)
            os.fsync(file.fileno())
    sh("blkdiscard", "--force", made.path)
    assert Path(made.path).read_bytes() == bytes(16 * MIB)
    assert device.stat().st_blocks == 0, "space of discarded blocks goes back to the file system"


def test_loop_has_the_whole_sectors_of_a_file(export: Export, attach: Callable[..., loop.Loop], tmp_path: Path) -> None:
    device = tmp_path / "device.img"
    device.write_bytes(os.urandom(MIB + 4096 + 777))
    path = export(device)
    for sector, size in [(512, MIB + 4096 + 512), (4096, MIB + 4096)]:
        with ExitStack() as stack:
            made = attach(path, sector=sector)
            stack.callback(made.detach)
            folder = Path("/sys/block", Path(made.path).name)
            assert int((folder / "queue/logical_block_size").read_text()) == sector
            assert int((folder / "loop/dio").read_text()) == 1
            assert Path(made.path).read_bytes() == device.read_bytes()[:size]


def test_partitions_through_loop(export: Export, attach: Callable[..., loop.Loop], tmp_path: Path) -> None:
    device = tmp_path / "device.img"
    device.write_bytes(os.urandom(8 * MIB))
    table = "label: gpt\nstart=2048, size=2048\nstart=8192, size=4096\n"
    sh("sfdisk", "-q", str(device), stdin=table)
    made = attach(export(device))
    folder = Path("/sys/block", Path(made.path).name)
    assert int((folder / "loop/partscan").read_text()) == 1
    sh("partx", "--update", made.path)  # for kernels that read no tables themselves
    try:
        for number, start, size in [(1, 2048, 2048), (2, 8192, 4096)]:
            content = Path(f"{made.path}p{number}").read_bytes()
            assert content == device.read_bytes()[start * 512 :][: size * 512]
    finally:
        sh("partx", "--delete", made.path)


def test_a_loop_device_in_use_ends_with_its_last_user(
    export: Export, attach: Callable[..., loop.Loop], image: Path
) -> None:
    made = attach(export(image))
    folder = Path("/sys/block", Path(made.path).name, "loop")
    with Path(made.path).open("rb"):
        with pytest.raises(blockcow.BusyError, match="in use"):
            made.detach(timeout=0.1)
        assert folder.exists()
    deadline = time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made.detach()


def test_no_loop_device_on_what_is_no_file(root: None, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"x" * 4095)
    with pytest.raises(blockcow.DeviceError, match="smaller than a sector of 4096 bytes"):
        loop.attach(str(small), sector=4096)
    with pytest.raises(blockcow.DeviceError, match="make a loop device on .*absent: No such file"):
        loop.attach(str(tmp_path / "absent"), sector=512)


def flushes(device: str) -> int:
    """How many flush requests a block device has completed."""
    return int(Path("/sys/block", Path(device).name, "stat").read_text().split()[15])


def test_a_flush_reaches_the_device(
    loop_device: Callable[..., str], export: Export, attach: Callable[..., loop.Loop]
) -> None:
    device = loop_device()
    path = export(device)
    made = attach(path)
    for target in (path, made.path):
        fd = os.open(target, os.O_RDWR)
        try:
            os.pwrite(fd, b"x" * 4096, 0)
            before = flushes(device)
            os.fsync(fd)
            assert flushes(device) > before, target
        finally:
            os.close(fd)


def test_as_an_ordinary_user(root: None, cleanup: ExitStack) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed (package fuse3)")
    folder = Path(cleanup.enter_context(TemporaryDirectory()))
    os.chown(folder, NOBODY, NOBODY)
    device = Path("/dev/fuse")
    before = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)  # as udev does
    cleanup.callback(device.chmod, before)
    cleanup.callback(subprocess.run, ["umount", "-l", str(folder / "file")], capture_output=True, check=False)

    def theirs() -> None:
        image, file = folder / "device.img", folder / "file"
        image.write_bytes(os.urandom(MIB + 5))
        file.touch()
        served = FuseExport.mount(blockcow.Device(image), str(file))
        assert file.read_bytes() == image.read_bytes()
        with file.open("rb"), pytest.raises(blockcow.BusyError):
            served.close()
        served.close()
        served.close()
        assert file.stat().st_size == 0

    assert as_nobody(theirs) == ""


def as_nobody(work: Callable[[], None]) -> str:
    """Does something in a child that is an ordinary user; its error, or nothing."""
    answer, result = os.pipe()
    child = os.fork()
    if child == 0:
        text = ""
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
        except BaseException as error:  # whatever it is belongs to the parent
            text = f"{type(error).__name__}: {error}"
        os.write(result, text.encode())
        os._exit(0)
    os.close(result)
    with os.fdopen(answer) as said:
        text = said.read()
    assert os.waitpid(child, 0)[1] == 0
    return text
