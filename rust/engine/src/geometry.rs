//! Blocks, extents and byte ranges: all rounding in the engine happens here, and nothing else does.

use crate::error::{Error, ErrorKind, Result};

/// The largest size of the two bitmaps together, in bytes; the default block size grows so that they stay below it.
const MAPS_LIMIT: u64 = 256 << 20;
const MIN_BLOCK: u64 = 512;
const MAX_BLOCK: u64 = 1 << 20;
const DEFAULT_BLOCK: u64 = 4096;
/// The size of an extent, unless the device is so large that there would be too many. Where backups of a few blocks are made by
/// the thousand, under a scheduler or in virtual time, they are to have several extents.
pub const DEFAULT_EXTENT: u64 = match (cfg!(feature = "shuttle"), cfg!(feature = "simulation")) {
    (true, _) => 1 << 10,
    (_, true) => 16 << 10,
    _ => 1 << 20,
};
/// At 32 bytes a digest, more extents than this would need more than 128 MiB.
const MAX_EXTENTS: u64 = 1 << 22;

/// A half-open range of bytes, `start..end`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// `length` bytes from `offset`. Refuses a range that does not fit in 64 bits.
    pub fn at(offset: u64, length: u64) -> Result<Self> {
        match offset.checked_add(length) {
            Some(end) => Ok(Self { start: offset, end }),
            None => Err(Error::new(ErrorKind::Invalid, "byte range", "offset + length exceeds 64 bits").at(offset)),
        }
    }

    /// Number of bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Whether both share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The largest range inside this one whose ends are multiples of `unit` (a power of two); may be empty.
    pub fn shrink_to(self, unit: u64) -> Self {
        let start = self.start.next_multiple_of(unit);
        let end = self.end & !(unit - 1);
        Self { start, end: end.max(start) }
    }

    /// The smallest range around this one whose ends are multiples of `unit` (a power of two).
    pub fn grow_to(self, unit: u64) -> Self {
        Self { start: self.start & !(unit - 1), end: self.end.next_multiple_of(unit) }
    }
}

/// A half-open run of block numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    /// First block.
    pub start: u32,
    /// One past the last block.
    pub end: u32,
}

impl BlockRange {
    /// `count` blocks from `start`.
    pub fn at(start: u32, count: u32) -> Self {
        Self { start, end: start + count }
    }

    /// Number of blocks.
    pub fn len(self) -> u32 {
        self.end - self.start
    }

    /// Whether it has no blocks.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Whether both share a block.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The block numbers, ascending.
    pub fn blocks(self) -> std::ops::Range<u32> {
        self.start..self.end
    }
}

/// How a device of a given size is cut into blocks and extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    device_bytes: u64,
    block_shift: u32,
    extent_shift: u32,
}

impl Geometry {
    /// The geometry of a device of `device_bytes` whose logical block has `logical_block` bytes.
    ///
    /// `block_size` `None` takes the default: 4 KiB, or more where the bitmaps would exceed 256 MiB.
    ///
    /// # Errors
    /// `Invalid` if the device is empty, the block size is no power of two from 512 to 1 MiB, is smaller than the
    /// logical block, or would give more than 2^32 - 1 blocks.
    pub fn new(device_bytes: u64, block_size: Option<u64>, logical_block: u64) -> Result<Self> {
        let invalid = |reason: String| Err(Error::new(ErrorKind::Invalid, "block size", reason));
        if device_bytes == 0 {
            return Err(Error::new(ErrorKind::Invalid, "open the device", "its size is 0: nothing to back up"));
        }
        let block = block_size.unwrap_or_else(|| default_block(device_bytes, logical_block));
        if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
            return invalid(format!("{block} is not a power of two from 512 to 1 MiB; try 4K"));
        }
        if block < logical_block {
            return invalid(format!("{block} is less than the device's logical block of {logical_block} bytes"));
        }
        if device_bytes.div_ceil(block) >= u64::from(u32::MAX) {
            return invalid(format!(
                "{block} gives too many blocks for a device of {device_bytes} bytes; use a larger one"
            ));
        }
        let mut extent = DEFAULT_EXTENT.max(block);
        while device_bytes.div_ceil(extent) > MAX_EXTENTS {
            extent *= 2;
        }
        Ok(Self { device_bytes, block_shift: block.trailing_zeros(), extent_shift: extent.trailing_zeros() })
    }

    /// The geometry that a backup was made with, however this version would choose it.
    ///
    /// # Errors
    /// `Invalid` if no device can be cut like this.
    pub fn recorded(device_bytes: u64, block_size: u64, extent_size: u64) -> Result<Self> {
        let geometry = Self::new(device_bytes, Some(block_size), MIN_BLOCK)?;
        let extents = device_bytes.div_ceil(extent_size.max(1));
        if !extent_size.is_power_of_two() || extent_size < block_size || extents > MAX_EXTENTS {
            let reason = format!("{extent_size} cannot be that of {device_bytes} bytes in blocks of {block_size}");
            return Err(Error::new(ErrorKind::Invalid, "extent size", reason));
        }
        Ok(Self { extent_shift: extent_size.trailing_zeros(), ..geometry })
    }

    /// Size of the device in bytes.
    pub fn device_bytes(self) -> u64 {
        self.device_bytes
    }

    /// Size of a block in bytes; the device's last block may be shorter.
    pub fn block_size(self) -> u64 {
        1 << self.block_shift
    }

    /// Size of an extent in bytes; the device's last extent may be shorter.
    pub fn extent_size(self) -> u64 {
        1 << self.extent_shift
    }

    /// Number of blocks, the short last one included.
    pub fn block_count(self) -> u32 {
        self.device_bytes.div_ceil(self.block_size()) as u32
    }

    /// Number of extents, the short last one included.
    pub fn extent_count(self) -> u32 {
        self.device_bytes.div_ceil(self.extent_size()) as u32
    }

    /// All blocks of the device.
    pub fn all_blocks(self) -> BlockRange {
        BlockRange { start: 0, end: self.block_count() }
    }

    /// Every block that the bytes touch. The bytes must lie on the device.
    pub fn blocks_touched(self, bytes: ByteRange) -> BlockRange {
        if bytes.is_empty() {
            let at = (bytes.start >> self.block_shift) as u32;
            return BlockRange { start: at, end: at };
        }
        BlockRange {
            start: (bytes.start >> self.block_shift) as u32,
            end: (((bytes.end - 1) >> self.block_shift) + 1) as u32,
        }
    }

    /// Every block that lies wholly inside the bytes; the device's short last block counts when its bytes are inside.
    pub fn blocks_inside(self, bytes: ByteRange) -> BlockRange {
        let start = bytes.start.div_ceil(self.block_size()) as u32;
        let end =
            if bytes.end >= self.device_bytes { self.block_count() } else { (bytes.end >> self.block_shift) as u32 };
        BlockRange { start, end: end.max(start) }
    }

    /// The bytes of a run of blocks, cut off at the end of the device.
    pub fn bytes_of(self, blocks: BlockRange) -> ByteRange {
        let start = u64::from(blocks.start) << self.block_shift;
        let end = (u64::from(blocks.end) << self.block_shift).min(self.device_bytes);
        ByteRange { start, end: end.max(start) }
    }

    /// The extent in which a block lies.
    pub fn extent_of(self, block: u32) -> u32 {
        block >> (self.extent_shift - self.block_shift)
    }

    /// The blocks of an extent, cut off at the end of the device.
    pub fn blocks_of_extent(self, extent: u32) -> BlockRange {
        let per_extent = 1u64 << (self.extent_shift - self.block_shift);
        let start = u64::from(extent) * per_extent;
        let end = (start + per_extent).min(u64::from(self.block_count()));
        BlockRange { start: start as u32, end: end as u32 }
    }

    /// The bytes of an extent, cut off at the end of the device.
    pub fn bytes_of_extent(self, extent: u32) -> ByteRange {
        self.bytes_of(self.blocks_of_extent(extent))
    }
}

