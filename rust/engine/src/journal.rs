//! How far a backup has come, in its arena: phase, cut, list, delivered extents, figures. What another process reads first.
//!
//! Stores only; when each is due is said where they are called. No process reads these words while another writes them, so
//! the order of a thread's stores is all that counts, and each store that vouches for others is a read-modify-write that no
//! compiler moves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::arena::{Bytes, Region, Words};
use crate::error::{Error, ErrorKind, Result};
use crate::list::BlockList;
use crate::state::State;
use crate::sync::{Mutex, Ordering};

const MAGIC: u64 = u64::from_le_bytes(*b"blockcow");
/// Changes whenever the meaning of a byte in the arena does.
const VERSION: u64 = 1;

/// The words of the header.
mod word {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const NOTE: usize = 2;
    pub const PHASE: usize = 6;
    pub const CUT_AT: usize = 7;
    pub const HELD: usize = 8;
    pub const LISTED: usize = 9;
    pub const LIST_BYTES: usize = 10;
    pub const RESTARTS: usize = 11;
    pub const FIGURES: usize = 12;
}

/// What a process that goes on has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The cut has not been made.
    Prepared = 0,
    /// The cut has been made.
    Active = 1,
    /// Every extent is at the destination, and it may bear its names.
    Publishing = 2,
    /// It has ended, published.
    Complete = 3,
    /// It has ended by a failure; writes go without being copied.
    Broken = 4,
    /// It has ended by the user's wish; as above.
    Cancelled = 5,
}

const PHASES: [Phase; 6] =
    [Phase::Prepared, Phase::Active, Phase::Publishing, Phase::Complete, Phase::Broken, Phase::Cancelled];

/// Figures that a restart would lose. They are stored when an extent is delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Blocks that the sweep copied straight from the device.
    pub blocks_swept: u64,
    /// Blocks that were copied before a write.
    pub blocks_copied_before_write: u64,
    /// Bytes written to the destination.
    pub written: u64,
    /// Bytes found zero, or off the list.
    pub zeroed: u64,
    /// The most blocks that the container held.
    pub peak: u64,
    /// How often the selected capacity was reached.
    pub drains: u64,
}

/// The journal of one backup.
pub struct Journal {
    header: Words,
    /// Set: the extent is at the destination, and its digest in the table.
    delivered: Words,
    list: Mutex<Bytes>,
}

impl Journal {
    /// A journal over the regions of an arena, zeroed or as a dead process left them.
    pub fn new(header: Region, delivered: Region, list: Region) -> Self {
        let (header, delivered) = (Words::new(header), Words::new(delivered));
        Self { header, delivered, list: Mutex::new(Bytes::new(list)) }
    }

    /// The arena's memfd, if another process can go on with it.
    pub fn file(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.header.file()
    }

    /// Says which note describes this arena. Once, before anything else.
    pub fn stamp(&self, note: &str) {
        for (index, part) in fingerprint(note).into_iter().enumerate() {
            self.set(word::NOTE + index, part);
        }
        self.set(word::VERSION, VERSION);
        self.set(word::MAGIC, MAGIC);
    }

    /// Whether this is an arena of this version, and the one that `note` describes.
    ///
    /// # Errors
    /// `State` with what is wrong.
    pub fn check(&self, note: &str) -> Result<()> {
        let wrong = |reason: String| Err(Error::new(ErrorKind::State, "go on with the backup", reason));
        if self.get(word::MAGIC) != MAGIC {
            return wrong("the memory that was kept is no arena of a backup".into());
        }
        if self.get(word::VERSION) != VERSION {
            let found = self.get(word::VERSION);
            return wrong(format!("its arena has layout {found}, and this version knows {VERSION}; make it again"));
        }
        if (0..4).any(|index| self.get(word::NOTE + index) != fingerprint(note)[index]) {
            return wrong("the note that was kept is another backup's".into());
        }
        Ok(())
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        PHASES.get(self.get(word::PHASE) as usize).copied().unwrap_or(Phase::Broken)
    }

