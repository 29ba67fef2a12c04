//! A backup as its owner sees it: it is started, watched, waited for, cancelled. Its threads are the supervisor's.

mod kept;
mod status;
mod supervisor;

pub use crate::arena::SWEEPERS;
pub use kept::Kept;
pub use status::{Cell, Status};

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::events::{Event, Events};
use crate::round::Round;
use crate::state::{Life, State};
use crate::sweep::Desk;
use crate::sync::{Arc, Instant, Mutex, RwLock, thread};
use status::Record;

/// What the threads of a backup need beside what its parts share.
pub(crate) struct Outfit {
    pub(crate) desks: Vec<Desk>,
    pub(crate) limit_read: Option<u64>,
    pub(crate) identity: BTreeMap<String, String>,
    /// A dead process had begun to publish: nothing is left to sweep.
    pub(crate) publishing: bool,
}

/// One backup of one device. Dropping it before its end cancels it. After its end it holds neither the device nor
/// memory.
pub struct Backup {
    life: Arc<Life>,
    events: Arc<Events>,
    stage: Arc<RwLock<Stage>>,
    outfit: Mutex<Option<Outfit>>,
}

/// The whole backup while it lasts, and then what is worth remembering of it.
enum Stage {
    UnderWay(Arc<Round>),
    Over(Box<Record>),
}

impl Backup {
    pub(crate) fn new(round: Arc<Round>, outfit: Outfit) -> Self {
        let (life, events) = (round.life.clone(), round.events.clone());
        let stage = Arc::new(RwLock::new(Stage::UnderWay(round)));
        Self { life, events, stage, outfit: Mutex::new(Some(outfit)) }
    }

    pub(crate) fn round(&self) -> Option<Arc<Round>> {
        match &*self.stage.read() {
            Stage::UnderWay(round) => Some(round.clone()),
            Stage::Over(_) => None,
        }
    }

    pub(crate) fn ended(operation: &str) -> Error {
        Error::new(ErrorKind::State, operation, "this backup has ended; start another")
    }

    /// What another process needs to go on with this backup if this one dies. To be kept alive elsewhere before the cut, and
    /// let go after the end.
    ///
    /// # Errors
    /// `State` if it was not prepared to be kept, or has ended; `Invalid` if no descriptors can be had.
    pub fn kept(&self) -> Result<Kept> {
        self.round().map_or_else(|| Err(Self::ended("keep the backup")), |round| Kept::of(&round))
    }

    /// A backup that a dead process published, or that has ended otherwise: nothing is left to start.
    pub(crate) fn over(self) -> Self {
        if let (Some(_), Some(round)) = (self.outfit.lock().take(), self.round()) {
            end(&self.stage, round);
        }
        self
    }

    /// Starts the threads: the cut has been made, and writes were held for so long.
    ///
    /// # Errors
    /// `State` if it has been started before or no thread can be had; then the backup is broken.
    pub fn start(&self, held: Duration) -> Result<()> {
        let (Some(outfit), Some(round)) = (self.outfit.lock().take(), self.round()) else {
            return Err(Self::ended("start the sweep"));
        };
        if let Some(cut) = &mut *round.cut.lock() {
            cut.held = held;
        }
        round.journal.set_held(held);
        let stage = self.stage.clone();
        let supervisor = thread::Builder::new().name("blockcow-backup".into());
        let spawned = supervisor.spawn(move || {
            supervisor::run(&round, outfit);
            end(&stage, round);
        });
        spawned.map(drop).map_err(|error| {
            let error = Error::io(ErrorKind::State, "start the sweep", &error);
            if let Some(round) = self.round() {
                round.end(State::Broken, error.clone());
                end(&self.stage, round);
            }
            error
        })
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// Why it is broken or cancelled: the first cause.
    pub fn cause(&self) -> Option<Error> {
        self.life.cause()
    }

    /// Waits for the end and the cleaning up; `false` if `timeout` came first. I/O that hangs is not waited for long.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.life.wait_for_clean_up(timeout.map(|timeout| Instant::now() + timeout))
    }

    /// Whether it has ended and none of its I/O is under way; a place that its container used may be used by others.
    pub fn at_rest(&self) -> bool {
        self.life.wait(Some(Instant::now()), |_, cleaned_up| cleaned_up)
    }

    /// Ends the backup, unless it has ended or is being published. Every suspended write goes through.
    pub fn cancel(&self) {
        let Some(round) = self.round() else { return };
        round.cancel();
        if self.outfit.lock().take().is_some() {
            end(&self.stage, round);
        }
    }

    /// Waits for events and returns those queued, at most `most`; none at the timeout. `None`: no more will come.
    pub fn next_events(&self, timeout: Duration, most: usize) -> Option<Vec<Event>> {
        self.events.next(timeout, most)
    }

    /// The figures now.
    pub fn status(&self) -> Status {
        match &*self.stage.read() {
            Stage::UnderWay(round) => status::status(round),
            Stage::Over(record) => record.status.clone(),
        }
    }

    /// The blocks in `cells` equal stretches of the device; fewer if it has fewer extents.
    pub fn block_map(&self, cells: u32) -> Vec<Cell> {
        match &*self.stage.read() {
            Stage::UnderWay(round) => status::block_map(round, cells),
            Stage::Over(record) => record.block_map(cells),
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The backup has ended and its threads too: cleans up, keeps the record, lets go of the rest, and tells those who
/// wait.
fn end(stage: &RwLock<Stage>, round: Arc<Round>) {
    round.abandon();
    let (life, events) = (round.life.clone(), round.events.clone());
    let record = Record::of(&round);
    drop(round);
    *stage.write() = Stage::Over(Box::new(record));
    events.close();
    life.cleaned_up();
}
