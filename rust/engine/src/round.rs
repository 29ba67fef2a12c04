//! What all parts of one backup share: its gate, container, destination, list, counters, and how it ends.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::container::Container;
use crate::counters::Counters;
use crate::destination::Destination;
use crate::digest::DigestTable;
use crate::error::{Error, ErrorKind};
use crate::events::{Events, What};
use crate::gate::{Gate, Room};
use crate::geometry::{BlockRange, ByteRange, Geometry};
use crate::journal::{Figures, Journal, Phase};
use crate::list::{BlockList, runs};
use crate::mutant::planted;
use crate::state::{Life, State};
use crate::stats::Stats;
use crate::storage::Storage;
use crate::sync::{Arc, ArcSwapOption, AtomicBool, AtomicU64, Instant, Mutex, Ordering};
use crate::waiter::{Outcome, Waiter, wake_all};

/// What happens to a program's write when its copy cannot be made in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The longest time that a write is suspended.
    pub cbw_timeout: Duration,
    /// Fail the write and keep the backup, instead of breaking the backup and letting the write go.
    pub fail_write: bool,
}

/// The instant of the cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Wall-clock time.
    pub at: SystemTime,
    /// For durations.
    pub instant: Instant,
    /// How long writes were held.
    pub held: Duration,
}

/// One backup, from its creation to its end.
pub struct Round {
    pub(crate) geometry: Geometry,
    pub(crate) device: Arc<dyn Storage>,
    pub(crate) gate: Gate<Waiter>,
    pub(crate) container: Container,
    pub(crate) destination: Destination,
    pub(crate) digests: Arc<DigestTable>,
    pub(crate) policy: Policy,
    pub(crate) stats: Stats,
    /// What programs ask of the device.
    pub(crate) programs: Arc<Counters>,
    /// How many of their requests had ended when it was created.
    pub(crate) requests_before: u64,
    pub(crate) journal: Journal,
    /// What another process needs to read the arena; `None` if it dies with this one.
    pub(crate) note: Option<String>,
    pub(crate) events: Arc<Events>,
    pub(crate) life: Arc<Life>,
    pub(crate) list: Mutex<BlockList>,
    /// Number of blocks on the list.
    pub(crate) listed: AtomicU64,
    /// The digest of the backup, once it is known.
    pub(crate) digest: OnceLock<String>,
    pub(crate) cut: Mutex<Option<Cut>>,
    /// Whether the list leaves out the holes of a sparse device.
    pub(crate) sparse: bool,
    /// Before the cut: see `watched`.
    pub(crate) watching: AtomicBool,
    /// Where the driver looks for the backup under way; emptied when this one ends.
    pub(crate) armed: Arc<ArcSwapOption<Round>>,
}

impl Round {
    /// Whether it has neither ended nor been asked to end.
    pub(crate) fn is_active(&self) -> bool {
        self.life.state() == State::Active
    }

    /// Adds blocks that a program is about to write to the list. Only before the cut.
    pub(crate) fn record(&self, blocks: BlockRange) {
        let new = self.gate.map().list(blocks);
        if new > 0 {
            self.listed.fetch_add(u64::from(new), Ordering::Relaxed);
            self.list.lock().insert_range(blocks.blocks());
        }
    }

    /// Takes blocks off the list. Only before the cut.
    pub(crate) fn unlist(&self, blocks: BlockRange) {
        self.listed.fetch_sub(u64::from(self.gate.map().unlist(blocks)), Ordering::Relaxed);
        self.list.lock().remove_range(blocks.blocks());
    }

    /// Finds memory for what programs' writes will count, before the cut.
    pub(crate) fn settle_tables(&self) {
        for run in runs(&self.list.lock()) {
            self.stats.settle(self.geometry.extent_of(run.start)..self.geometry.extent_of(run.end - 1) + 1);
        }
    }

