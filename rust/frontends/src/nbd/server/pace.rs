//! How long the I/O of an export takes, from what it took lately: whether it is worth a thread of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::request::Request;
use crate::nbd::protocol::command;

/// Handing work to another thread costs about as much as I/O of this length.
const WORTH_A_THREAD: u32 = 20_000;
/// Transfers above this are mostly copying, which says nothing of the others.
const LARGE: u32 = 64 << 10;
/// One sample counts as an eighth.
const WEIGHT: u32 = 8;
/// Nothing is longer, as far as the average is concerned: one stall is forgotten after a few requests.
const CEILING: Duration = Duration::from_millis(1);

/// Moving averages in nanoseconds, one for each kind of request. Approximate when many threads sample.
#[derive(Default)]
pub(super) struct Pace([AtomicU32; 6]);

impl Pace {
    /// Whether the request's I/O is so slow that another thread should receive meanwhile. What was never tried is not.
    pub(super) fn is_slow(&self, request: &Request) -> bool {
        self.0[kind(request)].load(Ordering::Relaxed) > WORTH_A_THREAD
    }

    /// The I/O of such a request took so long.
    pub(super) fn took(&self, request: &Request, time: Duration) {
        let average = &self.0[kind(request)];
        let sample = time.min(CEILING).as_nanos() as u32;
        let before = average.load(Ordering::Relaxed);
        average.store(before - before / WEIGHT + sample / WEIGHT, Ordering::Relaxed);
    }
}

fn kind(request: &Request) -> usize {
    match request.command {
        _ if request.durable() => 5,
        command::FLUSH => 5,
        command::READ => usize::from(request.length > LARGE),
        command::WRITE => 2 + usize::from(request.length > LARGE),
        _ => 4,
    }
}
