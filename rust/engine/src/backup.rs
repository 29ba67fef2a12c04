//! A backup: what it is made from, its threads, its end, and what can be asked of it.

mod status;

pub use status::{Cell, Status};

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use crate::buffer::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::list::BlockList;
use crate::manifest::{Manifest, Particulars};
use crate::round::Round;
use crate::state::State;
use crate::sweep::{Pace, Plan, Sweeper};
use crate::sync::{Arc, AtomicU32, Mutex, Ordering};

/// How many extents are on their way from the device to the destination at a time.
pub const SWEEPERS: usize = 2;
/// How long `wait` waits, after the end of a broken backup, for I/O that does not come back.
const CLEAN_UP_PATIENCE: Duration = Duration::from_secs(5);

/// What a backup needs beside what its parts share.
pub(crate) struct Outfit {
    pub(crate) buffers: Vec<AlignedBuf>,
    pub(crate) limit_read: Option<u64>,
    pub(crate) identity: BTreeMap<String, String>,
}

/// One backup of one device. Dropping it before its end cancels it.
pub struct Backup {
    round: Arc<Round>,
    outfit: Mutex<Option<Outfit>>,
}

impl Backup {
    pub(crate) fn new(round: Arc<Round>, outfit: Outfit) -> Self {
        Self { round, outfit: Mutex::new(Some(outfit)) }
    }

    pub(crate) fn round(&self) -> &Arc<Round> {
        &self.round
    }

    /// Starts the threads; the cut has been made.
    pub(crate) fn start(&self) -> Result<()> {
        let Some(outfit) = self.outfit.lock().take() else {
            return Err(Error::new(ErrorKind::State, "make the cut", "this backup has been started before"));
        };
        let round = self.round.clone();
        let supervisor = thread::Builder::new().name("blockcow-backup".into());
        supervisor.spawn(move || supervise(&round, outfit)).map(drop).map_err(|error| {
            let error = Error::io(ErrorKind::State, "start the sweep", &error);
            self.round.end(State::Broken, error.clone());
            self.round.clean_up();
            error
        })
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.round.life.state()
    }

    /// Why it is broken or cancelled: the first cause.
    pub fn cause(&self) -> Option<Error> {
        self.round.life.cause()
    }

    /// Waits for the end and the cleaning up; `false` if `timeout` came first. I/O that hangs is not waited for long.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let life = &self.round.life;
        if !life.wait(deadline, |state, _| state.is_end()) {
            return false;
        }
        let patience = Instant::now() + CLEAN_UP_PATIENCE;
        life.wait(Some(deadline.map_or(patience, |deadline| deadline.min(patience))), |_, cleaned_up| cleaned_up);
        true
    }

    /// Ends the backup, unless it has ended or is being published. Every suspended write goes through.
    pub fn cancel(&self) {
        self.round.cancel();
    }

    /// Waits for events and returns those queued, at most `most`; none at the timeout. `None`: no more will come.
    pub fn next_events(&self, timeout: Duration, most: usize) -> Option<Vec<Event>> {
        self.round.events.next(timeout, most)
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Runs the backup's threads to their end, then publishes or cleans up.
fn supervise(round: &Round, outfit: Outfit) {
    guarded(round, || {
        sweep_all(round, outfit.buffers, outfit.limit_read);
        Ok(())
    });
    if round.life.begin_publishing() {
        round.published(without_panic(|| publish(round, outfit.identity)));
    }
    round.clean_up();
}

/// Returns when every extent is at the destination, or the backup has ended and its threads too.
fn sweep_all(round: &Round, buffers: Vec<AlignedBuf>, limit_read: Option<u64>) {
    let plan = Plan::new(round.geometry.extent_count());
    let pace = Pace::new(limit_read);
    let sweeping = AtomicU32::new(buffers.len() as u32);
    thread::scope(|scope| {
        for buffer in buffers {
            let (plan, pace, sweeping) = (&plan, &pace, &sweeping);
            scope.spawn(move || {
                guarded(round, || Sweeper::new(round, plan, pace, buffer).run());
                sweeping.fetch_sub(1, Ordering::AcqRel);
                round.life.nudge();
            });
        }
        scope.spawn(|| guarded(round, || write_behind(round)));
        let over = |state: State, _| state != State::Active || sweeping.load(Ordering::Acquire) == 0;
        while !round.life.wait(Some(round.enforce_deadline()), over) {}
        round.container.close();
    });
}

/// Runs a thread's work; an error or a panic breaks the backup, never the program.
fn guarded(round: &Round, work: impl FnOnce() -> Result<()>) {
    if let Err(error) = without_panic(work) {
        round.end(State::Broken, error);
    }
}

fn without_panic(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::State, "backup", "an internal error, please report it with the lines above"))
    })
}

fn write_behind(round: &Round) -> Result<()> {
    while let Some((room, outcome)) = round.container.write_behind() {
        round.freed(room);
        if let Err(error) = outcome {
            round.container_failed(error);
            break;
        }
    }
    Ok(())
}

fn publish(round: &Round, identity: BTreeMap<String, String>) -> Result<()> {
    let list: BlockList = std::mem::take(&mut round.list.lock());
    let figures = status::figures(round);
    let cut_at = status::cut_at(round).unwrap_or_default();
    let manifest = Manifest::new(round.geometry, Particulars { cut_at, identity, figures }, list, round.digests.clone())?;
    round.destination.publish(&manifest)?;
    let _ = round.digest.set(manifest.header().digest.clone());
    Ok(())
}
