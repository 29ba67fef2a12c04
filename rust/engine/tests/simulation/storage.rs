//! Storages in virtual time: requests take as long as the seed says, overtake one another, fail, and are torn by a kill.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Alignment, Storage, Zeroing, check_range};
use blockcow_simulation as simulation;
use simulation::Chance;

use crate::disk::Disk;

/// After so long a storage on another machine is given up by whoever speaks to it.
const SILENCE: Duration = Duration::from_secs(600);

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
        let start = self.part.start + range.start as usize;
        self.disk.read(buf, start, 1);
        self.take_time(Kind::Read, offset)?;
        self.disk.read(buf, start, 2);
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
        let begun = self.disk.begin_sync();
        self.take_time(Kind::Sync, 0)?;
        self.disk.end_sync(begun);
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
        let Some(found) = self.disk.next_data(self.part.start + from as usize..self.part.end) else { return Ok(None) };
        let inside = |at: usize| (at - self.part.start) as u64;
        Ok(Some(ByteRange { start: inside(found.start), end: inside(found.end) }))
    }
}
