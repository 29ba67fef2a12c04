//! The gate of one backup: decides for every write whether it may go, what must be copied first, or whether it waits.
//!
//! Pure state: no I/O, no clock, no thread. `W` is whatever wakes a suspended write; it is stored when the write must
//! wait and handed back when it is to be admitted again. Woken writes always ask again, nothing is decided for them.

mod queue;
mod reserved;
mod room;

pub use queue::Ticket;
pub use reserved::Reserved;
pub use room::{Ledger, Limits, Room};

use std::ops::Deref;

use crate::arena::Words;
use crate::copied::CopiedMap;
use crate::geometry::BlockRange;
use crate::mutant::planted;
use crate::sync::{AtomicU64, Mutex};
use queue::Queue;

/// What a write is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// All its blocks are copied.
    Go,
    /// Copy these runs first; the caller holds their claims, and room for them is reserved. Then ask again.
    Copy(Vec<BlockRange>),
    /// The waiter is stored and will be handed back.
    Wait {
        /// This write found the container at its selected capacity, and so the drain begins.
        drain_begins: bool,
    },
    /// The write fails with this errno, as the policy `fail-write` says.
    Refuse(i32),
    /// The write touches the part of the device that holds the container.
    Trespass,
}

/// A decision, and whom to wake because of it.
pub struct Admission<W> {
    /// What the asking write does.
    pub decision: Decision,
    /// Another waiter that should ask again.
    pub wake: Option<W>,
}

/// Admits, suspends and releases the writes of one backup. `M` is the memory of its maps.
pub struct Gate<W, M = Words> {
    map: CopiedMap<M>,
    reserved: Reserved,
    queue: Mutex<Queue<W>>,
}

impl<W, M: Deref<Target = [AtomicU64]>> Gate<W, M> {
    /// A gate over `map`, whose container lies on the blocks `reserved` and has `limits`.
    pub fn new(map: CopiedMap<M>, reserved: Reserved, limits: Limits) -> Self {
        Self { map, reserved, queue: Mutex::new(Queue::new(limits)) }
    }

