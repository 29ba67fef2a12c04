//! The gate's decisions one by one; the engine's tests run it under threads.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::*;
use crate::arena::{Words, regions};
use crate::copied::words_for;

fn gate(blocks: u32, capacity: u32, drain: u32, staging: u32) -> Gate<&'static str> {
    let bytes = words_for(blocks) * 8;
    let mut regions = regions(&[bytes, bytes]).unwrap().into_iter();
    let map = CopiedMap::new(Words::new(regions.next().unwrap()), Words::new(regions.next().unwrap()));
    map.list(BlockRange::at(0, blocks));
    Gate::new(map, Reserved::none(), Limits { capacity, drain, staging })
}

fn run(start: u32, count: u32) -> BlockRange {
    BlockRange::at(start, count)
}

fn ask(gate: &Gate<&'static str>, blocks: BlockRange, who: &'static str) -> Decision {
    gate.admit(blocks, None, |_| who).decision
}

const WAIT: Decision = Decision::Wait { drain_begins: false };

#[test]
fn the_first_write_copies_and_the_second_waits_for_it() {
    let gate = gate(100, 10, 5, 10);
    assert_eq!(ask(&gate, run(3, 2), "a"), Decision::Copy(vec![run(3, 2)]));
    assert_eq!(ask(&gate, run(4, 1), "b"), WAIT);
    assert_eq!(gate.copied(run(3, 2)), ["b"]);
    assert_eq!(ask(&gate, run(3, 2), "a"), Decision::Go);
}

#[test]
fn a_write_waits_for_every_block_and_not_for_the_first_alone() {
    let gate = gate(100, 10, 5, 10);
    assert_eq!(ask(&gate, run(3, 1), "a"), Decision::Copy(vec![run(3, 1)]));
    assert_eq!(ask(&gate, run(4, 1), "b"), Decision::Copy(vec![run(4, 1)]));
    assert_eq!(ask(&gate, run(3, 2), "c"), WAIT);
    assert_eq!(gate.copied(run(3, 1)), ["c"]);
    assert_eq!(ask(&gate, run(3, 2), "c"), WAIT);
    assert_eq!(gate.copied(run(4, 1)), ["c"]);
    assert_eq!(ask(&gate, run(3, 2), "c"), Decision::Go);
}

#[test]
fn a_failed_copy_hands_its_claim_to_a_waiter() {
    let gate = gate(100, 10, 5, 10);
    assert_eq!(ask(&gate, run(7, 1), "a"), Decision::Copy(vec![run(7, 1)]));
    assert_eq!(ask(&gate, run(7, 1), "b"), WAIT);
    assert_eq!(gate.failed(run(7, 1)), ["b"]);
    assert_eq!(ask(&gate, run(7, 1), "b"), Decision::Copy(vec![run(7, 1)]));
}

#[test]
fn at_the_capacity_writes_wait_until_the_amount_is_drained() {
    let gate = gate(100, 4, 2, 4);
    assert_eq!(ask(&gate, run(0, 6), "a"), Decision::Copy(vec![run(0, 4)]));
    assert!(gate.copied(run(0, 4)).is_empty());
    assert_eq!(ask(&gate, run(4, 1), "b"), Decision::Wait { drain_begins: true });
    assert_eq!(ask(&gate, run(5, 1), "c"), WAIT);
    assert_eq!(gate.freed(Room { slots: 1, staging: 1 }), (None, false));
    assert_eq!(gate.freed(Room { slots: 1, staging: 1 }), (Some("b"), true));
    assert_eq!(gate.room().drains(), 1);
}

