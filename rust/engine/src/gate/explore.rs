//! Explores every history of a small gate: all orders of all steps of writers, sweeper, write-behind, deadline and cancel.
//!
//! The gate does no I/O, so a history is a path in a finite graph of states. Each state is visited once; in each the promises
//! are checked, and where nobody can take a step, nobody may wait. Calls of the gate are one step each: what threads can do
//! to each other inside of them is the models' affair.

mod actors;
mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use blockcow_proof::Tally;

use super::Limits;
use crate::geometry::BlockRange;
use world::{Scope, World};

/// Two independent hashes: of millions of states no two will share both.
fn fingerprint(world: &World) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, world).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Visits all states that can follow, and returns how many there are.
fn explore(scope: &Scope) -> u64 {
    let first = World::new(scope);
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        world.check(scope);
        let mut next = Vec::new();
        world.each_step(scope, |world| next.push(world));
        if next.is_empty() {
            world.check_end(scope);
        }
        left.extend(next.into_iter().filter(|world| seen.insert(fingerprint(world))));
    }
    seen.len() as u64
}

/// All ranges of up to `blocks` blocks.
fn ranges(blocks: u32) -> Vec<BlockRange> {
    (0..blocks).flat_map(|start| (1..=blocks - start).map(move |count| BlockRange::at(start, count))).collect()
}

/// Three writers, of every range each; who of them is who makes no difference.
fn threes() -> Vec<Vec<BlockRange>> {
    let all = ranges(3);
    let mut threes = Vec::new();
    for (first, &a) in all.iter().enumerate() {
        for (second, &b) in all.iter().enumerate().skip(first) {
            threes.extend(all[second..].iter().map(|&c| vec![a, b, c]));
        }
    }
    threes
}

const ONE_SLOT: Limits = Limits { capacity: 1, drain: 1, staging: 1 };
const TWO_SLOTS: Limits = Limits { capacity: 2, drain: 1, staging: 1 };

/// Writers that meet in every way: the same blocks, some of them, all of them, and across the border of the extents.
const MEETINGS: [[(u32, u32); 3]; 3] = [[(0, 1), (0, 2), (1, 2)], [(0, 2), (0, 2), (2, 1)], [(0, 2), (1, 2), (0, 3)]];

fn with_two_faults(test: &'static str, budget: u64, limits: Limits, fail_write: bool) {
    let tally = Tally::new("exploration", test, budget);
    // Where the first fault is not the end there are fewer states to a meeting, and so there is time for all of them.
    for writes in MEETINGS.into_iter().take(if fail_write { 3 } else { 1 }) {
        let writes = writes.map(|(start, count)| BlockRange::at(start, count)).to_vec();
        tally.executed(explore(&Scope { blocks: 3, extent: 2, writes, limits, fail_write, zeroes: 0b100, faults: 2 }));
    }
}

#[test]
fn a_small_scope() {
    for fail_write in [false, true] {
        for writes in [vec![BlockRange::at(0, 2), BlockRange::at(1, 1)], vec![BlockRange::at(0, 2); 2]] {
            let scope = Scope { blocks: 2, extent: 2, writes, limits: ONE_SLOT, fail_write, zeroes: 0, faults: 1 };
            assert!(explore(&scope) > 500);
        }
    }
}

#[test]
#[ignore = "run by make proof"]
fn three_writers_of_every_range() {
    let tally = Tally::new("exploration", "three_writers_of_every_range", 1_490_000);
    for writes in threes() {
        for limits in [ONE_SLOT, TWO_SLOTS] {
            let writes = writes.clone();
            let scope = Scope { blocks: 3, extent: 2, writes, limits, fail_write: false, zeroes: 0b100, faults: 0 };
            tally.executed(explore(&scope));
        }
    }
}

#[test]
#[ignore = "run by make proof"]
fn one_slot_under_break_backup() {
    with_two_faults("one_slot_under_break_backup", 3_300_000, ONE_SLOT, false);
}

#[test]
#[ignore = "run by make proof"]
fn one_slot_under_fail_write() {
    with_two_faults("one_slot_under_fail_write", 1_500_000, ONE_SLOT, true);
}

#[test]
#[ignore = "run by make proof"]
fn two_slots_under_break_backup() {
    with_two_faults("two_slots_under_break_backup", 7_000_000, TWO_SLOTS, false);
}

#[test]
#[ignore = "run by make proof"]
fn two_slots_under_fail_write() {
    with_two_faults("two_slots_under_fail_write", 3_000_000, TWO_SLOTS, true);
}