    /// Whether the container lies on the device itself.
    pub fn has_reserved(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// Whether a write to `blocks` touches the container's places on the device.
    pub fn reserves(&self, blocks: BlockRange) -> bool {
        self.reserved.touches(blocks)
    }

    /// The container's places on the device.
    pub fn reserved(&self) -> &[BlockRange] {
        self.reserved.runs()
    }

    /// The maps, for making the list before the cut and for looking at progress.
    pub fn map(&self) -> &CopiedMap<M> {
        &self.map
    }

    /// May a write to `blocks` go? A write that asks again passes the ticket that its waiter was given.
    #[inline]
    pub fn admit(&self, blocks: BlockRange, ticket: Option<Ticket>, waiter: impl FnOnce(Ticket) -> W) -> Admission<W> {
        if ticket.is_none() && !self.reserved.touches(blocks) && self.map.all_copied(blocks) {
            return Admission { decision: Decision::Go, wake: None };
        }
        self.admit_slowly(blocks, ticket, waiter)
    }

    fn admit_slowly(
        &self,
        blocks: BlockRange,
        ticket: Option<Ticket>,
        waiter: impl FnOnce(Ticket) -> W,
    ) -> Admission<W> {
        let mut queue = self.queue.lock();
        if ticket.is_some() && planted("woken-is-admitted") {
            return Admission { decision: Decision::Go, wake: None };
        }
        let decision = self.decide(&mut queue, blocks, ticket, waiter);
        if planted("wake-is-not-passed-on") {
            return Admission { decision, wake: None };
        }
        // Room that this write did not need goes to the next in line, or else that one would sleep beside free room.
        Admission { decision, wake: queue.wake_next_hungry() }
    }

    fn decide(
        &self,
        queue: &mut Queue<W>,
        blocks: BlockRange,
        ticket: Option<Ticket>,
        waiter: impl FnOnce(Ticket) -> W,
    ) -> Decision {
        if self.reserved.touches(blocks) {
            return Decision::Trespass;
        }
        if queue.closed {
            return Decision::Go;
        }
        let Some(first) = self.map.first_pending(blocks) else { return Decision::Go };
        let ticket = ticket.unwrap_or_else(|| queue.next_ticket());
        let room = queue.room_for(ticket);
        if room > 0 {
            let runs = self.map.claim(blocks, room);
            if !runs.is_empty() {
                queue.room.reserve(runs.iter().map(|run| run.len()).sum());
                return Decision::Copy(runs);
            }
        }
        let hungry = room == 0 && self.map.any_unclaimed(blocks);
        if hungry && let Some(errno) = queue.refusal {
            return Decision::Refuse(errno);
        }
        let drain_begins = hungry && queue.room.begin_drain();
        queue.park(first, ticket, hungry, waiter(ticket));
        Decision::Wait { drain_begins }
    }

    /// The holder of the claims has the old bytes safe. Hands back whoever waited for them.
    #[must_use]
    pub fn copied(&self, blocks: BlockRange) -> Vec<W> {
        self.map.set_copied(blocks);
        self.queue.lock().take_parked(blocks)
    }

    /// The holder of the claims could not copy. Hands back whoever waited, so that one of them claims anew.
    #[must_use]
    pub fn failed(&self, blocks: BlockRange) -> Vec<W> {
        if !planted("claim-is-not-released-on-error") {
            self.map.unclaim(blocks);
        }
        if planted("failed-copy-wakes-nobody") {
            return Vec::new();
        }
        self.queue.lock().take_parked(blocks)
    }

    /// Room came back: slots whose blocks reached the destination, staging that went to the container, or a
    /// reservation that was not used. Hands back the first of those who wait for room; each admission then hands
    /// back the next. The flag says whether this ended a drain.
    #[must_use]
    pub fn freed(&self, room: Room) -> (Option<W>, bool) {
        let mut queue = self.queue.lock();
        let drained = queue.room.give_back(room);
        (queue.wake_next_hungry(), drained)
    }

    /// Claims what nobody has claimed yet, for the sweep, which needs no room.
    pub fn claim(&self, blocks: BlockRange) -> Vec<BlockRange> {
        self.map.claim(blocks, u32::MAX)
    }

    /// Waits for blocks that others are copying. `false`: nothing to wait for: all are copied, somebody gave a claim back
    /// since the caller found none left, or the gate is closed.
    pub fn watch(&self, blocks: BlockRange, waiter: impl FnOnce() -> W) -> bool {
        let mut queue = self.queue.lock();
        let Some(first) = self.map.first_pending(blocks).filter(|_| !queue.closed) else { return false };
        // A claim that is given back after this look finds the waiter.
        if self.map.any_unclaimed(blocks) && !planted("sweeper-sleeps-for-a-claim-given-back") {
            return false;
        }
        let ticket = queue.next_ticket();
        queue.park(first, ticket, false, waiter());
        true
    }

    /// From now on a write that needs room and finds none fails with `errno`. Hands back those who wait for room now.
    #[must_use]
    pub fn refuse(&self, errno: i32) -> Vec<W> {
        let mut queue = self.queue.lock();
        queue.refusal = Some(errno);
        queue.take_hungry()
    }

    /// Ends the gate: from now on every write goes. Hands back everybody.
    #[must_use]
    pub fn close(&self) -> Vec<W> {
        let mut queue = self.queue.lock();
        queue.closed = true;
        if planted("close-wakes-nobody") {
            return Vec::new();
        }
        queue.take_all()
    }

    /// Hands back the waiters for which `expired` holds, for the deadline.
    #[must_use]
    pub fn expel(&self, expired: impl FnMut(&W) -> bool) -> Vec<W> {
        self.queue.lock().take_if(expired)
    }

    /// The least of what `key` says of the waiters: when the oldest of those with a deadline began to wait.
    pub fn earliest<T: Ord>(&self, key: impl FnMut(&W) -> Option<T>) -> Option<T> {
        self.queue.lock().waiters().filter_map(key).min()
    }

    /// Number of suspended writes (and sweepers) that are parked now.
    pub fn parked(&self) -> usize {
        self.queue.lock().waiters().count()
    }

    /// The container holds so much already, in blocks, and reached its peak and so many drains in another process. Before the
    /// first write.
    pub fn take_up(&self, held: Room, peak: u32, drains: u64) {
        self.queue.lock().room.take_up(held, peak, drains);
    }

    /// What the container holds, is reserved for, and may hold.
    pub fn room(&self) -> Ledger {
        self.queue.lock().room.clone()
    }
}

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;