#[test]
fn the_drain_goes_on_until_the_amount_is_free() {
    let gate = gate(100, 6, 2, 6);
    assert_eq!(ask(&gate, run(0, 6), "a"), Decision::Copy(vec![run(0, 6)]));
    assert_eq!((gate.room().draining(), gate.room().drains(), gate.parked()), (false, 0, 0));
    assert_eq!(ask(&gate, run(6, 1), "b"), Decision::Wait { drain_begins: true });
    assert_eq!(ask(&gate, run(7, 1), "c"), WAIT);
    assert_eq!((gate.room().draining(), gate.room().drains(), gate.parked()), (true, 1, 2));
    assert!(!gate.freed(Room { slots: 1, staging: 1 }).1);
    assert!(gate.freed(Room { slots: 1, staging: 1 }).1);
    assert_eq!((gate.room().draining(), gate.parked()), (false, 1));
}

#[test]
fn from_three_quarters_of_the_capacity_on_the_fullest_extents_are_swept_first() {
    let gate = gate(100, 8, 2, 8);
    assert_eq!(ask(&gate, run(0, 5), "a"), Decision::Copy(vec![run(0, 5)]));
    assert!(!gate.room().wants_drain());
    assert_eq!(ask(&gate, run(5, 1), "a"), Decision::Copy(vec![run(5, 1)]));
    assert!(gate.room().wants_drain() && !gate.room().draining());
    assert_eq!(ask(&gate, run(6, 3), "a"), Decision::Copy(vec![run(6, 2)]));
    assert_eq!(ask(&gate, run(8, 1), "b"), Decision::Wait { drain_begins: true });
    assert!(!gate.freed(Room { slots: 1, staging: 1 }).1);
    assert!(gate.room().wants_drain() && gate.room().draining());
}

#[test]
fn a_gate_knows_whether_its_container_lies_on_the_device() {
    assert!(!gate(100, 8, 2, 8).has_reserved());
    let Gate { map, queue, .. } = gate(100, 8, 2, 8);
    let gate = Gate { map, queue, reserved: Reserved::new(vec![run(10, 2)]) };
    assert!(gate.has_reserved());
}

#[test]
fn a_write_gets_no_more_than_the_capacity_though_staging_has_room() {
    let gate = gate(100, 2, 1, 8);
    assert_eq!(ask(&gate, run(0, 3), "a"), Decision::Copy(vec![run(0, 2)]));
    assert_eq!(gate.room().used(), gate.room().capacity());
}

#[test]
fn room_that_a_woken_write_does_not_need_goes_to_the_next() {
    let gate = gate(100, 1, 1, 1);
    assert_eq!(ask(&gate, run(0, 1), "a"), Decision::Copy(vec![run(0, 1)]));
    let mut ticket = None;
    let first = gate.admit(run(1, 1), None, |given| {
        ticket = Some(given);
        "b"
    });
    assert_eq!(first.decision, Decision::Wait { drain_begins: true });
    assert_eq!(ask(&gate, run(2, 1), "c"), WAIT);
    assert_eq!(gate.freed(Room { slots: 1, staging: 1 }).0, Some("b"));
    assert_eq!(gate.claim(run(1, 1)), [run(1, 1)]);
    assert!(gate.copied(run(1, 1)).is_empty());
    let again = gate.admit(run(1, 1), ticket, |_| "b");
    assert_eq!((again.decision, again.wake), (Decision::Go, Some("c")));
}

#[test]
fn nobody_overtakes_those_who_wait_for_room() {
    let gate = gate(100, 2, 1, 2);
    assert_eq!(ask(&gate, run(0, 2), "a"), Decision::Copy(vec![run(0, 2)]));
    assert_eq!(ask(&gate, run(2, 1), "b"), Decision::Wait { drain_begins: true });
    assert_eq!(ask(&gate, run(3, 1), "c"), WAIT);
    assert_eq!(gate.freed(Room { slots: 1, staging: 1 }).0, Some("b"));
    assert_eq!(ask(&gate, run(4, 1), "d"), WAIT, "c came first");
}

#[test]
fn the_sweep_needs_no_room_and_waits_for_others_claims() {
    let gate = gate(100, 1, 1, 1);
    assert_eq!(ask(&gate, run(10, 2), "a"), Decision::Copy(vec![run(10, 1)]));
    assert_eq!(gate.claim(run(8, 8)), [run(8, 2), run(11, 5)]);
    let _ = (gate.copied(run(8, 2)), gate.copied(run(11, 5)));
    assert!(gate.watch(run(8, 8), || "sweep"));
    assert_eq!(gate.copied(run(10, 1)), ["sweep"]);
    assert!(!gate.watch(run(8, 8), || "sweep"));
}