    /// Records the cut, in the hold; `step` to active makes it count.
    pub fn cut(&self, at: SystemTime, listed: u64, list: &BlockList) {
        self.set(word::CUT_AT, at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64));
        self.set(word::LISTED, listed);
        let mut bytes = self.list.lock();
        if bytes.is_empty() {
            return;
        }
        let mut list = list.clone();
        list.optimize();
        let length = list.serialized_size();
        if list.serialize_into(&mut bytes[..length]).is_ok() {
            self.set(word::LIST_BYTES, length as u64);
        }
    }

    /// The instant of the cut.
    pub fn cut_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.get(word::CUT_AT))
    }

    /// The number of blocks on the list, and the list.
    ///
    /// # Errors
    /// `State` if it is not whole.
    pub fn list(&self) -> Result<(u64, BlockList)> {
        let length = self.get(word::LIST_BYTES) as usize;
        let (listed, bytes) = (self.get(word::LISTED), self.list.lock());
        let list = bytes.get(..length).and_then(|bytes| BlockList::deserialize_from(bytes).ok());
        list.filter(|list| list.len() == listed).map(|list| (listed, list)).ok_or_else(|| {
            Error::new(ErrorKind::State, "go on with the backup", "the list of its blocks is not in the arena")
        })
    }

    /// For how long the cut held writes.
    pub fn set_held(&self, held: Duration) {
        self.set(word::HELD, held.as_nanos() as u64);
    }

    /// See `set_held`.
    pub fn held(&self) -> Duration {
        Duration::from_nanos(self.get(word::HELD))
    }

    /// Goes from one phase to the next; `false` if it is in another.
    pub fn step(&self, from: Phase, to: Phase) -> bool {
        let (from, to) = (from as u64, to as u64);
        self.header[word::PHASE].compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The backup has ended: nothing here is to be relied on any more. Before any write goes that is not copied.
    pub fn end(&self, state: State) {
        let phase = match state {
            State::Created | State::Active => return,
            State::Complete => Phase::Complete,
            State::Broken => Phase::Broken,
            State::Cancelled => Phase::Cancelled,
        };
        self.header[word::PHASE].swap(phase as u64, Ordering::AcqRel);
    }

    /// An extent is at the destination and its digest is set. Before anything that it was made from is let go.
    pub fn deliver(&self, extent: u32) {
        self.delivered[extent as usize / 64].fetch_or(1 << (extent % 64), Ordering::AcqRel);
    }

    /// Whether an extent is at the destination.
    pub fn is_delivered(&self, extent: u32) -> bool {
        self.delivered[extent as usize / 64].load(Ordering::Acquire) & (1 << (extent % 64)) != 0
    }

    /// Keeps the figures. Several threads may; the largest stay.
    pub fn keep_figures(&self, figures: Figures) {
        let Figures { blocks_swept, blocks_copied_before_write, written, zeroed, peak, drains } = figures;
        let values = [blocks_swept, blocks_copied_before_write, written, zeroed, peak, drains];
        for (index, value) in values.into_iter().enumerate() {
            self.header[word::FIGURES + index].fetch_max(value, Ordering::Relaxed);
        }
    }

    /// The figures that were kept.
    pub fn figures(&self) -> Figures {
        let [blocks_swept, blocks_copied_before_write, written, zeroed, peak, drains] =
            std::array::from_fn(|index| self.get(word::FIGURES + index));
        Figures { blocks_swept, blocks_copied_before_write, written, zeroed, peak, drains }
    }

    /// Another process goes on from here.
    pub fn restarted(&self) {
        self.header[word::RESTARTS].fetch_add(1, Ordering::Relaxed);
    }

    /// How often a process died and another went on.
    pub fn restarts(&self) -> u64 {
        self.get(word::RESTARTS)
    }

    fn get(&self, word: usize) -> u64 {
        self.header[word].load(Ordering::Acquire)
    }

    fn set(&self, word: usize, value: u64) {
        self.header[word].swap(value, Ordering::AcqRel);
    }
}

fn fingerprint(note: &str) -> [u64; 4] {
    let digest = blake3::hash(note.as_bytes());
    let mut parts =
        digest.as_bytes().chunks(8).map(|part| part.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::regions;

    fn journal() -> Journal {
        let mut memory = regions(&[4096, 16, 1 << 16]).unwrap().into_iter();
        let mut next = || memory.next().unwrap();
        Journal::new(next(), next(), next())
    }

    #[test]
    fn only_the_arena_that_the_note_describes_is_gone_on_with() {
        let journal = journal();
        assert!(journal.check("a").is_err(), "memory without a stamp");
        journal.stamp("a");
        journal.check("a").unwrap();
        assert!(journal.check("b").is_err());
        journal.set(word::VERSION, VERSION + 1);
        assert!(journal.check("a").unwrap_err().reason.contains("layout"));
    }

    #[test]
    fn the_cut_and_the_list_are_read_as_they_were_stored() {
        let journal = journal();
        assert!(journal.step(Phase::Prepared, Phase::Active));
        assert!(!journal.step(Phase::Prepared, Phase::Active), "once");
        let mut list = BlockList::new();
        list.insert_range(5..70_000);
        list.insert(80_000);
        let at = UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
        journal.cut(at, list.len(), &list);
        assert_eq!((journal.cut_at(), journal.list().unwrap()), (at, (list.len(), list)));
        journal.set(word::LISTED, 3);
        assert!(journal.list().is_err(), "a list that is not whole is no list");
    }

    #[test]
    fn the_end_stays_the_end() {
        let journal = journal();
        journal.end(State::Cancelled);
        assert!(!journal.step(Phase::Prepared, Phase::Active));
        journal.end(State::Active);
        assert_eq!(journal.phase(), Phase::Cancelled);
    }
}
