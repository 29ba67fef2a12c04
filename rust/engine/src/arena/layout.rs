//! Which regions an arena has, in which order and how long: everything that another process needs to go on with a
//! backup, byte by byte as `docs/architecture.md` draws it. Fills none of them.

use std::io;
use std::os::fd::OwnedFd;

use super::{Region, adopted_regions, regions, shared_regions};
use crate::geometry::Geometry;

/// How many extents are on their way from the device to the destination at a time. Fewer leave a disk idle, more take the
/// processors from the programs.
pub const SWEEPERS: usize = 4;

/// Bytes of the header.
const HEADER: usize = 4096;
/// Bytes of a digest.
const DIGEST: usize = 32;

/// Number of 64-bit words for one bit a thing.
pub fn words_for(things: u32) -> usize {
    things.div_ceil(64) as usize
}

/// What the lengths of the regions follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The device's blocks and extents.
    pub geometry: Geometry,
    /// Places in staging.
    pub staging_slots: u32,
    /// Slots of the log; 0 without one.
    pub log_slots: u32,
}

/// The regions of one arena.
pub struct Parts {
    /// Words on the backup as a whole.
    pub header: Region,
    /// A bit a block: on the list and not yet copied.
    pub pending: Region,
    /// A bit a block: claimed. Never shared: claims die with their process.
    pub claimed: Region,
    /// A word an extent, for the block map.
    pub tally: Region,
    /// 32 bytes an extent.
    pub digests: Region,
    /// A bit an extent: at the destination.
    pub delivered: Region,
    /// A mark for each place in staging: the number of the block whose bytes are there, plus one.
    pub staging_marks: Region,
    /// The same for each slot of the log.
    pub log_marks: Region,
    /// The list, compressed; empty in memory that dies with its process.
    pub list: Region,
    /// For each sweeper the words on the extent in its buffer, and the buffer.
    pub desks: Vec<(Region, Region)>,
    /// The bytes of staging.
    pub staging: Region,
}

impl Layout {
    /// Memory that dies with this process.
    ///
    /// # Errors
    /// The kernel's error when the memory cannot be mapped.
    pub fn anonymous(&self) -> io::Result<Parts> {
        self.parts(regions(&self.lengths(false))?)
    }

    /// Memory that another process can take over.
    ///
    /// # Errors
    /// As `anonymous`.
    pub fn shared(&self) -> io::Result<Parts> {
        self.parts(shared_regions(&self.lengths(true))?)
    }

    /// The memory that a dead process made with `shared`.
    ///
    /// # Errors
    /// The kernel's error, or `InvalidData` if it has another length.
    pub fn adopt(&self, file: OwnedFd) -> io::Result<Parts> {
        self.parts(adopted_regions(file, &self.lengths(true))?)
    }

    fn lengths(&self, shared: bool) -> Vec<usize> {
        let Self { geometry, staging_slots, log_slots } = *self;
        let (extents, extent) = (geometry.extent_count(), geometry.blocks_of_extent(0));
        let mut lengths = vec![
            HEADER,
            words_for(geometry.block_count()) * 8,
            extents as usize * 8,
            extents as usize * DIGEST,
            words_for(extents) * 8,
            staging_slots as usize * 4,
            log_slots as usize * 4,
            if shared { longest_list(geometry.block_count()) } else { 0 },
        ];
        for _ in 0..SWEEPERS {
            lengths.push((1 + words_for(extent.len())) * 8);
            lengths.push(geometry.extent_size() as usize);
        }
        lengths.push(staging_slots as usize * geometry.block_size() as usize);
        lengths
    }

    fn parts(&self, regions: Vec<Region>) -> io::Result<Parts> {
        let claimed = super::regions(&[words_for(self.geometry.block_count()) * 8])?;
        let mut regions = regions.into_iter().chain(claimed);
        let mut next = || regions.next().expect("as many regions as lengths");
        let (header, pending, tally, digests, delivered) = (next(), next(), next(), next(), next());
        let (staging_marks, log_marks, list) = (next(), next(), next());
        let desks = (0..SWEEPERS).map(|_| (next(), next())).collect();
        let (staging, claimed) = (next(), next());
        Ok(Parts {
            header,
            pending,
            claimed,
            tally,
            digests,
            delivered,
            staging_marks,
            log_marks,
            list,
            desks,
            staging,
        })
    }
}

/// The most bytes that a list of so many blocks can take in the Roaring format, a length before it: 8 KiB for each 65536
/// blocks, and their descriptions.
fn longest_list(blocks: u32) -> usize {
    let chunks = blocks.div_ceil(1 << 16) as usize;
    64 + chunks * (8192 + 16 + 8)
}
