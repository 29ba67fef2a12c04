//! How many decisions on copied blocks the gate makes in a second on one core; prints one JSON object.
//!
//! A decision is what every write of one block pays during a backup: counted in, admitted, counted out.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use blockcow_engine::copied::{CopiedMap, words_for};
use blockcow_engine::flights::Flights;
use blockcow_engine::gate::{Decision, Gate, Limits, Reserved};
use blockcow_engine::geometry::BlockRange;

const BLOCKS: u32 = 1 << 20;
const DECISIONS: u32 = 20_000_000;

/// A container inside the device may lie in many pieces: here in so many, of `PIECE` blocks.
const PIECES: u32 = 1024;
const PIECE: u32 = 8;

fn main() {
    let pieces = (0..PIECES).map(|piece| BlockRange::at(BLOCKS / PIECES * piece, PIECE)).collect();
    let elsewhere = decisions_per_second(Reserved::none());
    let inside = decisions_per_second(Reserved::new(pieces));
    println!(
        "{{\"decisions_per_second\": {elsewhere:.0}, \"decisions_per_second_beside_{PIECES}_pieces\": {inside:.0}}}"
    );
}

fn decisions_per_second(reserved: Reserved) -> f64 {
    let words = || (0..words_for(BLOCKS)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let limits = Limits { capacity: 1, drain: 1, staging: 1 };
    let gate: Gate<(), Vec<AtomicU64>> = Gate::new(CopiedMap::new(words(), words()), reserved, limits);
    gate.map().list(BlockRange::at(0, BLOCKS));
    let claimed = gate.claim(BlockRange::at(0, BLOCKS));
    assert_eq!(claimed, [BlockRange::at(0, BLOCKS)]);
    assert!(gate.copied(BlockRange::at(0, BLOCKS)).is_empty());

    let flights = Flights::<()>::default();
    let mut went = 0u32;
    let start = Instant::now();
    for decision in 0..DECISIONS {
        // Never one of the pieces.
        let block = (decision.wrapping_mul(0x9e37_79b1) % BLOCKS) | PIECE;
        assert!(flights.enter(|| ()));
        went += u32::from(gate.admit(black_box(BlockRange::at(block, 1)), None, |_| ()).decision == Decision::Go);
        assert!(flights.leave().is_none());
    }
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(went, DECISIONS);
    f64::from(DECISIONS) / seconds
}
