//! Errors on purpose: a decorator that makes chosen calls fail as a dying disk would, for tests.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Alignment, Storage, Zeroing};
use crate::geometry::ByteRange;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};

/// The kinds of calls that can be made to fail, and that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `zero`.
    Zero,
    /// `discard`.
    Discard,
    /// `sync`.
    Sync,
}

/// One rule for failing.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The calls concerned.
    pub operation: Operation,
    /// The error number that they fail with.
    pub errno: i32,
    /// Only calls that touch these bytes; `None` is all. A sync touches every byte.
    pub range: Option<ByteRange>,
    /// How many of the calls concerned pass before the first one fails.
    pub after: u64,
    /// How many calls fail; `None` is all from then on.
    pub times: Option<u64>,
}

impl Fault {
    /// Whether this call fails; counts it if it is concerned.
    fn strikes(&mut self, operation: Operation, bytes: Option<ByteRange>) -> bool {
        let elsewhere = matches!((self.range, bytes), (Some(range), Some(bytes)) if !range.overlaps(bytes));
        if self.operation != operation || elsewhere || self.times == Some(0) {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        self.times = self.times.map(|left| left - 1);
        true
    }
}

/// A storage that fails where it is told to. A call that fails leaves the storage beneath untouched.
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    faults: Mutex<Vec<Fault>>,
    calls: [AtomicU64; 5],
}

impl FaultStorage {
    /// `inner`, so far without a fault.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, faults: Mutex::new(Vec::new()), calls: Default::default() }
    }

    /// Adds a fault; the first one added that strikes decides the error.
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.faults.lock().clear();
    }

    /// How many calls of this kind there were, failed ones included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.calls[operation as usize].load(Ordering::Relaxed)
    }

    fn pass(&self, operation: Operation, bytes: Option<ByteRange>) -> io::Result<()> {
        self.calls[operation as usize].fetch_add(1, Ordering::Relaxed);
        match self.faults.lock().iter_mut().find_map(|fault| fault.strikes(operation, bytes).then_some(fault.errno)) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl Storage for FaultStorage {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.pass(Operation::Read, Some(touched(offset, buf)))?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.pass(Operation::Write, Some(touched(offset, buf)))?;
        self.inner.write_at(buf, offset)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.pass(Operation::Zero, Some(range))?;
        self.inner.zero(range, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.pass(Operation::Discard, Some(range))?;
        self.inner.discard(range)
    }

    fn sync(&self) -> io::Result<()> {
        self.pass(Operation::Sync, None)?;
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

fn touched(offset: u64, buf: &[u8]) -> ByteRange {
    ByteRange { start: offset, end: offset.saturating_add(buf.len() as u64) }
}