    pub(crate) fn tally_copied_before_write(&self, blocks: BlockRange) {
        let mut rest = blocks;
        while !rest.is_empty() {
            let extent = self.geometry.extent_of(rest.start);
            let end = self.geometry.blocks_of_extent(extent).end.min(rest.end);
            self.stats.copied_before_write(extent, end - rest.start);
            rest.start = end;
        }
    }

    /// Room came back to the container.
    pub(crate) fn freed(&self, room: Room) {
        let (next, drained) = self.gate.freed(room);
        wake_all(next);
        if drained {
            self.events.emit(What::DrainEnds { held_blocks: self.gate.room().used() });
        }
    }

    /// An extent is at the destination, and its digest is set.
    pub(crate) fn delivered(&self, extent: u32) {
        self.journal.deliver(extent);
        self.stats.done_bytes.fetch_add(self.geometry.bytes_of_extent(extent).len(), Ordering::Relaxed);
        let room = self.gate.room();
        self.journal.keep_figures(Figures {
            blocks_swept: self.stats.blocks_swept.load(Ordering::Relaxed),
            blocks_copied_before_write: self.stats.blocks_copied_before_write.load(Ordering::Relaxed),
            written: self.destination.written_bytes(),
            zeroed: self.destination.zero_bytes(),
            peak: u64::from(room.peak()),
            drains: room.drains(),
        });
    }

    /// Makes the step from created to active: from now on another process can go on, if this one dies. In the hold.
    pub(crate) fn activate(&self) -> bool {
        if let Some(cut) = *self.cut.lock() {
            self.journal.cut(cut.at, self.listed.load(Ordering::Relaxed), &self.list.lock());
        }
        let moved = self.life.go(State::Active, None);
        self.announce(moved, State::Active);
        // If it has been cancelled since, the journal says so already.
        moved.is_some() && self.journal.step(Phase::Prepared, Phase::Active)
    }

    /// Makes the same step again, in the place of a dead process. If that was `publishing`, a final name may have been given,
    /// so from the first moment on only the outcome of publishing ends this backup.
    pub(crate) fn begin_again(&self, publishing: bool) {
        let moved = self.life.go(State::Active, None);
        if publishing {
            self.life.begin_publishing();
        }
        self.announce(moved, State::Active);
    }

    /// From now on only the outcome of publishing ends this backup. `false`: it has ended already.
    pub(crate) fn begin_publishing(&self) -> bool {
        let begun = self.life.begin_publishing();
        if begun {
            self.journal.step(Phase::Active, Phase::Publishing);
        }
        begun
    }

    /// Ends the backup with its first cause, lets every write go, and returns whether this call did it. What is left
    /// to clean up is done by the supervisor.
    pub(crate) fn end(&self, to: State, cause: Error) -> bool {
        let moved = self.life.go(to, Some(cause));
        if moved.is_some() {
            self.let_go();
            // Whoever waits for the end waits for the I/O under way too.
            self.destination.holds().interrupt();
            if let Some(log) = self.container.storage().filter(|_| !self.gate.has_reserved()) {
                log.interrupt();
            }
        }
        self.announce(moved, to);
        moved.is_some()
    }

    /// Ends the backup because the user wants it.
    pub(crate) fn cancel(&self) {
        self.end(State::Cancelled, Error::new(ErrorKind::Cancelled, "backup", "cancelled"));
    }

    /// A program is about to write where the container lies: the backup ends, and when this returns no I/O of the
    /// container is under way, so that the write stays.
    pub(crate) fn trespassed(&self, bytes: ByteRange) {
        let reason =
            "a program wrote into the part of the device that holds the container; use one that nothing else uses";
        self.broken_by_write(Error::new(ErrorKind::Trespass, "copy before write", reason).at(bytes.start));
        self.container.seal();
    }

    /// A write is about to go without its copy, and the backup ends. When this returns no other process goes on with it.
    pub(crate) fn broken_by_write(&self, cause: Error) {
        self.end(State::Broken, cause);
        // Whoever ended it before may not have come to this yet.
        self.record_end();
    }