#[test]
fn a_sweep_does_not_wait_for_a_block_whose_copy_failed_after_it_looked() {
    let gate = gate(100, 10, 5, 10);
    assert_eq!(ask(&gate, run(8, 1), "a"), Decision::Copy(vec![run(8, 1)]));
    assert_eq!(gate.claim(run(8, 1)), [], "a holds it");
    assert!(gate.failed(run(8, 1)).is_empty());
    assert!(!gate.watch(run(8, 1), || "sweep"), "nobody would wake it");
    assert_eq!(gate.claim(run(8, 1)), [run(8, 1)]);
}

#[test]
fn a_closed_gate_lets_everybody_go() {
    let gate = gate(100, 1, 1, 1);
    assert_eq!(ask(&gate, run(0, 1), "a"), Decision::Copy(vec![run(0, 1)]));
    assert_eq!(ask(&gate, run(0, 1), "b"), WAIT);
    assert_eq!(ask(&gate, run(1, 1), "c"), Decision::Wait { drain_begins: true });
    assert_eq!(gate.close(), ["b", "c"]);
    assert_eq!(ask(&gate, run(50, 1), "d"), Decision::Go);
    assert!(!gate.watch(run(60, 1), || "sweep"));
}

#[test]
fn refusal_is_for_those_without_room_only() {
    let gate = gate(100, 1, 1, 1);
    assert_eq!(ask(&gate, run(0, 1), "a"), Decision::Copy(vec![run(0, 1)]));
    assert_eq!(ask(&gate, run(1, 1), "b"), Decision::Wait { drain_begins: true });
    assert_eq!(gate.refuse(5), ["b"]);
    assert_eq!(ask(&gate, run(1, 1), "b"), Decision::Refuse(5));
    assert_eq!(ask(&gate, run(0, 1), "c"), WAIT, "a is copying it");
}

#[test]
fn a_write_into_the_containers_section_is_named() {
    let mut gate = gate(100, 1, 1, 1);
    gate.map.unlist(run(90, 10));
    gate.reserved = Reserved::new(vec![run(90, 10), run(60, 5)]);
    assert_eq!(ask(&gate, run(89, 2), "a"), Decision::Trespass);
    let _ = gate.close();
    assert_eq!(ask(&gate, run(89, 2), "a"), Decision::Trespass, "the container's last I/O may still be under way");
}

/// Memory of a map that does something when it is next looked at.
struct Probe(Vec<AtomicU64>, Interlude);

type Interlude = Rc<RefCell<Option<Box<dyn FnOnce()>>>>;

impl Deref for Probe {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let interlude = self.1.borrow_mut().take();
        interlude.into_iter().for_each(|interlude| interlude());
        &self.0
    }
}

#[test]
fn a_write_that_asks_while_its_block_is_marked_as_copied_is_handed_back() {
    let interlude = Interlude::default();
    let words = || Probe(vec![AtomicU64::new(0)], interlude.clone());
    let limits = Limits { capacity: 4, drain: 1, staging: 4 };
    let gate = Rc::new(Gate::new(CopiedMap::new(words(), words()), Reserved::none(), limits));
    gate.map.list(run(0, 64));
    assert_eq!(gate.admit(run(3, 1), None, |_| "a").decision, Decision::Copy(vec![run(3, 1)]));
    let late: Weak<Gate<&'static str, Probe>> = Rc::downgrade(&gate);
    *interlude.borrow_mut() = Some(Box::new(move || {
        let gate = late.upgrade().unwrap();
        assert_eq!(gate.admit(run(3, 1), None, |_| "late").decision, WAIT);
    }));
    assert_eq!(gate.copied(run(3, 1)), ["late"]);
}
