//! Where a sweeper works: a buffer of one extent, and which of its blocks are in it. Both lie in the arena, so that another
//! process can sweep on with what is there.

use crate::arena::{Bytes, Region, Words};
use crate::sync::Ordering;

/// The desk of one sweeper.
pub struct Desk {
    /// The extent at hand plus one, or 0; then a bit for each of its blocks: its bytes at the cut are in the buffer.
    record: Words,
    /// The bytes of the extent at hand.
    pub buffer: Bytes,
}

impl Desk {
    /// A desk over a record and a buffer, zeroed or as a dead process left them.
    pub fn new(record: Region, buffer: Region) -> Self {
        Self { record: Words::new(record), buffer: Bytes::new(buffer) }
    }

    /// The extent at hand.
    pub fn extent(&self) -> Option<u32> {
        (self.record[0].load(Ordering::Acquire) as u32).checked_sub(1)
    }

    /// Takes up an extent, none of whose blocks is in the buffer.
    pub fn take_up(&self, extent: u32) {
        self.put_down();
        self.record[0].swap(u64::from(extent) + 1, Ordering::AcqRel);
    }

    /// Nothing is at hand; in this order, so that no block of one extent is ever taken for one of the next.
    pub fn put_down(&self) {
        self.record[0].swap(0, Ordering::AcqRel);
        for word in &self.record[1..] {
            if word.load(Ordering::Relaxed) != 0 {
                word.swap(0, Ordering::AcqRel);
            }
        }
    }

    /// The bytes of the extent's block with this index are in the buffer. Before it is marked copied.
    pub fn has_now(&self, index: u32) {
        self.record[1 + index as usize / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
    }

    /// The same block is not in the buffer after all.
    pub fn has_not(&self, index: u32) {
        self.record[1 + index as usize / 64].fetch_and(!(1 << (index % 64)), Ordering::AcqRel);
    }

    /// Whether the block with this index is in the buffer.
    pub fn has(&self, index: u32) -> bool {
        self.record[1 + index as usize / 64].load(Ordering::Acquire) & (1 << (index % 64)) != 0
    }

    /// Whether nothing is in the buffer.
    pub fn is_empty(&self) -> bool {
        self.record[1..].iter().all(|word| word.load(Ordering::Acquire) == 0)
    }
}
