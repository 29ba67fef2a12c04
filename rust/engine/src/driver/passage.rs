//! A write's way through the driver: counted in, admitted by the gate, copying what it must, or parked.

use super::Driver;
use crate::copy::copy_before_write;
use crate::counters::Counters;
use crate::error::{Error, ErrorKind, Result};
use crate::events::What;
use crate::gate::{Decision, Ticket};
use crate::geometry::{BlockRange, ByteRange};
use crate::mutant::planted;
use crate::round::Round;
use crate::sync::{Arc, Instant};
use crate::waiter::{Waiter, wake_all};

/// How far a write has come. Whoever holds it may take it further.
#[derive(Clone)]
pub(super) struct Passage {
    bytes: ByteRange,
    in_flight: bool,
    ticket: Option<Ticket>,
    suspension: Option<Suspension>,
}

/// Since when a write is suspended, and for which backup.
#[derive(Clone)]
struct Suspension {
    since: Instant,
    round: Arc<Round>,
}

/// Where an attempt to pass ended.
pub(super) enum Passed {
    /// The write is in flight: do its I/O, then count it out.
    Go,
    /// Its waiter is stored, and the passage with it.
    Parked,
}

impl Passage {
    pub(super) fn new(bytes: ByteRange) -> Self {
        Self { bytes, in_flight: false, ticket: None, suspension: None }
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.suspension.as_ref().map(|suspension| suspension.since)
    }

    fn suspend(&mut self, round: &Arc<Round>, blocks: BlockRange) {
        if self.suspension.is_none() {
            self.suspension = Some(Suspension { since: Instant::now(), round: round.clone() });
            round.events.emit(What::Suspended { first_block: blocks.start, blocks: blocks.len() });
        }
    }

    fn end_suspension(self, counters: &Counters) {
        if let Some(suspension) = self.suspension {
            let lasted = suspension.since.elapsed();
            suspension.round.stats.suspended(lasted);
            counters.suspended(lasted);
        }
    }
}

impl Driver {
    /// Takes a write as far as it gets without waiting. `park` makes a waiter of it when it must wait; from then on
    /// somebody else may already be taking it further.
    ///
    /// # Errors
    /// Under the policy `fail-write`: why a block could not be copied. The write has been counted out.
    pub(super) fn pass(&self, mut passage: Passage, mut park: impl FnMut(Passage) -> Waiter) -> Result<Passed> {
        if !passage.in_flight {
            if !self.flights.enter(|| park(passage.clone())) {
                return Ok(Passed::Parked);
            }
            passage.in_flight = true;
        }
        loop {
            let armed = self.armed.load();
            let Some(round) = &*armed else { break };
            let blocks = round.geometry.blocks_touched(passage.bytes);
            if round.is_watching() {
                round.watched(passage.bytes);
                break;
            }
            let admission = round.gate.admit(blocks, passage.ticket, |ticket| {
                passage.suspend(round, blocks);
                passage.ticket = Some(ticket);
                park(passage.clone())
            });
            wake_all(admission.wake);
            match admission.decision {
                Decision::Go => break,
                Decision::Copy(runs) => {
                    passage.suspend(round, blocks);
                    if let Err(error) = copy_before_write(round, &runs) {
                        self.copy_failed(round, error)?;
                        break;
                    }
                }
                Decision::Wait { drain_begins } => {
                    if drain_begins {
                        round.events.emit(What::DrainBegins { held_blocks: round.gate.room().used() });
                        round.life.nudge();
                    }
                    return Ok(Passed::Parked);
                }
                Decision::Refuse(errno) => return Err(self.give_up(passage, errno)),
                Decision::Trespass => {
                    round.trespassed(passage.bytes);
                    break;
                }
            }
        }
        passage.end_suspension(&self.counters);
        Ok(Passed::Go)
    }

    /// Copying before a write failed: the policy decides between the write, which then goes uncopied, and the backup.
    fn copy_failed(&self, round: &Round, error: Error) -> Result<()> {
        let fail_write = round.policy.fail_write || planted("break-backup-fails-the-write");
        if !fail_write || planted("fail-write-breaks-the-backup") {
            round.broken_by_write(error);
            return Ok(());
        }
        wake_all(self.flights.leave());
        Err(error)
    }

    /// A suspended write fails, as the policy `fail-write` says.
    pub(super) fn give_up(&self, passage: Passage, errno: i32) -> Error {
        let bytes = passage.bytes;
        passage.end_suspension(&self.counters);
        wake_all(self.flights.leave());
        let source = std::io::Error::from_raw_os_error(errno);
        let kind = if errno == libc::ETIMEDOUT { ErrorKind::Timeout } else { ErrorKind::Container };
        Error::io(kind, "copy before write", &source)
            .at(bytes.start)
            .hint("its old blocks could not be copied for the backup, and the policy is fail-write")
    }
}
