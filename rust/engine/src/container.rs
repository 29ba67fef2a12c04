//! The container: where old blocks go before they reach the destination. A log of slots, with staging in front of it.
//!
//! A block is stored once it is in staging; the write-behind moves staging to slots behind the writers' backs. A
//! container that is memory only is staging without slots. Blocks of zeroes are not kept: what was copied and is not here
//! is zero. How much may be held at a time is decided by the gate, which reserves room before anything is staged.

mod index;
mod log;

use crate::error::{Error, ErrorKind, Result};
use crate::gate::Room;
use crate::geometry::{BlockRange, Geometry};
use crate::mutant::planted;
use crate::slab::{Memory, Slab};
use crate::storage::Storage;
use crate::sync::{Arc, Condvar, Mutex};
use crate::zeroes::is_zero;
use index::{Index, Place, Staged};
pub use log::Log;

/// The blocks of one extent, taken out of the index by the sweep; given back with [`Container::release`]. If that does not
/// happen, because the extent could not be delivered, their places stay taken, and their marks set, as long as the container
/// is there: what is not at the destination is never forgotten before the backup has ended.
pub struct Taken {
    places: Vec<(u32, Place)>,
    undelivered: Arc<Mutex<Vec<(u32, Place)>>>,
}

impl Taken {
    /// The block numbers, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        self.places.iter().map(|(block, _)| *block)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.undelivered.lock().append(&mut self.places);
    }
}

/// The container of one backup.
pub struct Container {
    geometry: Geometry,
    staging: Arc<Slab>,
    log: Option<Log>,
    state: Mutex<State>,
    work: Condvar,
    undelivered: Arc<Mutex<Vec<(u32, Place)>>>,
}

struct State {
    index: Index,
    closed: bool,
}

impl Container {
    /// A container with `staging` in memory, and `log` behind it unless it is memory only.
    pub fn new(geometry: Geometry, staging: Arc<Slab>, log: Option<Log>) -> Self {
        let state = Mutex::new(State { index: Index::new(geometry), closed: false });
        Self { geometry, staging, log, state, work: Condvar::new(), undelivered: Arc::default() }
    }

    /// Takes up what a dead process left here, of the blocks for which `keep` holds. Returns the room that it takes.
    ///
    /// # Errors
    /// `Container` if the tables cannot be read.
    pub fn take_up(&self, keep: impl Fn(u32) -> bool) -> Result<Room> {
        let mut room = Room::default();
        let index = &mut self.state.lock().index;
        for (block, slot) in self.log.as_ref().map_or(Ok(Vec::new()), Log::take_marked)? {
            // A block is in both places if the process died between writing it behind and letting go of its staging.
            if keep(block) && index.insert_stored(block, slot) {
                room.slots += 1;
            }
        }
        let staged = self.staging.take_marked();
        let failed = |error| Error::io(ErrorKind::Container, "read the table of staging", &error);
        for (block, memory) in staged.map_err(failed)? {
            if keep(block) && !index.holds(block) {
                index.insert(block, Arc::new(memory));
                room.slots += 1;
                room.staging += 1;
            }
        }
        Ok(room)
    }

    /// What the log lies on.
    pub fn storage(&self) -> Option<&dyn Storage> {
        self.log.as_ref().map(Log::storage)
    }

    /// Memory for 1 to `most` blocks. The gate has reserved the room, so there is some.
    ///
    /// # Errors
    /// `Container` if the reservation was wrong: never write over what is not free.
    pub fn stage(&self, most: u32) -> Result<Memory> {
        self.staging.take(most).ok_or_else(|| {
            Error::new(
                ErrorKind::Container,
                "stage a block",
                "no free place although one was reserved: a bug, please report it",
            )
        })
    }

    /// Stores the blocks from `first` on, whose old bytes are in `memory`. From now on the sweep finds them. Returns
    /// the room that was reserved and not needed, because the blocks are zero.
    pub fn store(&self, first: u32, mut memory: Memory) -> Room {
        let count = memory.count();
        let mut blocks = Vec::with_capacity(count as usize);
        let mut keep = |block: u32, memory: Memory| {
            let length = self.geometry.bytes_of(BlockRange::at(block, 1)).len() as usize;
            let looked_at = if planted("half-a-block-of-zeroes-is-zero") { length / 2 } else { length };
            if !is_zero(&memory[..looked_at]) {
                if !planted("staged-block-has-no-mark") {
                    memory.mark(block);
                }
                blocks.push((block, Arc::new(memory)));
            }
        };
        let mut block = first;
        while memory.count() > 1 {
            keep(block, memory.split_off_front(1));
            block += 1;
        }
        keep(block, memory);
        let zeroes = count - blocks.len() as u32;
        let index = &mut self.state.lock().index;
        let last = blocks.len() - usize::from(blocks.len() > 1 && planted("index-forgets-a-block"));
        for (block, memory) in blocks.into_iter().take(last) {
            index.insert(block, memory);
        }
        if self.log.is_some() && index.staged() > self.staging.slots() / 2 {
            self.work.notify_one();
        }
        Room { slots: zeroes, staging: zeroes }
    }

