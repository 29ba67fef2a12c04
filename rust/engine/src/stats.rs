//! Counters of one backup, the latency of its suspended writes, and the tally of each extent for the block map.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::arena::Words;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Latencies above this are counted as this.
const LONGEST_US: u64 = 3600 * 1_000_000;

/// Percentiles of a latency in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Longest.
    pub max: u64,
}

/// The counters of one backup.
pub struct Stats {
    suspended: Mutex<Histogram<u64>>,
    /// Blocks that the sweep copied straight from the device.
    pub blocks_swept: AtomicU64,
    /// Blocks that were copied before a write.
    pub blocks_copied_before_write: AtomicU64,
    /// Bytes of the device with which the sweep is done, holes and blocks off the list included.
    pub done_bytes: AtomicU64,
    tally: Words,
}

impl Stats {
    /// `tally` has one word for each extent.
    pub fn new(tally: Words) -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, 2).expect("constant bounds are valid");
        Self {
            suspended: Mutex::new(histogram),
            blocks_swept: AtomicU64::new(0),
            blocks_copied_before_write: AtomicU64::new(0),
            done_bytes: AtomicU64::new(0),
            tally,
        }
    }

    /// Finds memory for the tally of these extents, of which nothing has been counted yet.
    pub fn settle(&self, extents: std::ops::Range<u32>) {
        for word in &self.tally[extents.start as usize..extents.end as usize] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// A suspended write went on after `duration`.
    pub fn suspended(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.suspended.lock().saturating_record(us.clamp(1, LONGEST_US));
    }

    /// How many writes were suspended and have gone on, and for how long.
    pub fn suspensions(&self) -> (u64, Percentiles) {
        let histogram = self.suspended.lock();
        let at = |quantile| histogram.value_at_quantile(quantile);
        (histogram.len(), Percentiles { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: histogram.max() })
    }

    /// The sweep copied blocks of an extent.
    pub fn swept(&self, extent: u32, blocks: u32) {
        self.blocks_swept.fetch_add(u64::from(blocks), Ordering::Relaxed);
        self.tally[extent as usize].fetch_add(u64::from(blocks), Ordering::Relaxed);
    }

    /// Blocks of an extent were copied before a write.
    pub fn copied_before_write(&self, extent: u32, blocks: u32) {
        self.blocks_copied_before_write.fetch_add(u64::from(blocks), Ordering::Relaxed);
        self.tally[extent as usize].fetch_add(u64::from(blocks) << 32, Ordering::Relaxed);
    }

    /// Blocks of the extents that were swept, and that were copied before a write.
    pub fn tally(&self, extents: std::ops::Range<u32>) -> (u64, u64) {
        let words = &self.tally[extents.start as usize..extents.end as usize];
        words
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .fold((0, 0), |(swept, before), word| (swept + (word & u64::from(u32::MAX)), before + (word >> 32)))
    }
}
