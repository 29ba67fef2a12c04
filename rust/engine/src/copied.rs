//! The two bits of every block, claimed and copied, in lock-free bitmaps.
//!
//! A block on the list starts as neither. Whoever wins its claim, and nobody else, may copy it. "Copied" is stored
//! inverted, as `pending`, so that a device that is mostly off the list needs no memory for it.

use std::ops::Deref;

use crate::arena::Words;
pub use crate::arena::words_for;
use crate::geometry::BlockRange;
use crate::mutant::planted;
use crate::sync::{AtomicU64, Ordering};

/// The maps; `W` is the memory that they live in.
pub struct CopiedMap<W = Words> {
    /// Set: on the list and not yet copied.
    pending: W,
    /// Set: some party has the right to copy it, or has copied it.
    claimed: W,
}

/// The words that a run touches, each with the mask of its bits.
fn masks(blocks: BlockRange) -> impl Iterator<Item = (usize, u64)> {
    let words = if blocks.is_empty() { 0..0 } else { blocks.start / 64..(blocks.end - 1) / 64 + 1 };
    words.map(move |word| {
        let low = blocks.start.saturating_sub(word * 64).min(63);
        let high = (blocks.end - word * 64).min(64);
        (word as usize, (!0u64 << low) & (!0u64 >> (64 - high)))
    })
}

impl<W: Deref<Target = [AtomicU64]>> CopiedMap<W> {
    /// Maps over two zeroed pieces of memory: nothing is on the list.
    pub fn new(pending: W, claimed: W) -> Self {
        Self { pending, claimed }
    }

    /// Puts blocks on the list; returns how many were not on it before. Only before the cut.
    pub fn list(&self, blocks: BlockRange) -> u32 {
        self.prepare_claims(blocks);
        masks(blocks)
            .map(|(word, mask)| (mask & !self.pending[word].fetch_or(mask, Ordering::AcqRel)).count_ones())
            .sum()
    }

