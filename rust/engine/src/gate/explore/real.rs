//! Makes a real gate and real flights of a state, has somebody act on them, and takes them apart again.

use std::ops::Deref;
use std::sync::Arc;

use super::world::{Parked, SLEEPERS, Scope, WRITERS, World};
use crate::copied::CopiedMap;
use crate::flights::Flights;
use crate::gate::{Gate, Reserved, Room, Ticket};
use crate::sync::{AtomicU64, Ordering};

impl World {
    /// Acts on a real gate in this state. `tickets` are those of the writers.
    pub(super) fn gate<T>(
        &mut self,
        scope: &Scope,
        act: impl FnOnce(&Gate<u8, Arc<[AtomicU64]>>, &mut [Option<Ticket>; WRITERS]) -> T,
    ) -> T {
        let words = [self.pending, self.claimed].map(|bits| Arc::from([AtomicU64::new(u64::from(bits))]));
        let [pending, claimed]: [Arc<[AtomicU64]>; 2] = words;
        let gate = Gate::new(CopiedMap::new(pending.clone(), claimed.clone()), Reserved::none(), scope.limits);
        let mut tickets = self.restore(&gate, scope);
        let outcome = act(&gate, &mut tickets);
        (self.pending, self.claimed) = (bits(&pending), bits(&claimed));
        self.absorb(&gate, &tickets);
        outcome
    }

    fn restore<M: Deref<Target = [AtomicU64]>>(&self, gate: &Gate<u8, M>, scope: &Scope) -> [Option<Ticket>; WRITERS] {
        let (slots, staging) = (u32::from(self.used.0), u32::from(self.used.1));
        let mut queue = gate.queue.lock();
        (queue.closed, queue.refusal) = (self.closed, self.refusal.then_some(libc::EIO));
        if self.draining {
            // A drain begins when the container is full.
            let more = scope.limits.capacity - slots;
            queue.room.take_up(Room { slots: scope.limits.capacity, staging: staging + more }, 0, 0);
            queue.room.begin_drain();
            queue.room.give_back(Room { slots: more, staging: more });
        } else {
            queue.room.take_up(Room { slots, staging }, 0, 0);
        }
        let given: Vec<Ticket> = (0..SLEEPERS).map(|_| queue.next_ticket()).collect();
        for (who, place) in self.parked.iter().enumerate().filter(|(_, place)| place.ticket > 0) {
            queue.park(u32::from(place.block), given[usize::from(place.ticket) - 1], place.hungry, who as u8);
        }
        std::array::from_fn(|writer| self.writers[writer].ticket.checked_sub(1).map(|rank| given[usize::from(rank)]))
    }

    /// Only the order of tickets means something: states that differ in their numbers are one.
    fn absorb<M>(&mut self, gate: &Gate<u8, M>, tickets: &[Option<Ticket>; WRITERS]) {
        let queue = gate.queue.lock();
        let mut live: Vec<Ticket> =
            queue.parked.keys().map(|key| key.1).chain(tickets.iter().copied().flatten()).collect();
        live.sort_unstable();
        live.dedup();
        let rank = |ticket: Ticket| live.partition_point(|other| *other < ticket) as u8 + 1;
        (self.closed, self.refusal) = (queue.closed, queue.refusal.is_some());
        self.used = (queue.room.used.slots as u8, queue.room.used.staging as u8);
        self.draining = queue.room.draining();
        self.parked = Default::default();
        for (&(block, ticket), &who) in &queue.parked {
            let hungry = queue.hungry.contains_key(&ticket);
            self.parked[usize::from(who)] = Parked { block: block as u8, ticket: rank(ticket), hungry };
        }
        for (writer, ticket) in self.writers.iter_mut().zip(tickets) {
            writer.ticket = ticket.map_or(0, rank);
        }
    }

    /// Acts on real flights in this state. Their holder is the cut, number 255.
    pub(super) fn flights<T>(&mut self, act: impl FnOnce(&Flights<u8>) -> T) -> T {
        let flights = Flights::default();
        let entered = (0..self.in_flight).all(|_| flights.enter(|| 255));
        debug_assert!(entered, "nothing is held yet");
        if self.holding {
            flights.hold(|| 255);
            for writer in (0..WRITERS as u8).filter(|writer| self.held >> writer & 1 != 0) {
                flights.enter(|| writer);
            }
        }
        let outcome = act(&flights);
        self.holding = flights.holding();
        outcome
    }

    /// A writer asks to be counted in.
    pub(super) fn enter(&mut self, writer: usize) -> bool {
        let entered = self.flights(|flights| flights.enter(|| writer as u8));
        self.in_flight += u8::from(entered);
        self.held |= u8::from(!entered) << writer;
        entered
    }

    /// A writer is counted out.
    pub(super) fn leave(&mut self) {
        let woken = self.flights(Flights::leave);
        self.in_flight -= 1;
        if woken.is_some() {
            self.holder = false;
            self.cutter.woken();
        }
    }

    /// The cut holds; whether no write is in flight.
    pub(super) fn hold(&mut self) -> bool {
        let quiet = self.flights(|flights| flights.hold(|| 255));
        self.holder = !quiet;
        quiet
    }

    pub(super) fn release(&mut self) {
        let woken = self.flights(Flights::release);
        self.holder = false;
        for writer in woken {
            self.held &= !(1 << writer);
            self.writers[usize::from(writer)].let_in();
        }
    }
}

fn bits(words: &[AtomicU64]) -> u8 {
    words[0].load(Ordering::Relaxed) as u8
}
