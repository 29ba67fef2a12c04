//! The list: which blocks are subject to a backup, as a compressed set that the manifest records.

use roaring::RoaringBitmap;

use crate::geometry::BlockRange;

/// A set of block numbers.
pub type BlockList = RoaringBitmap;

/// The blocks of a list as maximal runs, ascending.
pub fn runs(list: &BlockList) -> impl Iterator<Item = BlockRange> + '_ {
    let mut iter = list.iter();
    std::iter::from_fn(move || iter.next_range().map(|run| BlockRange { start: *run.start(), end: run.end() + 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_maximal_and_ascending() {
        let mut list = BlockList::new();
        for run in [70_000..70_005, 3..7, 7..9] {
            list.insert_range(run);
        }
        list.remove(70_002);
        let expected = [BlockRange::at(3, 6), BlockRange::at(70_000, 2), BlockRange::at(70_003, 2)];
        assert_eq!(runs(&list).collect::<Vec<_>>(), expected);
    }
}
