//! The driver: what a front-end talks to. Stands in front of one device and passes, holds, suspends and releases
//! writes.
//!
//! It does a program's I/O on the program's thread, or on the crew's for requests that were parked.

mod assemble;
mod cut;
mod note;
mod passage;
mod prepare;
mod request;
mod resume;

pub use cut::{Hold, cut_together};
pub use prepare::{ContainerPlace, Listing, Spec};
pub use request::{Completion, Request};
pub use resume::Remains;

use std::io;

use crate::counters::Counters;
use crate::error::{Error, ErrorKind, Result};
use crate::flights::Flights;
use crate::geometry::ByteRange;
use crate::mutant::planted;
use crate::round::Round;
use crate::state::Life;
use crate::storage::{Storage, Zeroing};
use crate::sync::{Arc, ArcSwapOption, Mutex};
use crate::waiter::{Outcome, Parker, Waiter, wake_all};
use passage::{Passage, Passed};
use request::Crew;

/// Stands in front of one device.
pub struct Driver {
    device: Arc<dyn Storage>,
    flights: Flights<Waiter>,
    /// The backup under way, or one that watches writes before its cut.
    armed: Arc<ArcSwapOption<Round>>,
    /// The life of the newest backup that was cut.
    newest: Mutex<Option<Arc<Life>>>,
    /// One hold at a time.
    holder: Mutex<()>,
    crew: Crew,
    counters: Arc<Counters>,
}

impl Driver {
    /// Stands in front of `device`.
    pub fn new(device: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self {
            device,
            flights: Flights::default(),
            armed: Arc::new(ArcSwapOption::empty()),
            newest: Mutex::new(None),
            holder: Mutex::new(()),
            crew: Crew::default(),
            counters: Arc::default(),
        })
    }

    /// Size of the device in bytes.
    pub fn size(&self) -> u64 {
        self.device.size()
    }

    /// What programs have asked of the device so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The driver's state: `passing`, `holding` or `backing-up`.
    pub fn state(&self) -> &'static str {
        if self.flights.holding() {
            return "holding";
        }
        match &*self.armed.load() {
            Some(round) if round.is_active() => "backing-up",
            _ => "passing",
        }
    }

    /// Fills `buffer` from `offset`. Reads are never held or suspended.
    ///
    /// # Errors
    /// `Invalid` outside the device; `Device` with the device's own error.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.counters.reads.counted(buffer.len() as u64, || {
            self.range("read from the device", offset, buffer.len() as u64)?;
            self.device.read_at(buffer, offset).map_err(|error| device_error("read from the device", &error).at(offset))
        })
    }

    /// Writes `data` at `offset`; waits while its blocks are being copied for a backup.
    ///
    /// # Errors
    /// `Invalid` outside the device; `Device` with the device's own error; under the policy `fail-write` also the error
    /// that kept its blocks from being copied.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.counters.writes.counted(data.len() as u64, || {
            let bytes = self.range("write to the device", offset, data.len() as u64)?;
            self.passing(bytes, || self.device.write_at(data, offset), "write to the device")
        })
    }

    /// Makes a range read as zeroes; a write like any other.
    ///
    /// # Errors
    /// As [`Driver::write`].
    pub fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.counters.zeroes.counted(length, || {
            let bytes = self.range("zero on the device", offset, length)?;
            if planted("zero-goes-around-the-gate") {
                return self.device.zero(bytes, Zeroing::ANY).map_err(|e| device_error("zero on the device", &e));
            }
            self.passing(bytes, || self.device.zero(bytes, Zeroing::ANY), "zero on the device")
        })
    }

    /// Discards a range; a write like any other.
    ///
    /// # Errors
    /// As [`Driver::write`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.counters.discards.counted(length, || {
            let bytes = self.range("discard on the device", offset, length)?;
            if planted("discard-goes-around-the-gate") {
                return self.device.discard(bytes).map_err(|e| device_error("discard on the device", &e));
            }
            self.passing(bytes, || self.device.discard(bytes), "discard on the device")
        })
    }

    /// Makes every write that was acknowledged durable.
    ///
    /// # Errors
    /// `Device` with the device's own error.
    pub fn flush(&self) -> Result<()> {
        self.counters.flushes.counted(0, || {
            if planted("flush-is-not-passed-on") { Ok(()) } else { self.device.sync() }
                .map_err(|error| device_error("flush the device", &error))
        })
    }

    /// The first stretch at or after `from` that may hold data; `None`: only a hole follows. A write like any other may
    /// change that at once.
    ///
    /// # Errors
    /// `Device` with the device's own error.
    pub fn next_data(&self, from: u64) -> Result<Option<ByteRange>> {
        self.device.next_data(from).map_err(|error| device_error("look for holes in the device", &error).at(from))
    }

    /// Cancels the backup under way, if any, and waits until no write is in flight. For closing the device.
    pub fn settle(&self) {
        if let Some(round) = self.armed.load_full() {
            round.cancel();
        }
        let newest = self.newest.lock().take();
        if let Some(life) = newest {
            life.wait_for_clean_up(None);
        }
        let _holder = self.holder.lock();
        let parker = Arc::new(Parker::default());
        if !self.flights.hold(|| Waiter::thread(&parker, None)) {
            parker.park();
        }
        wake_all(self.flights.release());
    }

    fn range(&self, operation: &str, offset: u64, length: u64) -> Result<ByteRange> {
        let bytes = ByteRange::at(offset, length)?;
        if bytes.end > self.size() {
            let reason = format!("{length} bytes reach beyond the end of the device of {} bytes", self.size());
            return Err(Error::new(ErrorKind::Invalid, operation, reason).at(offset));
        }
        Ok(bytes)
    }

    /// Does a write on this thread, which sleeps while the write is held or suspended.
    fn passing(&self, bytes: ByteRange, work: impl FnOnce() -> io::Result<()>, operation: &str) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut passage = Passage::new(bytes);
        loop {
            let mut parked = None;
            let passed = self.pass(passage, |passage| {
                let waiter = Waiter::thread(&Parker::of_this_thread(), passage.since());
                parked = Some(passage);
                waiter
            })?;
            match (passed, parked) {
                (Passed::Parked, Some(waiting)) => passage = waiting,
                _ => break,
            }
            if let Outcome::Fail(errno) = Parker::of_this_thread().park() {
                return Err(self.give_up(passage, errno));
            }
        }
        self.fly(work).map_err(|error| device_error(operation, &error).at(bytes.start))
    }

    /// Does the I/O of a write that has passed, and counts it out whatever comes of it.
    fn fly(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        struct Landing<'a>(&'a Driver);
        impl Drop for Landing<'_> {
            fn drop(&mut self) {
                wake_all(self.0.flights.leave());
            }
        }
        let _landing = Landing(self);
        work()
    }
}

fn device_error(operation: &str, error: &io::Error) -> Error {
    Error::io(ErrorKind::Device, operation, error)
}
