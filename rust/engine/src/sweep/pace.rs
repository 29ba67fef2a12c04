//! The limit on the rate at which the sweep reads the device, `--limit-read`. Drains are not held up by it.

use std::time::Duration;

use crate::round::Round;
use crate::state::State;
use crate::sync::{Instant, Mutex};

/// A rate in bytes a second, shared by all sweepers.
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// When the bytes that were let through so far are paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// At most so many bytes a second; `None` has no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be read, a drain begins, or the backup ends.
    pub fn wait(&self, bytes: u64, round: &Round) {
        let Some(rate) = self.bytes_per_second else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let turn = {
            let mut paid = self.paid.lock();
            let turn = (*paid).max(Instant::now());
            *paid = turn + cost;
            turn
        };
        round.life.wait(Some(turn), |state, _| state != State::Active || round.gate.room().draining());
    }
}