    /// Finds memory for the claims of blocks on the list before a write needs it.
    pub fn prepare_claims(&self, blocks: BlockRange) {
        for (word, _) in masks(blocks) {
            // A store that changes nothing.
            let _ = self.claimed[word].compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Takes blocks off the list; returns how many were on it. Only before the cut.
    pub fn unlist(&self, blocks: BlockRange) -> u32 {
        masks(blocks)
            .map(|(word, mask)| (mask & self.pending[word].fetch_and(!mask, Ordering::AcqRel)).count_ones())
            .sum()
    }

    /// Whether a write to these blocks may go: none of them is pending.
    #[inline]
    pub fn all_copied(&self, blocks: BlockRange) -> bool {
        let last = blocks.end - u32::from(blocks.len() > 1 && planted("last-block-of-a-write-is-forgotten"));
        let blocks = BlockRange { end: last, ..blocks };
        masks(blocks).all(|(word, mask)| self.pending[word].load(Ordering::Acquire) & mask == 0)
    }

    /// The first block that is not yet copied.
    pub fn first_pending(&self, blocks: BlockRange) -> Option<u32> {
        masks(blocks).find_map(|(word, mask)| {
            let bits = self.pending[word].load(Ordering::Acquire) & mask;
            (bits != 0).then(|| word as u32 * 64 + bits.trailing_zeros())
        })
    }

    /// Whether some block is neither copied nor claimed.
    pub fn any_unclaimed(&self, blocks: BlockRange) -> bool {
        masks(blocks).any(|(word, mask)| {
            self.pending[word].load(Ordering::Acquire) & !self.claimed[word].load(Ordering::Acquire) & mask != 0
        })
    }

    /// Claims up to `most` of the blocks, lowest first, and returns the runs that the caller won.
    pub fn claim(&self, blocks: BlockRange, most: u32) -> Vec<BlockRange> {
        let mut runs: Vec<BlockRange> = Vec::new();
        let mut left = most;
        for (word, mask) in masks(blocks) {
            if left == 0 {
                break;
            }
            let pending = self.pending[word].load(Ordering::Acquire);
            let wanted = lowest(pending & !self.claimed[word].load(Ordering::Acquire) & mask, left);
            if wanted == 0 {
                continue;
            }
            // A bit that was not claimed until now cannot have been copied since: only its claimer copies it.
            let won = wanted & !self.claimed[word].fetch_or(wanted, Ordering::AcqRel);
            left -= won.count_ones();
            push_runs(&mut runs, word as u32 * 64, won);
        }
        runs
    }

    /// Gives claims back: the blocks were not copied. Only by the holder of the claims.
    pub fn unclaim(&self, blocks: BlockRange) {
        for (word, mask) in masks(blocks) {
            self.claimed[word].fetch_and(!mask, Ordering::AcqRel);
        }
    }

    /// Marks blocks as copied. Only by the holder of the claims, after the bytes are safe.
    pub fn set_copied(&self, blocks: BlockRange) {
        for (word, mask) in masks(blocks) {
            self.pending[word].fetch_and(!mask, Ordering::AcqRel);
        }
    }

    /// How many of the blocks are not yet copied.
    pub fn count_pending(&self, blocks: BlockRange) -> u32 {
        masks(blocks).map(|(word, mask)| (self.pending[word].load(Ordering::Relaxed) & mask).count_ones()).sum()
    }
}

/// The lowest `most` set bits.
fn lowest(mut bits: u64, most: u32) -> u64 {
    while bits.count_ones() > most {
        bits &= !(1 << (63 - bits.leading_zeros()));
    }
    bits
}

/// Appends the runs of set bits of one word, joining a run that continues the last one.
fn push_runs(runs: &mut Vec<BlockRange>, base: u32, mut bits: u64) {
    while bits != 0 {
        let low = bits.trailing_zeros();
        let count = (bits >> low).trailing_ones();
        match runs.last_mut() {
            Some(last) if last.end == base + low => last.end += count,
            _ => runs.push(BlockRange::at(base + low, count)),
        }
        if low + count == 64 {
            return;
        }
        bits &= !0 << (low + count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn map(blocks: u32) -> CopiedMap<Vec<AtomicU64>> {
        let words = || (0..words_for(blocks)).map(|_| AtomicU64::new(0)).collect();
        CopiedMap::new(words(), words())
    }

    fn blocks_of(runs: &[BlockRange]) -> BTreeSet<u32> {
        runs.iter().flat_map(|run| run.blocks()).collect()
    }

    proptest! {
        /// Against sets of numbers: list, claim with a limit, copy, unclaim.
        #[test]
        fn agrees_with_sets(steps in prop::collection::vec((0u8..5, 0u32..200, 0u32..130, 1u32..90), 1..60)) {
            let map = map(330);
            let (mut pending, mut claimed) = (BTreeSet::new(), BTreeSet::new());
            for (kind, start, count, most) in steps {
                let run = BlockRange::at(start, count);
                match kind {
                    0 => { map.list(run); pending.extend(run.blocks()); }
                    1 => {
                        let unclaimed = run.blocks().filter(|b| pending.contains(b) && !claimed.contains(b));
                        let expected: BTreeSet<u32> = unclaimed.take(most as usize).collect();
                        let won = map.claim(run, most);
                        prop_assert!(won.windows(2).all(|pair| pair[0].end < pair[1].start));
                        prop_assert_eq!(blocks_of(&won), expected.clone());
                        claimed.extend(expected);
                    }
                    2 => { map.set_copied(run); pending.retain(|b| !(run.start..run.end).contains(b)); }
                    3 => { map.unclaim(run); claimed.retain(|b| !(run.start..run.end).contains(b)); }
                    _ => {}
                }
                prop_assert_eq!(map.all_copied(run), run.blocks().all(|b| !pending.contains(&b)));
                prop_assert_eq!(map.first_pending(run), run.blocks().find(|b| pending.contains(b)));
                let unclaimed = run.blocks().any(|b| pending.contains(&b) && !claimed.contains(&b));
                prop_assert_eq!(map.any_unclaimed(run), unclaimed);
                prop_assert_eq!(map.count_pending(run) as usize, run.blocks().filter(|b| pending.contains(b)).count());
            }
        }
    }

    #[test]
    fn a_claim_has_one_winner_among_threads() {
        let map = map(4096);
        map.list(BlockRange::at(0, 4096));
        let wins: Vec<BTreeSet<u32>> = std::thread::scope(|scope| {
            let claimers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| blocks_of(&map.claim(BlockRange::at(0, 4096), !0)))).collect();
            claimers.into_iter().map(|claimer| claimer.join().unwrap()).collect()
        });
        assert_eq!(wins.iter().map(BTreeSet::len).sum::<usize>(), 4096);
        assert_eq!(wins.iter().flatten().collect::<BTreeSet<_>>().len(), 4096);
    }
}
