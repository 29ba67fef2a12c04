"""Where the container may go: `device:free` finds only what is certainly free, and every unfit place is refused."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockcow
from blockcow import BlockcowError, BusyError, ContainerError, ExistsError, NotFoundError
from blockcow.container import Container, default_size, resolve
from blockcow.freespace import largest_free
from blockcow.node import Node, find
from blockcow.preflight import check_dest
from blockcow.superblock import filesystem_end
from conftest import MIB, sh
from test_usage import open_in_other_process

Loop = Callable[..., str]


def place(spec: str, device: str | Path, **options: object) -> Container:
    settings = {"dest": "/nowhere/dest.img", "size": None, "force": (), "own_mounts": (), **options}
    return resolve(spec, find(device), **settings)  # type: ignore[arg-type]


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_default_size() -> None:
    assert default_size(find_sized(1 << 40)) == 4096 * MIB
    assert default_size(find_sized(1 << 33)) == 512 * MIB
    assert default_size(find_sized(100 * MIB)) == 64 * MIB
    assert default_size(find_sized(5000)) == 8192


def find_sized(size: int) -> Node:
    return Node("x", False, ("file", 0, 0), size)


@pytest.mark.parametrize("table", ["label: gpt\n", "label: dos\n"])
def test_free_is_the_largest_gap_behind_a_partition(loop_device: Loop, table: str) -> None:
    table += "start=2048,size=8192\nstart=40960,size=8192\n"  # sectors: 1M+4M, 20M+4M; the gap between is the largest
    device = loop_device(32 * MIB, table=table)
    assert largest_free(find(device)) == (5 * MIB, 15 * MIB)


def test_free_of_an_image_file_reads_its_table(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", 32 * MIB)
    sh("sfdisk", "-q", str(image), stdin="label: gpt\nstart=2048,size=8192\n")
    assert largest_free(find(image)) == (5 * MIB, 26 * MIB)


def test_free_counts_logical_partitions_and_odd_ends(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", 64 * MIB)
    table = "label: dos\nstart=2048,size=2049\nstart=40960,size=81920,type=5\nstart=45056,size=4096\n"
    sh("sfdisk", "-q", "--force", str(image), stdin=table)
    start = -(-(2048 + 2049) * 512 // 4096) * 4096
    assert largest_free(find(image)) == (start, 20 * MIB - start)


def test_free_with_4k_sectors(loop_device: Loop) -> None:
    device = loop_device(32 * MIB, sector=4096)
    sh("sfdisk", "-q", device, stdin="label: gpt\nstart=256,size=1024\n")  # 1 MiB + 4 MiB in sectors of 4 KiB
    assert largest_free(find(device)) == (5 * MIB, 26 * MIB)


def test_an_empty_table_leaves_all_but_the_margins(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", 32 * MIB)
    sh("sfdisk", "-q", str(image), stdin="label: gpt\n")
    assert largest_free(find(image)) == (MIB, 30 * MIB)


@pytest.mark.parametrize(
    ("filesystem", "arguments", "size"),
    [
        ("ext4", ["-O", "64bit"], 40 * MIB),
        ("ext2", ["-b", "1024"], 9 * MIB),
        ("xfs", ["-f"], 320 * MIB),
        ("btrfs", ["-f"], 128 * MIB),
    ],
)
def test_free_behind_a_file_system(tmp_path: Path, filesystem: str, arguments: list[str], size: int) -> None:
    image = sparse(tmp_path / "disk.img", size)
    sh(f"mkfs.{filesystem}", "-q", *arguments, str(image))
    os.truncate(image, size + 8 * MIB)
    assert filesystem_end(str(image), filesystem) == size
    assert largest_free(find(image)) == (size, 8 * MIB)


def test_free_is_refused_where_anything_is_unknown(tmp_path: Path) -> None:
    blank = sparse(tmp_path / "blank.img", 8 * MIB)
    with pytest.raises(ContainerError, match="neither a partition table nor a file system.*device:OFFSET\\+LENGTH"):
        place("device:free", blank)
    swap = sparse(tmp_path / "swap.img", 8 * MIB)
    sh("mkswap", str(swap))
    with pytest.raises(ContainerError, match="the size of swap is not known"):
        place("device:free", swap)
    full = sparse(tmp_path / "full.img", 8 * MIB)
    sh("mkfs.ext4", "-q", str(full))
    with pytest.raises(ContainerError, match="no part of it is free"):
        place("device:free", full)


def test_free_takes_the_default_or_the_wanted_size(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", 256 * MIB)
    sh("sfdisk", "-q", str(image), stdin="label: gpt\nstart=2048,size=8192\n")
    assert place("device:free", image) == Container("section", None, 5 * MIB, 64 * MIB)
    assert place("device:free", image, size="2M") == Container("section", None, 5 * MIB, 2 * MIB)
    with pytest.raises(ContainerError, match="holds 250 MiB, not 1 GiB"):
        place("device:free", image, size="1G")


def test_a_section_is_taken_as_given(image: Path) -> None:
    assert place("device:4M+1M", image) == Container("section", None, 4 * MIB, MIB)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("device:4M", "is not device:OFFSET"),
        ("device:", "is not device:OFFSET"),
        ("device:x+1M", "is not a size"),
        ("device:100+1M", "multiples of 4096"),
        ("device:4K+100", "multiples of 4096"),
        ("device:4K+0", "holds nothing"),
        ("device:8M+4K", "behind the device's end"),
        ("memory:", "is not a size"),
        ("memory:0", "is empty"),
        ("", "is empty"),
    ],
)
def test_malformed_places(image: Path, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(spec, image)


def test_a_section_over_a_partition_or_file_system_is_refused(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", 32 * MIB)
    sh("sfdisk", "-q", str(image), stdin="label: gpt\nstart=2048,size=8192\n")
    with pytest.raises(ContainerError, match="overlaps partition 1 "):
        place("device:4M+8M", image)
    with pytest.raises(ContainerError, match="overlaps the gpt partition table"):
        place("device:0+4K", image)
    with pytest.raises(ContainerError, match="overlaps the end of the disk"):
        place("device:31M+1M", image)
    assert place("device:5M+1M", image).offset == 5 * MIB
    assert place("device:4M+8M", image, force=("container-has-filesystem",)).length == 8 * MIB


def test_a_section_of_something_unknown_is_refused_unless_forced(tmp_path: Path) -> None:
    image = sparse(tmp_path / "swap.img", 8 * MIB)
    sh("mkswap", str(image))
    with pytest.raises(ContainerError, match="the size of swap is not known.*--force container-has-filesystem"):
        place("device:4M+1M", image)
    assert place("device:4M+1M", image, force=("container-has-filesystem",)).length == MIB


def test_a_block_device_is_taken_whole_or_in_part(loop_device: Loop, image: Path) -> None:
    device = loop_device(4 * MIB)
    assert place(device, image) == Container("block", device, 0, 4 * MIB)
    assert place(device, image, size="1M") == Container("block", device, 0, MIB)
    with pytest.raises(ContainerError, match="holds 4 MiB, not 5 MiB"):
        place(device, image, size="5M")


def test_a_block_device_with_content_or_in_use_is_refused(
    loop_device: Loop, image: Path, mount: Callable[[str], Path], cleanup: ExitStack
) -> None:
    device = loop_device(filesystem="ext4")
    with pytest.raises(ContainerError, match="it holds ext4; .*--force container-has-filesystem"):
        place(device, image)
    assert place(device, image, force=("container-has-filesystem",)).path == device
    mount(device)
    with pytest.raises(BusyError, match="mounted at"):
        place(device, image, force=("container-has-filesystem",))


def test_the_device_or_a_part_of_it_is_no_container(loop_device: Loop, image: Path) -> None:
    device = loop_device(table="label: gpt\nstart=2048,size=8192\n")
    for spec, of in ((str(image), image), (device, device)):
        with pytest.raises(ValueError, match="is the device itself"):
            place(spec, of)
    with pytest.raises(ValueError, match=r"is a part of the device .*: call it device:1048576\+4194304"):
        place(f"{device}p1", device)
    with pytest.raises(ValueError, match="is the disk that the device"):
        place(device, f"{device}p1")
    with pytest.raises(ValueError, match="the destination .* is a part of the device .*: name another"):
        check_dest(find(device), f"{device}p1", ())
    with pytest.raises(ValueError, match="the destination .* is the disk that the device"):
        check_dest(find(f"{device}p1"), device, ())


def test_the_same_device_by_another_name_is_still_the_device(image: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(image)
    with pytest.raises(ValueError, match="is the device itself"):
        place(str(tmp_path / "link"), image)


def test_files(image: Path, tmp_path: Path) -> None:
    new = tmp_path / "cow"
    assert place(str(new), image) == Container("file", str(new), 0, 8 * MIB)
    assert place(str(new), image, size="1M").length == MIB
    with pytest.raises(ValueError, match="also the destination"):
        place(str(new), image, dest=str(tmp_path / "." / "cow"))
    with pytest.raises(NotFoundError, match="there is no folder"):
        place(str(tmp_path / "no" / "cow"), image)
    new.write_bytes(b"precious")
    with pytest.raises(ExistsError, match="exists already.*--force container-exists"):
        place(str(new), image)
    assert place(str(new), image, force=("container-exists",)).kind == "file"
    with pytest.raises(ValueError, match="size is zero"):
        place(str(tmp_path / "other"), image, size="0")
    with pytest.raises(ValueError, match="is a directory"):
        place(str(tmp_path), image)


def test_a_file_in_use_is_never_overwritten(image: Path, tmp_path: Path, cleanup: ExitStack) -> None:
    used = sparse(tmp_path / "used", MIB)
    open_in_other_process(used, "r+b", cleanup)
    with pytest.raises(BusyError, match="open for writing"):
        place(str(used), image, force=("container-exists",))


def test_a_file_in_a_file_system_that_is_mounted_past_blockcow_is_refused(
    loop_device: Loop, mount: Callable[[str], Path]
) -> None:
    device = loop_device(filesystem="ext4")
    point = mount(device)
    with pytest.raises(BlockcowError, match=f"lies in the file system mounted at {point}.*choose a place on another"):
        place(str(point / "cow"), device)


def test_a_file_in_a_file_system_on_the_attached_device_lies_inside(
    loop_device: Loop, mount: Callable[[str], Path], image: Path
) -> None:
    device = loop_device(64 * MIB, table="label: gpt\nstart=4096\n")
    sh("mkfs.ext4", "-q", f"{device}p1")
    point = mount(f"{device}p1")
    path = str(point / "cow")
    assert place(path, image, size="1M", own_mounts=(str(point),)) == Container("inside", path, 2 * MIB, MIB)


def test_memory_that_is_not_there_is_refused(image: Path) -> None:
    with pytest.raises(ContainerError, match="1 PiB are not free, .* are; ask for less"):
        place("memory:1024T", image)


def test_sizes_in_the_name_exclude_a_container_size(image: Path) -> None:
    assert place("memory:1M", image) == Container("memory", None, 0, MIB)
    for spec in ("memory:1M", "device:0+4K"):
        with pytest.raises(ValueError, match="drop the container size"):
            place(spec, image, size="1M")


def test_with_force_a_file_of_the_containers_name_is_let_alone(image: Path, tmp_path: Path) -> None:
    there = tmp_path / "cow"
    there.write_bytes(b"precious")
    options = {"container": there, "dest": tmp_path / "dest", "force": ("container-exists",)}
    assert blockcow.backup(device=image, **options).status == "complete"  # type: ignore[arg-type]
    assert there.read_bytes() == b"precious"
