//! A storage that makes chosen calls wait until the test lets them go on or fail: for orders of events that chance would
//! hardly ever give.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Alignment, Operation, Storage, Zeroing};

/// Calls of one kind that lie inside a range.
#[derive(Clone, Copy, PartialEq)]
pub struct Calls(pub Operation, pub ByteRange);

#[derive(Default)]
struct State {
    shut: Vec<Calls>,
    failing: Vec<(Calls, i32)>,
    waiting: u32,
}

pub struct Door {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Door {
    pub fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default(), changed: Condvar::new() })
    }

    /// From now on these calls wait.
    pub fn shut(&self, calls: Calls) {
        self.state.lock().unwrap().shut.push(calls);
    }

    /// Returns when so many calls wait.
    pub fn until_waiting(&self, count: u32) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.waiting < count).unwrap());
    }

    /// Lets these calls go on.
    pub fn open(&self, calls: Calls) {
        self.state.lock().unwrap().shut.retain(|shut| *shut != calls);
        self.changed.notify_all();
    }

    /// Lets one of these calls fail.
    pub fn fail(&self, calls: Calls, errno: i32) {
        self.state.lock().unwrap().failing.push((calls, errno));
        self.open(calls);
    }

    fn pass(&self, operation: Operation, range: ByteRange) -> io::Result<()> {
        let inside = |calls: &Calls| calls.0 == operation && calls.1.start <= range.start && range.end <= calls.1.end;
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.shut.iter().any(inside)).unwrap();
        state.waiting -= 1;
        match state.failing.iter().position(|(calls, _)| inside(calls)) {
            Some(at) => Err(io::Error::from_raw_os_error(state.failing.remove(at).1)),
            None => Ok(()),
        }
    }
}

impl Storage for Door {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.pass(Operation::Read, ByteRange { start: offset, end: offset + buf.len() as u64 })?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.pass(Operation::Write, ByteRange { start: offset, end: offset + buf.len() as u64 })?;
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

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        self.inner.next_data(from)
    }
}
