//! What programs asked of a device, counted: requests, bytes, errors, and how long writes were suspended. Figures of one
//! backup are in `stats`.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// The upper ends of the classes of suspended writes, in microseconds; one more class has all that took longer.
pub const SUSPENDED_US: [u64; 10] =
    [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000, 10_000_000, 60_000_000];

/// One kind of request.
#[derive(Default)]
pub struct Kind {
    begun: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// The counters of one driver since it began.
#[derive(Default)]
pub struct Counters {
    pub(crate) reads: Kind,
    pub(crate) writes: Kind,
    pub(crate) zeroes: Kind,
    pub(crate) discards: Kind,
    pub(crate) flushes: Kind,
    suspended: [AtomicU64; SUSPENDED_US.len() + 1],
    suspended_us: AtomicU64,
}

impl Kind {
    /// Does a request and counts its outcome.
    pub(crate) fn counted<T, E>(&self, bytes: u64, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.begins();
        let outcome = work();
        self.ended(bytes, outcome.is_ok());
        outcome
    }

    /// A request has come; it will end.
    pub(crate) fn begins(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(crate) fn ended(&self, bytes: u64, well: bool) {
        if well {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Counters {
    /// A write was suspended for so long.
    pub(crate) fn suspended(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let class = SUSPENDED_US.partition_point(|&end| end < us);
        self.suspended[class].fetch_add(1, Ordering::Relaxed);
        self.suspended_us.fetch_add(us, Ordering::Relaxed);
    }

    /// How many requests have come, of whatever kind.
    pub(crate) fn begun(&self) -> u64 {
        self.kinds().map(|(_, kind)| kind.begun.load(Ordering::Relaxed)).iter().sum()
    }

    /// How many requests have ended, well or not.
    pub(crate) fn ended(&self) -> u64 {
        let ended = |kind: &Kind| kind.requests.load(Ordering::Relaxed) + kind.errors.load(Ordering::Relaxed);
        self.kinds().map(|(_, kind)| ended(kind)).iter().sum()
    }

    fn kinds(&self) -> [(&'static str, &Kind); 5] {
        [
            ("read", &self.reads),
            ("write", &self.writes),
            ("zero", &self.zeroes),
            ("discard", &self.discards),
            ("flush", &self.flushes),
        ]
    }

    /// All of them by name: `read_requests`, `read_bytes`, `read_errors`, ... for `read`, `write`, `zero`, `discard` and
    /// `flush`; `suspended_us` is the sum, `suspended_le_N` counts writes suspended for at most `N` microseconds.
    pub fn named(&self) -> Vec<(String, u64)> {
        let mut named = Vec::new();
        for (name, kind) in self.kinds() {
            for (what, counter) in [("requests", &kind.requests), ("bytes", &kind.bytes), ("errors", &kind.errors)] {
                named.push((format!("{name}_{what}"), counter.load(Ordering::Relaxed)));
            }
        }
        named.push(("suspended_us".into(), self.suspended_us.load(Ordering::Relaxed)));
        let mut count = 0;
        for (class, counter) in self.suspended.iter().enumerate() {
            count += counter.load(Ordering::Relaxed);
            let end = SUSPENDED_US.get(class).map_or("inf".into(), u64::to_string);
            named.push((format!("suspended_le_{end}"), count));
        }
        named
    }
}
