"""Devices as files by FUSE, and as block devices by loop on top: every byte, every request, real file systems."""

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

import blockcow
from blockcow import loop
from blockcow._blockcow import FuseExport
from conftest import MIB, sh

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
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
