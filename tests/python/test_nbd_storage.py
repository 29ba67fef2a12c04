"""Container and destination on NBD servers that nobody here wrote: the same promises as for local ones."""

import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockcow
from blockcow import Device
from conftest import MIB, Run, assert_one_error, sh
from nbd_servers import Server, Servers, content, loaded

SIZE = 16 * MIB


@pytest.fixture
def servers(tmp_path: Path, cleanup: ExitStack) -> Servers:
    return Servers(tmp_path, cleanup)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The device."""
    path = tmp_path / "device.img"
    path.write_bytes(content(SIZE))
    return path


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    """Where the manifest goes."""
    return tmp_path / "sheet"


def copy_of(server: Server, folder: Path) -> bytes:
    """What is on an export, as another client sees it."""
    copy = folder / "copy"
    sh("nbdcopy", server.uri, str(copy))
    return copy.read_bytes()


def memory(servers: Servers, _folder: Path, size: int) -> Server:
    return servers.nbdkit("memory", f"size={size}")


def over_tcp(servers: Servers, _folder: Path, size: int) -> Server:
    return servers.nbdkit("memory", f"size={size}", tcp=True)


def strict(servers: Servers, folder: Path, size: int) -> Server:
    image = folder / f"strict{size}.img"
    image.touch()
    os.truncate(image, size)
    limits = ["blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=256K"]
    policy = ["--filter=blocksize-policy", "file", str(image), "blocksize-error-policy=error"]
    return servers.nbdkit(*policy, *limits)


def plain(servers: Servers, _folder: Path, size: int) -> Server:
    """One connection, no structured replies, no zeroes without data."""
    filters = ["--filter=nozero", "--filter=noextents", "--filter=multi-conn"]
    return servers.nbdkit("--no-sr", *filters, "memory", f"size={size}", "multi-conn-mode=disable")


def qemu(servers: Servers, folder: Path, size: int) -> Server:
    image = folder / f"qemu{size}.img"
    image.touch()
    os.truncate(image, size)
    return servers.qemu(image, "--persistent", "--shared=8", "--discard=unmap")


@pytest.mark.parametrize("make", [memory, over_tcp, strict, plain, qemu])
def test_container_and_destination_on_servers_under_load(
    make: Callable[[Servers, Path, int], Server], servers: Servers, source: Path, sheet: Path, blockcow: Run
) -> None:
    before = source.read_bytes()
    container, dest = make(servers, source.parent, 2 * MIB), make(servers, source.parent, SIZE + MIB)
    options = {"manifest": sheet, "staging_size": "128K", "limit_read": "24M"}
    with Device(source) as device:
        backup = device.backup(container=container.uri, dest=dest.uri, **options)  # type: ignore[arg-type]
        with loaded(device, before):
            assert backup.wait(120)
        status = backup.status()
    assert status.blocks_copied_before_write > 0
    assert status.drains > 0
    assert copy_of(dest, source.parent)[:SIZE] == before
    checked = blockcow("verify", dest.uri, "--manifest", sheet)
    assert checked.returncode == 0, checked.stderr
    restored = source.parent / "restored"
    result = blockcow("restore", dest.uri, "--manifest", sheet, "--device", restored)
    assert result.returncode == 0, result.stderr
    assert restored.read_bytes() == before


def test_a_slow_destination_and_a_full_container_fail_no_write(servers: Servers, source: Path, sheet: Path) -> None:
    before = source.read_bytes()
    container = servers.nbdkit("memory", "size=512K")
    dest = servers.nbdkit("--filter=rate", "memory", f"size={SIZE}", "rate=64M", "burstiness=0.1")
    with Device(source) as device:
        backup = device.backup(container=container.uri, dest=dest.uri, manifest=sheet, staging_size="64K")
        with loaded(device, before):
            assert backup.wait(120)
        status = backup.status()
    assert status.drains > 0
    assert status.suspended_writes > 0
    assert copy_of(dest, source.parent) == before


def faulty(servers: Servers, calls: str, trigger: Path) -> Server:
    """A server whose calls of one kind fail while the trigger is there, on a slow disk."""
    if calls != "flush":
        settings = [f"error-{calls}=EIO", f"error-{calls}-rate=100%", f"error-{calls}-file={trigger}"]
        slow = ["--filter=rate", "memory", f"size={SIZE}", "rate=128M", "burstiness=0.1"]
        return servers.nbdkit("--filter=error", *slow, *settings)
    disk = trigger.with_name("slow.img")
    disk.touch()
    os.truncate(disk, SIZE)
    return servers.nbdkit(
        "eval",
        f"get_size=echo {SIZE}",
        f"pread=dd if={disk} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none",
        f"pwrite=dd of={disk} oflag=seek_bytes seek=$4 conv=notrunc status=none",
        f"flush=if [ -e {trigger} ]; then echo EIO >&2; exit 1; fi",
    )


@pytest.mark.parametrize(
    ("role", "calls"),
    [("dest", "pwrite"), ("dest", "zero"), ("dest", "flush"), ("container", "pwrite"), ("container", "pread")],
)
def test_an_error_breaks_the_backup_and_no_program(
    role: str, calls: str, servers: Servers, source: Path, sheet: Path
) -> None:
    before = source.read_bytes()
    trigger = source.parent / "trigger"
    wrong = faulty(servers, calls, trigger)
    right = servers.nbdkit("memory", f"size={SIZE}")
    container, dest = (wrong, right) if role == "container" else (right, wrong)
    with Device(source) as device:
        backup = device.backup(
            container=container.uri, dest=dest.uri, manifest=sheet, staging_size="64K", limit_read="32M"
        )
        trigger.touch()
        with loaded(device, before) as load:
            with pytest.raises(blockcow.BlockcowError) as raised:
                backup.wait(120)
            load.wait_for_more()
        status = backup.status()
    kind = blockcow.DestinationError if role == "dest" else blockcow.ContainerError
    assert isinstance(raised.value, kind), raised.value
    assert raised.value.errno == errno.EIO
    assert wrong.uri in str(raised.value)
    assert status.status == "broken"
    assert not sheet.exists()


@pytest.mark.parametrize("role", ["dest", "container"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_server_that_is_gone_breaks_the_backup_and_no_program(
    role: str, how: str, servers: Servers, source: Path, sheet: Path
) -> None:
    before = source.read_bytes()
    lost, other = servers.nbdkit("memory", f"size={SIZE}"), servers.nbdkit("memory", f"size={SIZE}")
    container, dest = (lost, other) if role == "container" else (other, lost)
    with Device(source) as device:
        backup = device.backup(
            container=container.uri,
            dest=dest.uri,
            manifest=sheet,
            staging_size="64K",
            limit_read="8M",
            nbd_timeout="1s",
            cbw_timeout="20s",
        )
        with loaded(device, before) as load:
            load.wait_for_more()
            if how == "killed":
                lost.kill()
            else:
                lost.stop()
            with pytest.raises(blockcow.BlockcowError) as raised:
                backup.wait(60)
            load.wait_for_more()
    kind = blockcow.DestinationError if role == "dest" else blockcow.ContainerError
    assert isinstance(raised.value, kind), raised.value
    assert raised.value.errno == (errno.ECONNRESET if how == "killed" else errno.ETIMEDOUT)
    assert lost.uri in str(raised.value)
    assert not sheet.exists()


@pytest.mark.parametrize("role", ["dest", "container"])
def test_a_server_that_stands_still_does_not_hold_up_the_end(
    role: str, servers: Servers, source: Path, sheet: Path
) -> None:
    before = source.read_bytes()
    lost, other = servers.nbdkit("memory", f"size={SIZE}"), servers.nbdkit("memory", f"size={SIZE}")
    container, dest = (lost, other) if role == "container" else (other, lost)
    places = {"container": container.uri, "dest": dest.uri, "manifest": sheet}
    with Device(source) as device:
        backup = device.backup(**places, staging_size="64K", limit_read="8M", nbd_timeout="20m")  # type: ignore[arg-type]
        with loaded(device, before) as load:
            load.wait_for_more()
            lost.stop()
            backup.cancel()
            assert backup.ended(100)
            load.wait_for_more()
        assert backup.status().status == "cancelled"


def test_a_server_that_takes_one_client_and_ends_with_it_serves_a_whole_backup(
    servers: Servers, source: Path, sheet: Path
) -> None:
    before = source.read_bytes()
    image = source.parent / "once.img"
    image.touch()
    os.truncate(image, SIZE)
    dest = servers.qemu(image)
    container = servers.nbdkit("--filter=exitlast", "memory", "size=2M")
    with Device(source) as device:
        with device.backup(container=container.uri, dest=dest.uri, manifest=sheet) as backup:
            pass
        assert backup.status().status == "complete"
        # Both end because the backup holds nothing after its end.
        assert dest.process.wait(60) == 0
        assert container.process.wait(60) == 0
    assert image.read_bytes() == before


def test_damage_on_a_server_is_found(servers: Servers, source: Path, sheet: Path, blockcow: Run) -> None:
    image = source.parent / "far.img"
    image.touch()
    os.truncate(image, SIZE)
    dest = servers.nbdkit("file", str(image))
    assert (
        blockcow(
            "backup", "--device", source, "--container", "memory:1M", "--dest", dest.uri, "--manifest", sheet
        ).returncode
        == 0
    )
    with image.open("r+b") as file:
        file.seek(5 * MIB + 123)
        byte = file.read(1)
        file.seek(5 * MIB + 123)
        file.write(bytes([byte[0] ^ 1]))
    checked = blockcow("verify", dest.uri, "--manifest", sheet)
    assert checked.returncode == 21
    assert f"first at offset {5 * MIB}" in checked.stderr
    target = servers.nbdkit("memory", f"size={SIZE}")
    refused = blockcow("restore", dest.uri, "--manifest", sheet, "--device", target.uri)
    assert_one_error(refused, 21, f"at offset {5 * MIB}", "nothing was written")
    assert copy_of(target, source.parent) == bytes(SIZE)
    forced = blockcow("restore", dest.uri, "--manifest", sheet, "--device", target.uri, "--force", "damaged")
    assert forced.returncode == 0, forced.stderr
    assert copy_of(target, source.parent) == image.read_bytes()


Result = subprocess.CompletedProcess[str]


def backup_to(blockcow: Run, container: str, dest: str, *more: object) -> Result:
    return blockcow("backup", "--device", "device.img", "--container", container, "--dest", dest, *more)


def file_system(path: Path) -> None:
    sh("mkfs.ext4", "-q", "-F", str(path))


def partition_table(path: Path) -> None:
    sh("sfdisk", "-q", str(path), stdin="label: gpt\nstart=2048,size=8192\n")


@pytest.mark.parametrize(("fill", "words"), [(file_system, "it holds ext4"), (partition_table, "gpt partition table")])
@pytest.mark.parametrize("role", ["container", "dest"])
def test_what_holds_something_is_refused_unless_forced(
    role: str,
    fill: Callable[[Path], None],
    words: str,
    servers: Servers,
    source: Path,
    sheet: Path,
    blockcow: Run,
) -> None:
    disk = source.parent / "disk.img"
    disk.touch()
    os.truncate(disk, 24 * MIB)
    fill(disk)
    uri, empty = servers.nbdkit("file", str(disk)).uri, servers.nbdkit("memory", f"size={SIZE}").uri
    container, dest = (uri, empty) if role == "container" else ("memory:1M", uri)
    before, at = disk.read_bytes(), ["--manifest", sheet]
    assert_one_error(backup_to(blockcow, container, dest, *at), 1, words, f"--force {role}-has-filesystem")
    assert disk.read_bytes() == before
    forced = backup_to(blockcow, container, dest, *at, "--force", f"{role}-has-filesystem")
    assert forced.returncode == 0, forced.stderr


def test_what_cannot_be_is_refused_with_the_reason(servers: Servers, source: Path, sheet: Path, blockcow: Run) -> None:
    good = servers.nbdkit("memory", f"size={SIZE}")
    small = servers.nbdkit("memory", "size=1M")
    fixed = servers.nbdkit("--readonly", "memory", f"size={SIZE}")
    safe_nowhere = servers.nbdkit(
        "--filter=nofilter",
        "eval",
        "get_size=echo 33554432",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat > /dev/null",
        "can_flush=exit 3",
        "can_fua=echo none",
    )
    at = ["--manifest", sheet]
    cases = [
        ("memory:1M", good.uri, [], 2, ["say where the manifest goes"]),
        ("memory:1M", small.uri, at, 2, ["too small", "it holds 1 MiB, the device 16 MiB"]),
        ("memory:1M", fixed.uri, at, 2, ["allows only reading"]),
        (fixed.uri, good.uri, at, 2, ["allows only reading"]),
        (good.uri, good.uri, at, 2, ["also the destination"]),
        (good.named("other"), good.uri, at, 2, ["same disk"]),
        (small.uri, good.uri, [*at, "--container-size", "2M"], 1, ["it holds 1 MiB, not 2 MiB"]),
        ("memory:1M", safe_nowhere.uri, at, 2, ["neither FLUSH nor FUA"]),
        ("memory:1M", "nbds://localhost/", at, 2, ["TLS"]),
        ("memory:1M", "nbd:localhost:10809", at, 2, ["write nbd://"]),
        ("nbd+unix:///x", good.uri, at, 2, ["which socket"]),
        ("memory:1M", "nbd+unix:///?socket=/nowhere/socket", at, 1, ["No such file"]),
        ("memory:1M", "nbd://127.0.0.1:1/", at, 1, ["Connection refused"]),
        ("memory:1M", good.uri, [*at, "--nbd-timeout", "0"], 2, ["above zero"]),
    ]
    for container, dest, options, code, words in cases:
        assert_one_error(backup_to(blockcow, container, dest, *options), code, *words)
        assert not sheet.exists()
    assert copy_of(good, source.parent) == bytes(SIZE)
    assert_one_error(blockcow("verify", good.uri), 2, "--manifest")


def test_a_dry_run_looks_and_writes_nothing(servers: Servers, source: Path, sheet: Path, blockcow: Run) -> None:
    far = servers.nbdkit("--filter=log", "memory", f"size={SIZE}", "logfile=log")
    result = backup_to(blockcow, "memory:1M", far.uri, "--manifest", sheet, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert far.uri in result.stdout
    log = (source.parent / "log").read_text()
    assert " Read " in log
    assert " Write " not in log
