//! Storages in virtual time: requests take as long as the seed says, overtake one another, fail, and are torn by a kill.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Alignment, Storage, Zeroing, check_range};
use blockcow_simulation as simulation;
use simulation::Chance;

use crate::model::CELL;

/// The unit in which a sparse device has holes.
const HOLE: usize = 1024;
/// After so long a storage on another machine is given up by whoever speaks to it.
const SILENCE: Duration = Duration::from_secs(600);

/// Bytes that outlive the processes that use them.
pub struct Disk(Mutex<State>);

struct State {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// How many syncs began, and the last of them whose bytes are in `durable`.
    syncs: u64,
    synced: u64,
    allocated: Vec<bool>,
    chance: Chance,
    /// What is under way: the bytes to change, and the cells in which that has not yet happened.
    under_way: Vec<Change>,
    changes: u64,
    /// The instants at which no change was under way, while somebody wants them.
    instants: Option<Vec<Vec<u8>>>,
}

struct Change {
    id: u64,
    at: usize,
    bytes: Vec<u8>,
    cells: Vec<usize>,
    frees: bool,
}

impl Disk {
    pub fn new(bytes: Vec<u8>, seed: u64) -> Arc<Self> {
        let allocated = bytes.chunks(HOLE).map(|piece| piece.iter().any(|&byte| byte != 0)).collect();
        let (durable, chance) = (bytes.clone(), Chance::new(seed));
        let state = State {
            bytes,
            durable,
            syncs: 0,
            synced: 0,
            allocated,
            chance,
            under_way: Vec::new(),
            changes: 0,
            instants: None,
        };
        Arc::new(Self(Mutex::new(state)))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    /// From now on remembers the instants at which no change is under way.
    pub fn watch(&self) {
        let mut state = self.lock();
        state.instants = Some(Vec::new());
        state.quiet();
    }

    /// The instants since then.
    pub fn instants(&self) -> Vec<Vec<u8>> {
        self.lock().instants.take().unwrap_or_default()
    }

    /// The process was killed: each cell of what was under way is changed or not.
    pub fn kill(&self) {
        let mut state = self.lock();
        for change in std::mem::take(&mut state.under_way) {
            let done = change.cells.iter().copied().filter(|_| state.chance.one_in(2)).collect::<Vec<_>>();
            state.change(&change, &done);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }

    fn begin(&self, at: usize, bytes: Vec<u8>, frees: bool) -> u64 {
        let mut state = self.lock();
        state.changes += 1;
        let (id, cells) = (state.changes, (0..bytes.len().div_ceil(CELL)).collect());
        let mut change = Change { id, at, bytes, cells, frees };
        state.happen(&mut change, false);
        state.under_way.push(change);
        id
    }

    fn end(&self, id: u64, whole: bool) {
        let mut state = self.lock();
        let index = state.under_way.iter().position(|change| change.id == id).expect("it is under way");
        let mut change = state.under_way.remove(index);
        state.happen(&mut change, whole);
        state.quiet();
    }
}

impl State {
    /// A few cells change, or all that are left.
    fn happen(&mut self, change: &mut Change, whole: bool) {
        let part = if whole { 1 } else { self.chance.pick(&[1, 2, u64::MAX]) };
        let chance = &mut self.chance;
        let now: Vec<usize> = change.cells.iter().copied().filter(|_| chance.one_in(part)).collect();
        change.cells.retain(|cell| !now.contains(cell));
        self.change(change, &now);
    }

    fn change(&mut self, change: &Change, cells: &[usize]) {
        for cell in cells {
            let piece = cell * CELL..((cell + 1) * CELL).min(change.bytes.len());
            let place = change.at + piece.start..change.at + piece.end;
            self.allocated[place.start / HOLE] |= !change.frees;
            self.bytes[place].copy_from_slice(&change.bytes[piece]);
        }
    }

    fn quiet(&mut self) {
        if let Some(instants) = self.instants.as_mut().filter(|_| self.under_way.is_empty()) {
            instants.push(self.bytes.clone());
        }
    }
}

/// What kinds of requests a fault concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
}

/// Requests that fail, or that are not answered.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub kind: Kind,
    /// The error number; `None` is silence, to which an interruption or the storage's own patience puts an end.
    pub errno: Option<i32>,
    /// So many pass before.
    pub after: u64,
    /// So many fail.
    pub times: u64,
}

/// How a storage is.
#[derive(Debug, Clone, Default)]
pub struct Nature {
    pub seed: u64,
    /// What a request takes, more or less.
    pub pace: Duration,
    /// One in so many requests takes a hundred times as long; 0 is none.
    pub hiccup: u64,
    pub fault: Option<Fault>,
    /// On another machine: it can be interrupted, and does not end with its process.
    pub far: bool,
    /// Whether it has holes.
    pub sparse: bool,
}

/// A part of a disk, as a process sees it.
pub struct SimulatedStorage {
    disk: Arc<Disk>,
    part: Range<usize>,
    nature: Nature,
    state: Mutex<Figures>,
    interrupted: simulation::Mutex<bool>,
    told: simulation::Condvar,
}