fn default_block(device_bytes: u64, logical_block: u64) -> u64 {
    let mut block = DEFAULT_BLOCK.max(logical_block);
    while block < MAX_BLOCK && device_bytes.div_ceil(block) * 2 > MAPS_LIMIT * 8 {
        block *= 2;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_block_and_extent_are_short() {
        let g = Geometry::new((64 << 20) + 512, None, 512).unwrap();
        assert_eq!(g.block_count(), 16385);
        assert_eq!(g.extent_count(), 65);
        assert_eq!(g.bytes_of(BlockRange::at(16384, 1)), ByteRange { start: 64 << 20, end: (64 << 20) + 512 });
        assert_eq!(g.blocks_of_extent(64), BlockRange { start: 16384, end: 16385 });
        assert_eq!(g.bytes_of_extent(64), ByteRange { start: 64 << 20, end: (64 << 20) + 512 });
    }

    #[test]
    fn touched_covers_partial_blocks_and_inside_does_not() {
        let g = Geometry::new(1 << 20, Some(4096), 512).unwrap();
        let bytes = ByteRange { start: 4095, end: 8193 };
        assert_eq!(g.blocks_touched(bytes), BlockRange { start: 0, end: 3 });
        assert_eq!(g.blocks_inside(bytes), BlockRange { start: 1, end: 2 });
        assert!(g.blocks_touched(ByteRange { start: 5, end: 5 }).is_empty());
    }

    #[test]
    fn default_block_grows_with_the_device() {
        let size = |bytes| Geometry::new(bytes, None, 512).unwrap().block_size();
        assert_eq!(size(1 << 40), 4096);
        assert_eq!(size(4 << 40), 4096);
        assert_eq!(size((4 << 40) + 1), 8192);
        assert_eq!(size(64 << 40), 65536);
    }

    #[test]
    fn recorded_takes_other_extents_and_refuses_nonsense() {
        let size = (8 << 20) + 512;
        let chosen = Geometry::new(size, None, 512).unwrap();
        assert_eq!(Geometry::recorded(size, 4096, chosen.extent_size()).unwrap(), chosen);
        assert_eq!(Geometry::recorded(size, 4096, 4 << 20).unwrap().extent_count(), 3);
        for (bytes, block, extent) in
            [(size, 4096, 0), (size, 4096, 2048), (size, 4096, 3 << 20), (1 << 50, 4096, 1 << 20)]
        {
            assert_eq!(Geometry::recorded(bytes, block, extent).unwrap_err().kind, ErrorKind::Invalid);
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        for (bytes, block, logical) in
            [(0, None, 512), (4096, Some(3000), 512), (4096, Some(256), 512), (8192, Some(512), 4096)]
        {
            assert_eq!(Geometry::new(bytes, block, logical).unwrap_err().kind, ErrorKind::Invalid);
        }
    }
}
