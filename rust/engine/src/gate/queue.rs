//! The gate's wait queue: each waiter is parked under the first block that it waits for, those who lack room in order.

use std::collections::BTreeMap;

use super::room::{Ledger, Limits};
use crate::geometry::BlockRange;
use crate::mutant::planted;

/// A write's place in line; kept when it asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

pub(super) struct Queue<W> {
    pub(super) room: Ledger,
    pub(super) closed: bool,
    pub(super) refusal: Option<i32>,
    pub(super) parked: BTreeMap<(u32, Ticket), W>,
    /// Those of the parked who lack room, by ticket, with the block under which each is parked.
    pub(super) hungry: BTreeMap<Ticket, u32>,
    tickets: u64,
}

impl<W> Queue<W> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            room: Ledger::new(limits),
            closed: false,
            refusal: None,
            parked: BTreeMap::new(),
            hungry: BTreeMap::new(),
            tickets: 0,
        }
    }

    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Room for the holder of `ticket`: none while somebody who came before waits for room.
    pub(super) fn room_for(&self, ticket: Ticket) -> u32 {
        match self.hungry.first_key_value() {
            Some((&first, _)) if first < ticket && !planted("room-goes-to-the-last-to-come") => 0,
            _ => self.room.available(),
        }
    }

    pub(super) fn park(&mut self, block: u32, ticket: Ticket, hungry: bool, waiter: W) {
        self.parked.insert((block, ticket), waiter);
        if hungry {
            self.hungry.insert(ticket, block);
        }
    }

    pub(super) fn take_parked(&mut self, blocks: BlockRange) -> Vec<W> {
        let mut taken = Vec::new();
        while let Some((&key, _)) = self.parked.range((blocks.start, Ticket(0))..(blocks.end, Ticket(0))).next() {
            taken.extend(self.parked.remove(&key));
            self.hungry.remove(&key.1);
        }
        taken
    }

    pub(super) fn wake_next_hungry(&mut self) -> Option<W> {
        if self.hungry.is_empty() || self.room.available() == 0 {
            return None;
        }
        let (ticket, block) = self.hungry.pop_first()?;
        self.parked.remove(&(block, ticket))
    }

    pub(super) fn take_hungry(&mut self) -> Vec<W> {
        let hungry = std::mem::take(&mut self.hungry);
        hungry.into_iter().filter_map(|(ticket, block)| self.parked.remove(&(block, ticket))).collect()
    }

    pub(super) fn take_all(&mut self) -> Vec<W> {
        self.hungry.clear();
        std::mem::take(&mut self.parked).into_values().collect()
    }

    pub(super) fn take_if(&mut self, mut expired: impl FnMut(&W) -> bool) -> Vec<W> {
        let keys: Vec<_> = self.parked.iter().filter(|(_, waiter)| expired(waiter)).map(|(&key, _)| key).collect();
        let mut taken = Vec::new();
        for key in keys {
            taken.extend(self.parked.remove(&key));
            self.hungry.remove(&key.1);
        }
        taken
    }

    pub(super) fn waiters(&self) -> impl Iterator<Item = &W> {
        self.parked.values()
    }
}