struct Figures {
    chance: Chance,
    fault: Option<Fault>,
    failed: u64,
    slowest: Duration,
}

impl SimulatedStorage {
    pub fn new(disk: Arc<Disk>, part: Range<usize>, nature: Nature) -> Arc<Self> {
        let (chance, fault) = (Chance::new(nature.seed), nature.fault);
        let state = Mutex::new(Figures { chance, fault, failed: 0, slowest: Duration::ZERO });
        let (interrupted, told) = (simulation::Mutex::new(false), simulation::Condvar::new());
        Arc::new(Self { disk, part, nature, state, interrupted, told })
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.figures().failed
    }

    /// The longest that a request took.
    pub fn slowest(&self) -> Duration {
        self.figures().slowest
    }

    fn figures(&self) -> std::sync::MutexGuard<'_, Figures> {
        self.state.lock().expect("nobody panics with it")
    }

    /// How long a request takes, and what it comes to.
    fn draw(&self, kind: Kind) -> (Duration, Option<i32>) {
        let mut figures = self.figures();
        let pace = self.nature.pace.as_nanos() as u64;
        let mut takes = pace / 2 + figures.chance.below(pace.max(1));
        if self.nature.hiccup > 0 && figures.chance.one_in(self.nature.hiccup) {
            takes *= 100;
        }
        let takes = Duration::from_nanos(takes);
        figures.slowest = figures.slowest.max(takes);
        let Some(fault) = figures.fault.as_mut().filter(|fault| fault.kind == kind && fault.times > 0) else {
            return (takes, None);
        };
        if fault.after > 0 {
            fault.after -= 1;
            return (takes, None);
        }
        fault.times -= 1;
        let outcome = fault.errno.map_or((SILENCE, libc::ETIMEDOUT), |errno| (takes, errno));
        figures.failed += 1;
        (outcome.0, Some(outcome.1))
    }

    /// Lets the request take its time.
    fn take_time(&self, kind: Kind, at: u64) -> io::Result<()> {
        let (takes, errno) = self.draw(kind);
        simulation::note(at ^ (kind as u64) << 40 ^ takes.as_nanos() as u64);
        let mut interrupted = self.interrupted.lock();
        let deadline = simulation::Instant::now() + takes;
        while !*interrupted && simulation::Instant::now() < deadline {
            self.told.wait_until(&mut interrupted, deadline);
        }
        let errno = if *interrupted { Some(libc::ECONNABORTED) } else { errno };
        errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn change(&self, range: ByteRange, bytes: Vec<u8>, frees: bool) -> io::Result<()> {
        let id = self.disk.begin(self.part.start + range.start as usize, bytes, frees);
        let outcome = self.take_time(Kind::Write, range.start);
        self.disk.end(id, outcome.is_ok());
        outcome
    }
}

impl Storage for SimulatedStorage {
    fn size(&self) -> u64 {
        self.part.len() as u64
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size(), offset, buf.len() as u64)?;
        let place = self.part.start + range.start as usize..self.part.start + range.end as usize;
        buf.copy_from_slice(&self.disk.lock().bytes[place.clone()]);
        self.take_time(Kind::Read, offset)?;
        let mut state = self.disk.lock();
        for (index, cell) in buf.chunks_mut(CELL).enumerate() {
            if state.chance.one_in(2) {
                let start = place.start + index * CELL;
                cell.copy_from_slice(&state.bytes[start..start + cell.len()]);
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(check_range(self.size(), offset, buf.len() as u64)?, buf.to_vec(), false)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let range = check_range(self.size(), range.start, range.len())?;
        if how.fast && self.figures().chance.one_in(2) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.change(range, vec![0; range.len() as usize], !how.keep_space)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        let range = check_range(self.size(), range.start, range.len())?;
        if self.figures().chance.one_in(2) {
            return self.take_time(Kind::Write, range.start);
        }
        self.change(range, vec![0; range.len() as usize], true)
    }

    fn sync(&self) -> io::Result<()> {
        let (number, bytes) = {
            let mut state = self.disk.lock();
            state.syncs += 1;
            (state.syncs, state.bytes.clone())
        };
        self.take_time(Kind::Sync, 0)?;
        let mut state = self.disk.lock();
        if number > state.synced {
            (state.synced, state.durable) = (number, bytes);
        }
        Ok(())
    }

    fn interrupt(&self) {
        if self.nature.far {
            *self.interrupted.lock() = true;
            self.told.notify_all();
        }
    }

    fn ends_with_its_process(&self) -> bool {
        !self.nature.far
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        let size = self.part.len();
        if !self.nature.sparse || from >= size as u64 {
            return Ok((from < size as u64).then_some(ByteRange { start: from, end: size as u64 }));
        }
        let state = self.disk.lock();
        let is_data = |at: &usize| state.allocated[(self.part.start + at) / HOLE];
        let Some(start) = (from as usize..size).step_by(CELL).find(is_data) else { return Ok(None) };
        let end = (start..size).step_by(CELL).find(|at| !is_data(at)).unwrap_or(size);
        Ok(Some(ByteRange { start: start as u64, end: end as u64 }))
    }
}
