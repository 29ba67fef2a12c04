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
use crate::slab::{Memory, Slab};
use crate::sync::{Arc, Condvar, Mutex};
use crate::zeroes::is_zero;
use index::{Index, Place, Staged};
pub use log::Log;

/// The blocks of one extent, taken out of the index by the sweep; given back with [`Container::release`].
pub struct Taken(Vec<(u32, Place)>);

impl Taken {
    /// The block numbers, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(block, _)| *block)
    }
}

/// The container of one backup.
pub struct Container {
    geometry: Geometry,
    staging: Arc<Slab>,
    log: Option<Log>,
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    index: Index,
    closed: bool,
}

impl Container {
    /// A container with `staging` in memory, and `log` behind it unless it is memory only.
    pub fn new(geometry: Geometry, staging: Arc<Slab>, log: Option<Log>) -> Self {
        let state = Mutex::new(State { index: Index::new(geometry), closed: false });
        Self { geometry, staging, log, state, work: Condvar::new() }
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
            if !is_zero(&memory[..length]) {
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
        for (block, memory) in blocks {
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
        Taken(self.state.lock().index.take(extent))
    }

    /// Copies taken blocks to their places in `buffer`, which holds the extent that begins at block `first`.
    ///
    /// # Errors
    /// `Container` with the offset in the container when a slot cannot be read.
    pub fn read(&self, taken: &Taken, first: u32, buffer: &mut [u8]) -> Result<()> {
        let mut stored = Vec::new();
        for (block, place) in &taken.0 {
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
    pub fn release(&self, taken: Taken) -> Room {
        let mut room = Room::default();
        for (_, place) in taken.0 {
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
                Some(slot) => state.index.stored(block, &memory, slot),
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
