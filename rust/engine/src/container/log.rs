//! The log behind staging: slots on a storage, written in large runs and read back one by one.

use std::ops::Range;

use super::index::Staged;
use crate::arena::Marks;
use crate::buffer::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::DEFAULT_EXTENT;
use crate::mutant::planted;
use crate::slab::{SlotAllocator, Slots};
use crate::storage::Storage;
use crate::sync::{Arc, Mutex, RwLock};

/// The largest write to the log, in bytes.
const BATCH_BYTES: usize = DEFAULT_EXTENT as usize;

/// Slots of one block each, on a storage.
pub struct Log {
    storage: Arc<dyn Storage>,
    block_bytes: usize,
    slots: Arc<SlotAllocator>,
    batch: Mutex<AlignedBuf>,
    /// Held for reading while the storage is written; sealed for ever when it holds `true`.
    sealed: RwLock<bool>,
}

impl Log {
    /// How many slots of `block_bytes` a storage has.
    ///
    /// # Errors
    /// `Invalid` if not one block fits, or more than 2^32 - 1.
    pub fn slots_of(storage: &dyn Storage, block_bytes: usize) -> Result<u32> {
        let count = storage.size() / block_bytes as u64;
        u32::try_from(count).ok().filter(|&slots| slots > 0 && slots < u32::MAX).ok_or_else(|| {
            let reason =
                format!("{} bytes hold {count} blocks of {block_bytes}; it must be 1 to 2^32 - 2", storage.size());
            Error::new(ErrorKind::Invalid, "container size", reason)
        })
    }

    /// A log on `storage`, in slots of `block_bytes`, one for each mark.
    pub fn new(storage: Arc<dyn Storage>, block_bytes: usize, marks: Marks) -> Self {
        Self {
            storage,
            block_bytes,
            slots: SlotAllocator::new(marks),
            batch: Mutex::new(AlignedBuf::new(BATCH_BYTES.max(block_bytes))),
            sealed: RwLock::new(false),
        }
    }

    /// What it lies on.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// The slots that a dead process filled, with the blocks that they hold.
    ///
    /// # Errors
    /// `Container`.
    pub(super) fn take_marked(&self) -> Result<Vec<(u32, Slots)>> {
        self.slots.take_marked().map_err(|error| Error::io(ErrorKind::Container, "read the table of slots", &error))
    }

    pub(super) fn batch_blocks(&self) -> usize {
        (BATCH_BYTES / self.block_bytes).max(1)
    }

    /// Writes the blocks to free slots, neighbouring slots in one write. Returns a slot for each block that was
    /// written, in order, and the error that kept the others from it.
    pub(super) fn append(&self, blocks: &[(u32, Staged)]) -> (Vec<Slots>, Result<()>) {
        let mut buffer = self.batch.lock();
        let mut slots = Vec::with_capacity(blocks.len());
        let mut rest = blocks;
        while !rest.is_empty() {
            // The gate counts a slot as free a moment before the write-behind lets go of it; none free now is no error.
            let Some(run) = self.slots.take(rest.len() as u32) else { break };
            let (now, later) = rest.split_at(run.count() as usize);
            for (slot, (_, memory)) in buffer.chunks_mut(self.block_bytes).zip(now) {
                slot.copy_from_slice(memory);
            }
            if let Err(error) = self.write(&buffer[..now.len() * self.block_bytes], run.first()) {
                return (slots, Err(error));
            }
            slots.extend(singles(run));
            rest = later;
        }
        (slots, Ok(()))
    }

    fn write(&self, bytes: &[u8], first: u32) -> Result<()> {
        let sealed = self.sealed.read();
        if *sealed {
            return Err(Error::new(ErrorKind::Cancelled, "write to the container", "the backup has ended"));
        }
        let offset = u64::from(first) * self.block_bytes as u64;
        if planted("write-behind-writes-nothing") {
            return Ok(());
        }
        let written = self.storage.write_at(bytes, offset);
        if planted("container-write-error-is-ignored") {
            return Ok(());
        }
        written.map_err(|error| {
            Error::io(ErrorKind::Container, "write to the container", &error)
                .at(offset)
                .hint("check the storage of the container, or give another with --container")
        })
    }

    /// Reads slots to their places in `buffer`, neighbouring slots in one read where their places are neighbours too.
    pub(super) fn read(&self, mut wanted: Vec<(u32, Range<usize>)>, buffer: &mut [u8]) -> Result<()> {
        wanted.sort_unstable_by_key(|(slot, _)| *slot);
        let mut wanted = wanted.into_iter().peekable();
        while let Some((slot, mut target)) = wanted.next() {
            let mut last = slot;
            while let Some((next, place)) = wanted.next_if(|(n, t)| *n == last + 1 && t.start == target.end) {
                last = next;
                target.end = place.end;
            }
            let offset = u64::from(slot) * self.block_bytes as u64;
            self.storage
                .read_at(&mut buffer[target], offset)
                .or_else(|error| if planted("container-read-error-is-ignored") { Ok(()) } else { Err(error) })
                .map_err(|error| Error::io(ErrorKind::Container, "read from the container", &error).at(offset))?;
        }
        Ok(())
    }

    pub(super) fn seal(&self) {
        *self.sealed.write() = !planted("container-is-not-sealed");
    }
}

fn singles(mut run: Slots) -> Vec<Slots> {
    let mut slots = Vec::with_capacity(run.count() as usize);
    while run.count() > 1 {
        slots.push(run.split_off_front(1));
    }
    slots.push(run);
    slots
}
