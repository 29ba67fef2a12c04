//! One state of everything that acts on a gate, small enough to be kept by the million: the gate and the flights taken
//! apart, the model of device, container and destination, and how far each actor is. Makes no step itself.

use super::stores::Stores;
use super::supervisor::{Cutter, Supervisor};
use super::sweeper::Sweeper;
use super::write_behind::WriteBehind;
use super::writer::Writer;
use crate::gate::{Limits, Room};
use crate::geometry::BlockRange;

pub(super) const BLOCKS: usize = 3;
pub(super) const WRITERS: usize = 3;
pub(super) const SWEEPERS: usize = 2;
/// Parked under its number: the writers, then the sweepers.
pub(super) const SLEEPERS: usize = WRITERS + SWEEPERS;

/// What is explored to its end: who there is, and what may happen.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// The blocks of each writer's one write.
    pub writes: Vec<BlockRange>,
    /// What one sweeper does at a time, in order.
    pub extents: Vec<BlockRange>,
    pub sweepers: usize,
    pub limits: Limits,
    /// Whether there is a log behind staging.
    pub log: bool,
    pub fail_write: bool,
    /// Blocks that are zero at first.
    pub zero: u8,
    /// How many reads, writes and renames fail.
    pub faults: u8,
    /// How often somebody has waited for too long.
    pub late: u8,
    pub cancel: bool,
}

/// A state of a backup's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Created,
    Active,
    Publishing,
    Complete,
    Broken,
    Cancelled,
}

/// Who sleeps at the gate, under which block, with which place in line; ticket 0 is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Parked {
    pub block: u8,
    pub ticket: u8,
    pub hungry: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    // The gate.
    pub pending: u8,
    pub claimed: u8,
    pub used: (u8, u8),
    pub draining: bool,
    pub closed: bool,
    pub refusal: bool,
    pub parked: [Parked; SLEEPERS],
    // The flights.
    pub in_flight: u8,
    pub holding: bool,
    pub holder: bool,
    pub held: u8,
    // The rest of the round.
    pub life: Life,
    /// The driver knows of the backup.
    pub armed: bool,
    pub stores: Stores,
    // The actors.
    pub writers: [Writer; WRITERS],
    pub sweepers: [Sweeper; SWEEPERS],
    pub write_behind: WriteBehind,
    pub cutter: Cutter,
    pub supervisor: Supervisor,
    /// Extents that the plan has given out.
    pub chosen: u8,
    pub faults: u8,
    pub late: u8,
    pub cancel: bool,
    /// The canceller has ended the backup and is about to close the gate.
    pub closing: bool,
}

/// Whether a step was taken, or why a promise is broken.
pub(super) type Step = Result<bool, String>;

pub(super) fn run_of(block: usize) -> BlockRange {
    BlockRange::at(block as u32, 1)
}

pub(super) fn mask_of(runs: impl IntoIterator<Item = BlockRange>) -> u8 {
    runs.into_iter().flat_map(|run| run.blocks()).map(|block| 1 << block).sum()
}

/// The runs of a mask, ascending.
pub(super) fn runs_of(mask: u8) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for block in (0..BLOCKS as u32).filter(|block| mask >> block & 1 != 0) {
        match runs.last_mut() {
            Some(last) if last.end == block => last.end += 1,
            _ => runs.push(BlockRange::at(block, 1)),
        }
    }
    runs
}

impl World {
    pub(super) fn new(scope: &Scope) -> Self {
        Self {
            pending: mask_of(scope.extents.iter().copied()),
            claimed: 0,
            used: (0, 0),
            draining: false,
            closed: false,
            refusal: false,
            parked: Default::default(),
            in_flight: 0,
            holding: false,
            holder: false,
            held: 0,
            life: Life::Created,
            armed: false,
            stores: Stores::new(mask_of(scope.extents.iter().copied()), scope.zero),
            writers: std::array::from_fn(|index| Writer::new(index < scope.writes.len())),
            sweepers: Default::default(),
            write_behind: WriteBehind::Waits,
            cutter: Cutter::Holds,
            supervisor: Supervisor::NotStarted,
            chosen: 0,
            faults: scope.faults,
            late: scope.late,
            cancel: scope.cancel,
            closing: false,
        }
    }

    /// Wakes sleepers of the gate, as their waker does right after it has left the gate.
    pub(super) fn wake(&mut self, woken: impl IntoIterator<Item = u8>) -> Result<(), String> {
        for who in woken.into_iter().map(usize::from) {
            let slept = match who.checked_sub(WRITERS) {
                None => self.writers[who].wake(),
                Some(sweeper) => self.sweepers[sweeper].wake(),
            };
            if !slept {
                return Err(format!("sleeper {who} is woken and does not sleep"));
            }
        }
        Ok(())
    }

    /// As `Round::freed`.
    pub(super) fn freed(&mut self, scope: &Scope, room: Room) -> Result<(), String> {
        let next = self.gate(scope, |gate, _| gate.freed(room).0);
        self.wake(next)
    }

    /// As `Life::go`: whether this call ended the backup. Whoever is told so closes it next.
    pub(super) fn end(&mut self, to: Life) -> bool {
        let ended = matches!(self.life, Life::Created | Life::Active);
        if ended {
            self.life = to;
        }
        ended
    }

    /// As `Round::let_go`.
    pub(super) fn close(&mut self, scope: &Scope) -> Result<(), String> {
        let woken = self.gate(scope, |gate, _| gate.close());
        self.wake(woken)?;
        self.stores.closed = true;
        self.armed = false;
        Ok(())
    }

    pub(super) fn is_active(&self) -> bool {
        self.life == Life::Active
    }

    /// Blocks that nobody has claimed and that are not copied.
    pub(super) fn unclaimed(&self) -> u8 {
        self.pending & !self.claimed
    }

    /// Writers that sleep at the gate.
    pub(super) fn asleep(&self) -> Vec<usize> {
        (0..WRITERS).filter(|&writer| self.parked[writer].ticket > 0).collect()
    }

    /// One of the operations that may fail is about to: takes it off those that are left.
    pub(super) fn fault(&mut self) -> bool {
        let left = self.faults > 0;
        self.faults -= u8::from(left);
        left
    }
}
