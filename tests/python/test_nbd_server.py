"""NBD clients that nobody here wrote, on devices that are served while they rest and while they are backed up."""

import json
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import blockcow
from blockcow import Device
from blockcow._blockcow import NbdServer
from conftest import MIB, sh

SIZE = 32 * MIB


@dataclass(frozen=True)
class Served:
    """A device under the name `disk`."""

    path: Path
    device: Device
    server: NbdServer
    uri: str

    def content(self) -> bytes:
        return self.path.read_bytes()


def mixed(size: int, seed: int) -> bytes:
    """Data, zeroes and data again, in stretches of a quarter MiB."""
    chance = random.Random(seed)
    return b"".join(
        bytes(MIB // 4) if chance.random() < 0.4 else chance.randbytes(MIB // 4) for _ in range(4 * size // MIB)
    )


def sparse(path: Path, content: bytes) -> None:
    """Writes a file with a hole wherever there are zeroes."""
    with path.open("wb") as file:
        file.truncate(len(content))
        for offset in range(0, len(content), 4096):
            piece = content[offset : offset + 4096]
            if any(piece):
                os.pwrite(file.fileno(), piece, offset)


def listen(stack: ExitStack, folder: Path, transport: str) -> tuple[socket.socket, Callable[[str], str]]:
    """A listening socket, and the URI of an export behind it."""
    if transport == "unix":
        path = folder / "socket"
        listener = socket.socket(socket.AF_UNIX)
        stack.callback(listener.close)
        listener.bind(str(path))
        listener.listen()
        return listener, lambda name: f"nbd+unix:///{name}?socket={path}"
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    return listener, lambda name: f"nbd://127.0.0.1:{port}/{name}"


@pytest.fixture(params=["unix", "tcp"])
def served(request: pytest.FixtureRequest, tmp_path: Path, cleanup: ExitStack) -> Served:
    """Over a unix socket a device in memory, over TCP one on a disk, which is slower and takes direct I/O."""
    memory = Path("/dev/shm")  # noqa: S108
    if request.param == "unix" and memory.is_dir():
        path = Path(cleanup.enter_context(tempfile.TemporaryDirectory(dir=memory))) / "device.img"
    else:
        path = tmp_path / "device.img"
    sparse(path, mixed(SIZE, 1))
    device = cleanup.enter_context(Device(path))
    server = NbdServer([("disk", device)])
    cleanup.callback(server.close)
    listener, uri = listen(cleanup, tmp_path, request.param)
    server.serve(listener.fileno())
    return Served(path, device, server, uri("disk"))


@contextmanager
def at_rest(served: Served, folder: Path) -> Iterator[None]:
    yield


@contextmanager
def backed_up(served: Served, folder: Path) -> Iterator[None]:
    """Backs the device up meanwhile, slowly, through a container that fills up. The image is what was there before."""
    before = served.content()
    dest = folder / "image"
    with served.device.backup(container="memory:4M", dest=dest, capacity="50%", limit_read="12M") as backup:
        yield
    status = backup.status()
    assert status.status == "complete", status.error
    assert dest.read_bytes() == before
    assert status.suspended_writes > 0


meanwhile = pytest.mark.parametrize("meanwhile", [at_rest, backed_up])
Meanwhile = Callable[[Served, Path], AbstractContextManager[None]]


@meanwhile
def test_qemu_img_copies_in_compares_and_copies_out(served: Served, tmp_path: Path, meanwhile: Meanwhile) -> None:
    content = mixed(SIZE, 2)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(content)
    with meanwhile(served, tmp_path):
        sh("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16", str(source), served.uri)
        assert "identical" in sh("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), served.uri)
        sh("qemu-img", "convert", "-f", "raw", "-O", "raw", served.uri, str(copy))
    assert served.content() == content
    assert copy.read_bytes() == content


def test_qemu_img_sees_size_and_holes(served: Served) -> None:
    info = json.loads(sh("qemu-img", "info", "--output=json", served.uri))
    assert (info["virtual-size"], info["format"]) == (SIZE, "raw")
    content = served.content()
    extents = json.loads(sh("qemu-img", "map", "--output=json", "-f", "raw", served.uri))
    assert sum(extent["length"] for extent in extents) == SIZE
    for extent in extents:
        piece = content[extent["start"] : extent["start"] + extent["length"]]
        assert any(piece) != extent["zero"]


@meanwhile
def test_qemu_io_writes_zeroes_discards_and_reads(served: Served, tmp_path: Path, meanwhile: Meanwhile) -> None:
    expected = bytearray(served.content())
    script: list[str] = []
    chance = random.Random(3)
    for number in range(300):
        length = chance.randrange(1, 512) * 512
        offset = chance.randrange((SIZE - length) // 512) * 512
        pattern = number % 255 + 1
        kind = number % 6
        if kind == 5:
            script.append(f"discard {offset} {length}")
            # What a discarded range reads as is the device's affair: overwritten, so that it is known again.
            kind = 0
        zeroes = kind in {3, 4}
        command = {0: "write", 1: "write -f", 2: "write", 3: "write -z", 4: "write -z -u"}[kind]
        script.append(f"{command} {offset} {length}" if zeroes else f"{command} -P {pattern} {offset} {length}")
        expected[offset : offset + length] = bytes([0 if zeroes else pattern]) * length
        script.append(f"read -P {0 if zeroes else pattern} {offset} {length}")
    script.append("flush")
    with meanwhile(served, tmp_path):
        said = sh(
            "qemu-io", "-f", "raw", "-d", "unmap", *(part for line in script for part in ("-c", line)), served.uri
        )
    assert "Pattern verification failed" not in said
    assert "error" not in said.lower()
    assert served.content() == expected


@meanwhile
def test_nbdcopy_copies_both_ways(served: Served, tmp_path: Path, meanwhile: Meanwhile) -> None:
    content = mixed(SIZE, 4)
    source, copy = tmp_path / "source", tmp_path / "copy"
    sparse(source, content)
    with meanwhile(served, tmp_path):
        sh("nbdcopy", "--flush", "--connections=4", str(source), served.uri)
        sh("nbdcopy", "--connections=4", "--requests=64", served.uri, str(copy))
    assert served.content() == content
    assert copy.read_bytes() == content


def test_nbdinfo_tells_what_the_export_can_do(served: Served) -> None:
    about = json.loads(sh("nbdinfo", "--json", served.uri))
    assert (about["protocol"], about["TLS"], about["structured"]) == ("newstyle-fixed", False, True)
    (export,) = about["exports"]
    assert (export["export-name"], export["export-size"], export["contexts"]) == ("disk", SIZE, ["base:allocation"])
    can = {key for key, value in export.items() if key.startswith("can_") and value}
    assert can >= {
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    }
    assert not export["is_read_only"]
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (1, 32 * MIB)
    content = served.content()
    for extent in json.loads(sh("nbdinfo", "--map", "--json", served.uri)):
        piece = content[extent["offset"] : extent["offset"] + extent["length"]]
        assert any(piece) == (extent["type"] == 0)


@meanwhile
def test_fio_verifies_what_it_wrote(served: Served, tmp_path: Path, meanwhile: Meanwhile) -> None:
    job = [
        "--name=load",
        "--ioengine=nbd",
        f"--uri={served.uri}",
        "--rw=randrw",
        "--bsrange=512-64k",
        "--bs_unaligned=1",
    ]
    checks = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"]
    load = ["--iodepth=32", "--fsync=64", f"--size={SIZE}", "--io_size=48M", "--randseed=5"]
    with meanwhile(served, tmp_path):
        said = sh("fio", *job, *checks, *load, "--output-format=json")
    (result,) = json.loads(said[said.index("{") :])["jobs"]
    assert result["error"] == 0
    assert result["write"]["total_ios"] > 100


def test_each_device_has_its_name_and_the_first_is_the_default(tmp_path: Path, cleanup: ExitStack) -> None:
    devices = []
    for number in range(3):
        path = tmp_path / f"d{number}.img"
        path.write_bytes(bytes([number + 1]) * MIB * (number + 1))
        devices.append((f"d{number}", cleanup.enter_context(Device(path, read_only=number == 2))))
    server = NbdServer(devices)
    cleanup.callback(server.close)
    listener, uri = listen(cleanup, tmp_path, "unix")
    server.serve(listener.fileno())
    exports = json.loads(sh("nbdinfo", "--list", "--json", uri("")))["exports"]
    assert [(export["export-name"], export["export-size"]) for export in exports] == [
        ("d0", MIB),
        ("d1", 2 * MIB),
        ("d2", 3 * MIB),
    ]
    assert [export["is_read_only"] for export in exports] == [False, False, True]
    sh("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M", uri(""))
    assert "failed" not in sh("qemu-io", "-r", "-f", "raw", "-c", "read -P 3 0 3M", uri("d2"))


def test_a_device_is_held_until_the_server_lets_go(served: Served) -> None:
    served.device.close()
    with pytest.raises(blockcow.StateError):
        NbdServer([("again", served.device)])
    said = sh("qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", "-c", "read -P 9 0 1M", served.uri)
    assert "failed" not in said
    with pytest.raises(blockcow.BusyError):
        Device(served.path)
    served.server.close()
    served.server.close()
    assert served.server.connections() == 0
    with Device(served.path) as device:
        assert device.pread(4, 0) == b"\x09" * 4


def test_bad_arguments_are_refused(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no device"):
        NbdServer([])
    with pytest.raises(ValueError, match="same|name"):
        NbdServer([("disk", served.device), ("disk", served.device)])
    for descriptor in (-1, 10_000):
        with pytest.raises(ValueError, match="listening socket"):
            served.server.serve(descriptor)
    with (tmp_path / "file").open("w") as file, pytest.raises(ValueError, match="accept NBD clients"):
        served.server.serve(file.fileno())
