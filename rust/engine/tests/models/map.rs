//! The claim: of all parties that ask for a block exactly one may copy it, and what a copier did before it marks a block is
//! seen by whoever finds the mark.

use std::sync::Arc;

use blockcow_engine::copied::{CopiedMap, words_for};
use blockcow_engine::geometry::BlockRange;
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use crate::{BOUND, explore, explore_within};

type Map = CopiedMap<Vec<AtomicU64>>;

fn map(listed: BlockRange) -> Map {
    let words = || (0..words_for(listed.end)).map(|_| AtomicU64::new(0)).collect();
    let map = CopiedMap::new(words(), words());
    map.list(listed);
    map
}

/// Each party claims its run and copies what it won: all is copied, and no block twice.
fn claimed_once(parties: &[BlockRange]) {
    let all = BlockRange {
        start: parties.iter().map(|run| run.start).min().unwrap(),
        end: parties.iter().map(|run| run.end).max().unwrap(),
    };
    let map = Arc::new(map(all));
    let copies: Arc<Vec<_>> = Arc::new(all.blocks().map(|_| UnsafeCell::new(0)).collect());
    let party = |run: BlockRange| {
        let (map, copies) = (map.clone(), copies.clone());
        move || {
            for won in map.claim(run, u32::MAX) {
                for block in won.blocks() {
                    // SAFETY: loom panics if two are here at a time.
                    copies[(block - all.start) as usize].with_mut(|copy| unsafe { *copy += 1 });
                }
                map.set_copied(won);
            }
            // What is seen to be copied can be read: no copier is still at it.
            for block in run.blocks().filter(|&block| map.all_copied(BlockRange::at(block, 1))) {
                // SAFETY: as above.
                copies[(block - all.start) as usize].with(|copy| assert_eq!(unsafe { *copy }, 1));
            }
        }
    };
    let others: Vec<_> = parties[1..].iter().map(|&run| thread::spawn(party(run))).collect();
    party(parties[0])();
    others.into_iter().for_each(|other| other.join().unwrap());
    assert!(map.all_copied(all));
}

#[test]
fn two_parties_claim_one_block() {
    explore("two_parties_claim_one_block", 29, || claimed_once(&[BlockRange::at(5, 1); 2]));
}

#[test]
fn three_parties_claim_one_block() {
    explore("three_parties_claim_one_block", 42_913, || claimed_once(&[BlockRange::at(5, 1); 3]));
}

#[test]
fn two_parties_claim_across_a_word_border() {
    explore("two_parties_claim_across_a_word_border", 2_887, || {
        claimed_once(&[BlockRange::at(62, 3), BlockRange::at(63, 3)]);
    });
}

#[test]
fn three_parties_claim_across_a_word_border() {
    explore_within(BOUND, "three_parties_claim_across_a_word_border", 19_665, || {
        claimed_once(&[BlockRange::at(62, 2), BlockRange::at(63, 2), BlockRange::at(63, 2)]);
    });
}

#[test]
fn a_claim_that_is_given_back_has_one_winner_again() {
    explore("a_claim_that_is_given_back_has_one_winner_again", 3_886, || {
        let block = BlockRange::at(5, 1);
        let map = Arc::new(map(block));
        let copy = Arc::new(UnsafeCell::new(0));
        let party = |fails: bool| {
            let (map, copy) = (map.clone(), copy.clone());
            move || {
                let won = map.claim(block, 1);
                for &run in &won {
                    // SAFETY: as above.
                    copy.with_mut(|copy| unsafe { *copy += 1 });
                    if fails { map.unclaim(run) } else { map.set_copied(run) }
                }
                won.len()
            }
        };
        let others = [thread::spawn(party(true)), thread::spawn(party(false))];
        let mine = party(false)();
        let wins: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
        let (failed, copied) = (wins[0], wins[1] + mine);
        assert!(copied <= 1 && failed + copied > 0);
        assert_eq!(map.all_copied(block), copied == 1);
        // SAFETY: as above.
        assert_eq!(copy.with(|copy| unsafe { *copy }), failed + copied);
    });
}
