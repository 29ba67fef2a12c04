//! The gate's account of the container's space: how many blocks it holds, and when it drains. Numbers only.

use crate::mutant::planted;

/// Space in blocks: slots of the container, and places in the staging area before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Blocks that the container holds, wherever they are.
    pub slots: u32,
    /// Of those, the ones in staging.
    pub staging: u32,
}

/// The limits that the user set, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The selected capacity: at so many blocks, writes that need a slot wait.
    pub capacity: u32,
    /// The selected amount: so many blocks are drained before they go on.
    pub drain: u32,
    /// Places in staging.
    pub staging: u32,
}

impl Limits {
    /// The soft mark: from here on the drain begins early, so that the capacity is not reached.
    pub fn soft_mark(self) -> u32 {
        self.capacity - self.capacity / 4
    }
}

/// Reservations and blocks held, against the limits.
#[derive(Debug, Clone)]
pub struct Ledger {
    limits: Limits,
    pub(super) used: Room,
    peak: u32,
    draining: bool,
    drains: u64,
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, used: Room::default(), peak: 0, draining: false, drains: 0 }
    }

    pub(super) fn take_up(&mut self, held: Room, peak: u32, drains: u64) {
        (self.used, self.peak, self.drains) = (held, peak.max(held.slots), drains);
    }

    /// How many blocks may be reserved now.
    pub(super) fn available(&self) -> u32 {
        if self.draining {
            return 0;
        }
        let capacity = self.limits.capacity + u32::from(planted("one-slot-more-than-the-capacity"));
        (capacity - self.used.slots).min(self.limits.staging - self.used.staging)
    }

    pub(super) fn reserve(&mut self, blocks: u32) {
        debug_assert!(blocks <= self.available(), "reserve only what is available");
        self.used.slots += blocks;
        self.used.staging += blocks;
        self.peak = self.peak.max(self.used.slots);
    }

    /// Somebody needs a slot and there is none: starts the drain if the selected capacity is the reason.
    pub(super) fn begin_drain(&mut self) -> bool {
        if self.draining || self.used.slots < self.limits.capacity || planted("drain-never-begins") {
            return false;
        }
        self.draining = true;
        self.drains += 1;
        true
    }

    /// Returns whether this ended the drain.
    pub(super) fn give_back(&mut self, room: Room) -> bool {
        self.used.slots -= room.slots;
        self.used.staging -= room.staging;
        let drained = self.draining && self.used.slots <= self.limits.capacity - self.limits.drain;
        self.draining &= !drained;
        drained
    }

    /// The selected capacity in blocks.
    pub fn capacity(&self) -> u32 {
        self.limits.capacity
    }

    /// Blocks held or reserved now.
    pub fn used(&self) -> u32 {
        self.used.slots
    }

    /// The most blocks that were ever held or reserved.
    pub fn peak(&self) -> u32 {
        self.peak
    }

    /// How often the selected capacity was reached and a drain made room.
    pub fn drains(&self) -> u64 {
        self.drains
    }

    /// Whether writes wait for a drain now.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Whether the drain order should be used: a drain is on, or the soft mark is reached.
    pub fn wants_drain(&self) -> bool {
        self.draining || self.used.slots >= self.limits.soft_mark()
    }
}
