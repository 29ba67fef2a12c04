//! All histories of a small gate, explored to their end: two or three blocks, up to three writers, the sweep, which is the
//! drain too, the write-behind, the cut, the deadline, a cancel, and faults.
//!
//! The gate and the flights are the real ones. Those who act on them are small machines that take the steps of
//! `driver/passage.rs`, `copy.rs`, `sweep.rs`, `container.rs` and `backup/supervisor.rs`; a change of an order there is a change
//! here. A step is one call of the gate or one I/O. What goes on inside a call, between the map and the lock, is for the
//! models of threads.

mod promises;
mod real;
mod search;
mod stores;
mod supervisor;
mod sweeper;
mod world;
mod write_behind;
mod writer;

use blockcow_proof::Tally;

use super::Limits;
use crate::geometry::BlockRange;
use search::explore;
use world::Scope;

fn run(start: u32, count: u32) -> BlockRange {
    BlockRange::at(start, count)
}

/// Every run of three blocks.
fn every_run() -> Vec<BlockRange> {
    (0..3).flat_map(|start| (1..=3 - start).map(move |count| run(start, count))).collect()
}

/// Every choice of three writes, whose order means nothing.
fn every_three() -> impl Iterator<Item = Vec<BlockRange>> {
    let runs = every_run();
    let choices = (0..runs.len()).flat_map(|a| (0..=a).flat_map(move |b| (0..=b).map(move |c| [a, b, c])));
    choices.map(move |choice| choice.map(|index| runs[index]).to_vec())
}

const ONE_SLOT: Limits = Limits { capacity: 1, drain: 1, staging: 1 };

/// Two writes that share a block, one sweeper that needs two turns, a container of one slot in memory; nothing goes wrong.
fn plain() -> Scope {
    Scope {
        writes: vec![run(0, 2), run(1, 2)],
        extents: vec![run(0, 2), run(2, 1)],
        sweepers: 1,
        limits: ONE_SLOT,
        log: false,
        fail_write: false,
        zero: 0,
        faults: 0,
        late: 0,
        cancel: false,
    }
}

/// The scope under both policies.
fn both(scope: Scope) -> [Scope; 2] {
    [Scope { fail_write: true, ..scope.clone() }, scope]
}

fn explore_all(title: &str, scopes: impl IntoIterator<Item = Scope>) -> u64 {
    let states = scopes.into_iter().map(|scope| explore(&scope)).sum();
    println!("explored to the end: {title}: {states} states");
    states
}

#[test]
fn explores_a_small_scope() {
    let everything = Scope { faults: 1, late: 1, cancel: true, extents: vec![run(0, 2)], ..plain() };
    let states =
        explore_all("two writes of two blocks", both(Scope { writes: vec![run(0, 1), run(0, 2)], ..everything }))
            + explore_all(
                "a log behind one place",
                [Scope { log: true, writes: vec![run(0, 2)], faults: 1, ..plain() }],
            )
            + explore_all("three writes", [Scope { writes: vec![run(0, 1), run(0, 2), run(1, 2)], ..plain() }]);
    assert!(states > 100_000, "{states}");
}

#[test]
#[ignore = "run by make proof"]
fn explores_every_history_of_a_small_gate() {
    let tally = Tally::new("exploration", "gate", 12_000_000);
    let three = Scope { writes: vec![run(0, 1), run(0, 2), run(1, 2)], ..plain() };
    let two_slots = Limits { capacity: 2, drain: 1, staging: 2 };
    let slow_log = Limits { capacity: 2, drain: 1, staging: 1 };
    let any = Scope { faults: 2, late: 1, cancel: true, ..plain() };
    let scopes = [
        ("every three writes", every_three().map(|writes| Scope { writes, ..plain() }).collect()),
        ("three writes, two faults", both(Scope { faults: 2, ..three.clone() }).to_vec()),
        ("three writes, two slots", vec![Scope { limits: two_slots, ..three }]),
        ("two writes, all that can go wrong", both(any.clone()).to_vec()),
        ("the same with a log of one slot", both(Scope { log: true, ..any.clone() }).to_vec()),
        ("two slots behind one place, a block of zeroes", {
            both(Scope { log: true, limits: slow_log, zero: 2, faults: 1, cancel: false, ..any }).to_vec()
        }),
        ("two sweepers, a fault", both(Scope { sweepers: 2, faults: 1, ..plain() }).to_vec()),
    ];
    for (title, scopes) in scopes {
        tally.executed(explore_all(title, scopes));
    }
    assert!(tally.count() >= 12_000_000, "fewer states than there were: {}", tally.count());
}
