//! The container's own places on the device: runs of blocks that no program may write while the backup lasts.
//!
//! Every write asks, so a backup whose container is elsewhere must pay one comparison, and one with it inside little more.

use crate::geometry::BlockRange;
use crate::mutant::planted;

/// A set of runs of blocks; empty if the container is elsewhere.
#[derive(Debug, Clone)]
pub struct Reserved {
    /// From the first block to the last, whatever lies between.
    span: BlockRange,
    /// Ascending and apart.
    runs: Vec<BlockRange>,
}

impl Reserved {
    /// No block.
    pub fn none() -> Self {
        Self::new(Vec::new())
    }

    /// The blocks of all `runs`, in any order.
    pub fn new(mut runs: Vec<BlockRange>) -> Self {
        runs.retain(|run| !run.is_empty());
        runs.sort_unstable();
        runs.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
        let span = match (runs.first(), runs.last()) {
            (Some(first), Some(last)) => BlockRange { start: first.start, end: last.end },
            _ => BlockRange::at(0, 0),
        };
        Self { span, runs }
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, ascending and apart.
    pub fn runs(&self) -> &[BlockRange] {
        &self.runs
    }

    /// Whether some block of `blocks` is in it.
    #[inline]
    pub fn touches(&self, blocks: BlockRange) -> bool {
        blocks.overlaps(self.span) && self.search(blocks) && !planted("trespass-goes-unnoticed")
    }

    fn search(&self, blocks: BlockRange) -> bool {
        let next = self.runs.partition_point(|run| run.end <= blocks.start);
        self.runs.get(next).is_some_and(|run| run.overlaps(blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against block numbers one by one.
        #[test]
        fn agrees_with_numbers(
            runs in prop::collection::vec((0u32..100, 0u32..9), 0..12),
            asked in prop::collection::vec((0u32..110, 1u32..12), 1..20),
        ) {
            let runs: Vec<_> = runs.into_iter().map(|(start, count)| BlockRange::at(start, count)).collect();
            let reserved = Reserved::new(runs.clone());
            prop_assert!(reserved.runs().windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(reserved.is_empty(), runs.iter().all(|run| run.is_empty()));
            for (start, count) in asked {
                let blocks = BlockRange::at(start, count);
                let expected = blocks.blocks().any(|block| runs.iter().any(|run| run.blocks().contains(&block)));
                prop_assert_eq!(reserved.touches(blocks), expected);
            }
        }
    }
}
