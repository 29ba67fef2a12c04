//! How long the I/O of an export takes, from what it took lately: whether it is worth a thread of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Handing work to another thread costs about as much as I/O of this length.
const WORTH_A_THREAD: u32 = 20_000;
/// Transfers above this are mostly copying, which says nothing of the others.
const LARGE: u32 = 64 << 10;
/// One sample counts as an eighth.
const WEIGHT: u32 = 8;
/// Nothing is longer, as far as the average is concerned: one stall is forgotten after a few requests.
const CEILING: Duration = Duration::from_millis(1);

/// Requests whose I/O takes about as long as that of others of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    LargeRead,
    Write,
    LargeWrite,
    /// It ends when data are durable.
    Flush,
    Other,
}

impl Kind {
    /// A read of so many bytes.
    pub(super) fn of_read(length: u32) -> Self {
        if length > LARGE { Self::LargeRead } else { Self::Read }
    }

    /// A write of so many bytes.
    pub(super) fn of_write(length: u32) -> Self {
        if length > LARGE { Self::LargeWrite } else { Self::Write }
    }
}

/// Moving averages in nanoseconds, one for each kind of request. Approximate when many threads sample.
#[derive(Default)]
pub(super) struct Pace([AtomicU32; 6]);

impl Pace {
    /// Whether I/O of the kind is so slow that another thread should receive meanwhile. What was never tried is not.
    pub(super) fn is_slow(&self, kind: Kind) -> bool {
        self.0[kind as usize].load(Ordering::Relaxed) > WORTH_A_THREAD
    }

    /// I/O of the kind took so long.
    pub(super) fn took(&self, kind: Kind, time: Duration) {
        let average = &self.0[kind as usize];
        let sample = time.min(CEILING).as_nanos() as u32;
        let before = average.load(Ordering::Relaxed);
        average.store(before - before / WEIGHT + sample / WEIGHT, Ordering::Relaxed);
    }
}