    /// Removes what an unsuccessful backup left at the destination.
    pub(crate) fn abandon(&self) {
        // Whoever ended the backup may still be about to; when this is done, another can be prepared.
        self.let_go();
        // What could not be published has been removed already.
        if !self.destination.is_settled()
            && let Err(error) = self.destination.abandon()
        {
            self.life.also(&error);
        }
    }

    /// Publishing came out like this.
    pub(crate) fn published(&self, outcome: Result<(), Error>) {
        let state = self.life.published(outcome);
        self.let_go();
        self.announce(Some(State::Active), state);
    }

    /// So that no other process goes on with what has ended.
    fn record_end(&self) {
        if !planted("end-is-not-recorded") {
            self.journal.end(self.life.state(), self.life.cause().as_ref());
        }
    }

    fn let_go(&self) {
        // First, because from now on writes go without a copy: a process that went on from here would lose the old bytes.
        self.record_end();
        wake_all(self.gate.close());
        self.container.close();
        // Waits for the container's write in flight, which may hang; by now only writes into its place depend on that.
        if self.gate.has_reserved() {
            self.container.seal();
        }
        self.disarm();
    }

    /// The driver forgets this backup, but not another that was cut while this one was only prepared.
    fn disarm(&self) {
        let armed = self.armed.load();
        if armed.as_ref().is_some_and(|round| std::ptr::eq(Arc::as_ptr(round), self)) {
            self.armed.compare_and_swap(&armed, None);
        }
    }

    fn announce(&self, from: Option<State>, to: State) {
        if let Some(from) = from {
            self.events.emit(What::State { from, to });
        }
    }

    /// The container cannot be written any more. Under `fail-write` the backup goes on without new room.
    pub(crate) fn container_failed(&self, error: Error) {
        if !self.policy.fail_write {
            self.end(State::Broken, error);
            return;
        }
        for waiter in self.gate.refuse(error.errno.unwrap_or(libc::EIO)) {
            waiter.wake(Outcome::AskAgain);
        }
    }

    /// Applies the policy to writes that have been suspended for too long. Returns when to look again.
    pub(crate) fn enforce_deadline(&self) -> Instant {
        let now = Instant::now();
        let timeout = self.policy.cbw_timeout;
        let is_late = |waiter: &Waiter| waiter.since().is_some_and(|since| now.duration_since(since) >= timeout);
        let Some(oldest) = self.gate.earliest(Waiter::since) else { return now + timeout };
        if now.duration_since(oldest) < timeout || planted("deadline-is-ignored") {
            return oldest + timeout;
        }
        if !self.policy.fail_write {
            self.end(State::Broken, self.too_late());
            return now + timeout;
        }
        for waiter in self.gate.expel(is_late) {
            waiter.wake(Outcome::Fail(libc::ETIMEDOUT));
        }
        self.gate.earliest(Waiter::since).unwrap_or(now) + timeout
    }

    fn too_late(&self) -> Error {
        let room = self.gate.room();
        let why =
            if room.draining() { "the container was full and the drain too slow" } else { "a copy took too long" };
        Error {
            kind: ErrorKind::Timeout,
            operation: "copy before write".into(),
            offset: None,
            errno: Some(libc::ETIMEDOUT),
            reason: format!(
                "a write was suspended for {:?}: {why}; use a larger container, a faster destination or a longer \
                 --cbw-timeout",
                self.policy.cbw_timeout
            ),
        }
    }

    /// Whether the cut is still to come and writes are watched, not gated.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::Acquire)
    }

    /// A program is about to write before the cut: into a hole, and that is listed; into the container's place, and
    /// that ends the backup.
    pub(crate) fn watched(&self, bytes: ByteRange) {
        let blocks = self.geometry.blocks_touched(bytes);
        if self.gate.reserves(blocks) {
            self.trespassed(bytes);
        } else if self.sparse && !planted("hole-written-before-the-cut-is-not-listed") {
            self.record(blocks);
        }
    }
}

#[cfg(test)]
mod tests;
