"""Where ext2/3/4, xfs and btrfs end on their device, read from their superblocks. Never writes, never mounts.

Any other file system, and any superblock that does not look right, has no known end.
"""

import os
import struct

_EXT_AT, _EXT_MAGIC, _EXT_64BIT = 1024, 0xEF53, 0x80
_BTRFS_AT, _BTRFS_MAGIC = 64 * 1024, b"_BHRfS_M"


def filesystem_end(path: str, filesystem: str) -> int:
    """Offset behind the last byte of the file system. Raises LookupError with the reason where it is not known."""
    reader = {"ext2": _ext_end, "ext3": _ext_end, "ext4": _ext_end, "xfs": _xfs_end, "btrfs": _btrfs_end}.get(
        filesystem
    )
    if reader is None:
        raise LookupError(f"the size of {filesystem} is not known to blockcow")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return reader(fd)
    except struct.error as error:
        raise LookupError(f"the {filesystem} superblock is cut short") from error
    finally:
        os.close(fd)


def _ext_end(fd: int) -> int:
    block = os.pread(fd, 1024, _EXT_AT)
    blocks_low, log_size = struct.unpack_from("<I", block, 0x04)[0], struct.unpack_from("<I", block, 0x18)[0]
    magic, incompatible = struct.unpack_from("<H", block, 0x38)[0], struct.unpack_from("<I", block, 0x60)[0]
    blocks_high = struct.unpack_from("<I", block, 0x150)[0] if incompatible & _EXT_64BIT else 0
    if magic != _EXT_MAGIC or log_size > 6:
        raise LookupError("the ext superblock is damaged")
    return int((blocks_high << 32 | blocks_low) * (1024 << log_size))


def _xfs_end(fd: int) -> int:
    magic, block_size, blocks = struct.unpack_from(">4sIQ", os.pread(fd, 512, 0))
    if magic != b"XFSB" or block_size not in (512 << step for step in range(8)):
        raise LookupError("the xfs superblock is damaged")
    return int(block_size * blocks)


def _btrfs_end(fd: int) -> int:
    block = os.pread(fd, 4096, _BTRFS_AT)
    magic, devices = block[0x40:0x48], struct.unpack_from("<Q", block, 0x88)[0]
    device_bytes = struct.unpack_from("<Q", block, 0xC9 + 8)[0]  # dev_item.total_bytes
    if magic != _BTRFS_MAGIC:
        raise LookupError("the btrfs superblock is damaged")
    if devices != 1:
        raise LookupError(f"the btrfs spans {devices} devices")
    return int(device_bytes)