    /// Whether the container holds nothing of an extent.
    pub fn holds_none_of(&self, extent: u32) -> bool {
        self.state.lock().index.holds_none_of(extent)
    }

    /// The extent that holds most slots, of those for which `free` holds.
    pub fn fullest(&self, free: impl Fn(u32) -> bool) -> Option<u32> {
        self.state.lock().index.fullest(free)
    }

    /// How many blocks it holds of the extents in the range.
    pub fn held(&self, extents: std::ops::Range<u32>) -> u32 {
        let state = self.state.lock();
        extents.map(|extent| state.index.held(extent)).sum()
    }

    /// Takes the blocks of an extent out of the index. All writers of that extent have stored what they will.
    pub fn take(&self, extent: u32) -> Taken {
        Taken { places: self.state.lock().index.take(extent), undelivered: self.undelivered.clone() }
    }

    /// Copies taken blocks to their places in `buffer`, which holds the extent that begins at block `first`.
    ///
    /// # Errors
    /// `Container` with the offset in the container when a slot cannot be read.
    pub fn read(&self, taken: &Taken, first: u32, buffer: &mut [u8]) -> Result<()> {
        let mut stored = Vec::new();
        for (block, place) in &taken.places {
            let start = u64::from(block - first) * self.geometry.block_size();
            let length = self.geometry.bytes_of(BlockRange::at(*block, 1)).len();
            let target = start as usize..(start + length) as usize;
            match place {
                Place::Staged(memory) => {
                    let length = target.len();
                    buffer[target].copy_from_slice(&memory[..length]);
                }
                Place::Stored(slot) => stored.push((slot.first(), target)),
            }
        }
        match &self.log {
            Some(log) => log.read(stored, buffer),
            None => Ok(()),
        }
    }

    /// Frees taken blocks, which are at the destination now. Returns the room that this made.
    pub fn release(&self, mut taken: Taken) -> Room {
        let mut room = Room::default();
        for (_, place) in std::mem::take(&mut taken.places) {
            match place {
                Place::Staged(memory) => room.staging += u32::from(unstage(memory)),
                Place::Stored(slot) => drop(slot),
            }
            room.slots += 1;
        }
        room
    }

    /// Waits until staging is more than half full, then moves its oldest blocks to the log in one large write. Returns
    /// the room that this made in staging, and the error if the log could not be written: then the blocks stay in
    /// staging. `None`: the container is closed.
    pub fn write_behind(&self) -> Option<(Room, Result<()>)> {
        let log = self.log.as_ref()?;
        let batch = {
            let mut state = self.state.lock();
            while !state.closed && state.index.staged() <= self.staging.slots() / 2 {
                self.work.wait(&mut state);
            }
            if state.closed {
                return None;
            }
            state.index.oldest_staged(log.batch_blocks())
        };
        let (slots, outcome) = log.append(&batch);
        let mut slots = slots.into_iter();
        let mut staging = 0;
        let mut state = self.state.lock();
        for (block, memory) in batch {
            match slots.next() {
                Some(slot) => {
                    if !planted("stored-block-has-no-mark") {
                        slot.mark(block);
                    }
                    state.index.stored(block, &memory, slot);
                }
                None => state.index.keep_staged(block),
            }
            staging += u32::from(unstage(memory));
        }
        Some((Room { slots: 0, staging }, outcome))
    }

    /// Ends the write-behind.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
    }

    /// Lets no further write reach the log, and waits for the one in flight.
    pub fn seal(&self) {
        if let Some(log) = &self.log {
            log.seal();
        }
    }
}

/// Gives one reference to staged bytes up. Returns whether that freed the place in staging: of the sweep and the
/// write-behind, exactly one is told so.
fn unstage(memory: Staged) -> bool {
    Arc::into_inner(memory).is_some()
}

#[cfg(test)]
mod tests;
