//! One state of the explored system: the gate, taken apart so that it can be copied and compared, and what stands around it.

use super::actors::{Actor, Role};
use crate::copied::CopiedMap;
use crate::gate::queue::{Queue, Ticket};
use crate::gate::{Gate, Limits, Reserved};
use crate::geometry::BlockRange;
use crate::sync::AtomicU64;

/// A set of blocks, a bit each.
pub(super) type Blocks = u8;

/// The gate under test. A waiter is the number of an actor.
pub(super) type SmallGate = Gate<usize, Vec<AtomicU64>>;

/// What is explored: how large, who writes where, and what may go wrong.
pub(super) struct Scope {
    pub(super) blocks: u32,
    /// Blocks of an extent.
    pub(super) extent: u32,
    /// One writer each, which writes once.
    pub(super) writes: Vec<BlockRange>,
    pub(super) limits: Limits,
    pub(super) fail_write: bool,
    /// Blocks whose old content is zero: they take no room.
    pub(super) zeroes: Blocks,
    /// How many of these may happen: a failed read or write, a passed deadline, a cancel.
    pub(super) faults: u8,
}

impl Scope {
    pub(super) fn extents(&self) -> u32 {
        self.blocks.div_ceil(self.extent)
    }

    pub(super) fn blocks_of(&self, extent: u32) -> BlockRange {
        BlockRange { start: extent * self.extent, end: ((extent + 1) * self.extent).min(self.blocks) }
    }
}

/// The bits of a run.
pub(super) fn bits(run: BlockRange) -> Blocks {
    run.blocks().fold(0, |bits, block| bits | 1 << block)
}

/// How far the backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Active,
    Complete,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    queue: Queue<usize>,
    pending: Blocks,
    claimed: Blocks,
    pub(super) actors: Vec<Actor>,
    pub(super) life: Life,
    /// The end is in the journal: no other process goes on.
    pub(super) recorded: bool,
    /// Old bytes that are where the backup will find them. What the map says must never be ahead of this.
    pub(super) safe: Blocks,
    /// Blocks in staging, and those in slots; what a sweeper has taken is in neither.
    pub(super) staged: Blocks,
    pub(super) stored: Blocks,
    /// Extents that a sweeper has taken up, and those that are at the destination.
    pub(super) planned: u8,
    pub(super) delivered: u8,
    pub(super) faults: u8,
    pub(super) container_failed: bool,
}

impl World {
    pub(super) fn new(scope: &Scope) -> Self {
        let writers = scope.writes.iter().map(|&write| Actor::new(Role::Writer(write)));
        let others = [Role::Sweeper, Role::WriteBehind, Role::Supervisor, Role::User].map(Actor::new);
        Self {
            queue: Queue::new(scope.limits),
            pending: bits(BlockRange::at(0, scope.blocks)),
            claimed: 0,
            actors: writers.chain(others).collect(),
            life: Life::Active,
            recorded: false,
            safe: 0,
            staged: 0,
            stored: 0,
            planned: 0,
            delivered: 0,
            faults: scope.faults,
            container_failed: false,
        }
    }

    /// Does something with the gate, and wakes those that it hands back.
    pub(super) fn with_gate<T>(&mut self, scope: &Scope, work: impl FnOnce(&SmallGate) -> (T, Vec<usize>)) -> T {
        let words = |bits: Blocks| vec![AtomicU64::new(u64::from(bits))];
        let map = CopiedMap::new(words(self.pending), words(self.claimed));
        let gate = Gate { map, reserved: Reserved::none(), queue: crate::sync::Mutex::new(self.queue.clone()) };
        let (outcome, woken) = work(&gate);
        let blocks = || (0..scope.blocks).map(|block| BlockRange::at(block, 1));
        self.pending = blocks().filter(|&block| !gate.map.all_copied(block)).map(bits).sum();
        self.claimed =
            blocks().filter(|&block| !gate.map.any_unclaimed(block)).map(bits).sum::<Blocks>() & self.pending;
        self.queue = gate.queue.into_inner();
        for actor in woken {
            self.actors[actor].wake();
        }
        outcome
    }

    pub(super) fn first_hungry(&self) -> Option<Ticket> {
        self.queue.first_hungry()
    }

    pub(super) fn wants_drain(&self) -> bool {
        self.queue.room.wants_drain()
    }

    /// Tickets are only compared, and counters only shown: states that differ in nothing else are one.
    fn normalise(&mut self) {
        self.queue.renumber(self.actors.iter_mut().filter_map(|actor| actor.ticket.as_mut()).collect());
    }

    /// Calls `then` with every state that one step of somebody leads to.
    pub(super) fn each_step(&self, scope: &Scope, mut then: impl FnMut(Self)) {
        for actor in 0..self.actors.len() {
            for choice in self.choices(scope, actor) {
                let mut next = self.clone();
                next.step(scope, actor, choice);
                next.normalise();
                // Who looks around and finds nothing new has taken no step.
                if next != *self {
                    then(next);
                }
            }
        }
    }

    /// What must hold in every state.
    pub(super) fn check(&self, scope: &Scope) {
        let mut held = 0;
        for actor in &self.actors {
            assert_eq!(held & actor.claims(), 0, "a claim has two holders: {self:?}");
            held |= actor.claims();
        }
        assert_eq!(held & !self.claimed, 0, "a claim that is held is free for others: {self:?}");
        assert_eq!(self.claimed & !held, 0, "a claim that nobody holds is not free: {self:?}");
        let copied = !self.pending & bits(BlockRange::at(0, scope.blocks));
        assert_eq!(copied & !self.safe, 0, "copied before its bytes were safe: {self:?}");
        let used = self.queue.room.used();
        assert!(used <= scope.limits.capacity, "more than the container may hold: {self:?}");
        let taken: u32 = self.actors.iter().map(Actor::room).sum();
        let kept = (self.staged | self.stored).count_ones();
        assert_eq!(used, kept + taken, "the account of room is wrong: {self:?}");
    }

    /// What must hold where nobody can take another step.
    pub(super) fn check_end(&self, scope: &Scope) {
        assert!(self.actors.iter().all(Actor::is_done), "somebody sleeps for ever: {self:?}");
        assert_eq!(self.queue.waiters().count(), 0, "a waiter is left in the queue: {self:?}");
        assert_ne!(self.life, Life::Active, "the backup has no end: {self:?}");
        if self.life == Life::Complete {
            assert_eq!(u32::from(self.delivered), (1 << scope.extents()) - 1, "complete and not whole: {self:?}");
            assert_eq!(self.queue.room.used(), 0, "room is lost: {self:?}");
        }
    }
}
