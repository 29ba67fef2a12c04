//! Models of the map, the gate and the flights: loom tries every interleaving of their threads, and everything that the
//! memory orderings allow. The engine's own code runs, over loom's primitives; around it each model plays the part of the
//! driver and the sweep. Nothing here says how the real threads are joined together: `tests/schedules` does.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --target-dir target/loom -p blockcow-engine --test models`
#![cfg(loom)]
// Threads of a model take turns in one thread, so loom asks for no more of what they share.
#![allow(clippy::arc_with_non_send_sync)]

mod ending;
mod flights;
mod gate;
mod map;
mod room;
mod world;

use std::sync::Arc;

use blockcow_proof::Tally;

/// Three threads that sleep and wake each other have more interleavings than anybody can wait for. Of these, those with at
/// most so many switches away from a thread that could have gone on.
const BOUND: usize = 3;

/// Tries all interleavings of a model, and takes note of how many there were: `budget` is half of what was seen when the
/// model was made, so that one which comes to nothing is noticed. loom itself reports threads that wait for ever.
fn explore(test: &'static str, budget: u64, model: impl Fn() + Send + Sync + 'static) {
    check(loom::model::Builder::new(), test, budget, model);
}

/// The same for a model that cannot be tried to its end.
fn explore_within(bound: usize, test: &'static str, budget: u64, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    check(builder, test, budget, model);
}

fn check(builder: loom::model::Builder, test: &'static str, budget: u64, model: impl Fn() + Send + Sync + 'static) {
    let tally = Arc::new(Tally::new("loom", test, budget));
    let counter = tally.clone();
    builder.check(move || {
        counter.executed(1);
        model();
    });
    assert!(tally.count() >= budget, "only {} interleavings of {budget}", tally.count());
}
