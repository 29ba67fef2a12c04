//! A slow or dead disk on purpose: a decorator that limits the rate of writes, or holds them up altogether.
//!
//! For tests and benchmarks; what limits a backup for its user's sake is the sweep's own affair.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{Alignment, Storage, Zeroing};
use crate::geometry::ByteRange;
use crate::sync::{Arc, Condvar, Instant, Mutex};

/// A storage that takes writes no faster than told. Reads, zeroes, discards and syncs pass at full speed.
pub struct ThrottledStorage {
    inner: Arc<dyn Storage>,
    bytes_per_second: u64,
    state: Mutex<State>,
    resumed: Condvar,
}

struct State {
    stalled: bool,
    /// When the writes that were let in so far are done at the rate that is allowed.
    free_at: Instant,
}

impl ThrottledStorage {
    /// `inner` with writes at `write_bytes_per_second` in all; `u64::MAX` is no limit.
    ///
    /// # Panics
    /// If the rate is 0; `stall` says that.
    pub fn new(inner: Arc<dyn Storage>, write_bytes_per_second: u64) -> Self {
        assert!(write_bytes_per_second > 0, "a rate of 0 never ends; stall() instead");
        let state = State { stalled: false, free_at: Instant::now() };
        Self { inner, bytes_per_second: write_bytes_per_second, state: Mutex::new(state), resumed: Condvar::new() }
    }

    /// Makes writes that have not gone through yet, and all later ones, wait for `resume`.
    pub fn stall(&self) {
        self.state.lock().stalled = true;
    }

    /// Lets writes go on.
    pub fn resume(&self) {
        self.state.lock().stalled = false;
        self.resumed.notify_all();
    }

    /// Waits for this write's turn: its bytes take their time at the rate, after those of the writes before it.
    fn admit(&self, bytes: u64) {
        let mut state = self.state.lock();
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let turn = state.free_at.max(Instant::now()) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        state.free_at = turn;
        while state.stalled || Instant::now() < turn {
            if state.stalled {
                self.resumed.wait(&mut state);
            } else {
                self.resumed.wait_until(&mut state, turn);
            }
        }
    }
}

impl Storage for ThrottledStorage {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.admit(buf.len() as u64);
        self.inner.write_at(buf, offset)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.inner.zero(range, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.inner.discard(range)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn handles(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.handles()
    }

    fn interrupt(&self) {
        self.inner.interrupt();
    }

    fn ends_with_its_process(&self) -> bool {
        self.inner.ends_with_its_process()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        self.inner.next_data(from)
    }
}
