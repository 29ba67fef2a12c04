//! How far ahead the space of a file is allocated that is written about from front to back: the file system does once, and
//! in one piece, what it would do for each write else. Only reckons; `file.rs` allocates.

use crate::geometry::ByteRange;

/// Writers that go side by side are no further apart than this, in bytes; nor is data that counts as one stretch.
const NEAR: u64 = 4 << 20;
/// The most bytes that are allocated at once.
const MOST: u64 = 64 << 20;

/// What is allocated of one file, as far as it is remembered.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    window: ByteRange,
    before: ByteRange,
}

impl Ahead {
    /// What to allocate before a write to `range` of a file of `size` bytes; `None` if that was allocated. Each time that
    /// data goes on where it was expected, twice as much.
    pub fn window_for(&mut self, range: ByteRange, size: u64) -> Option<ByteRange> {
        let window = self.window;
        if self.within(range).any(|part| part == range) {
            return None;
        }
        if range.start < window.start && window.start - range.start <= NEAR {
            return Some(range);
        }
        let goes_on = window.start <= range.start && range.start <= window.end + NEAR;
        let step = if goes_on { (2 * window.len().max(range.len())).min(MOST) } else { 0 };
        self.before = window;
        self.window = ByteRange { start: range.start, end: range.end.max(size.min(range.start + step)) };
        Some(self.window)
    }

    /// There was room for `range` only.
    pub fn narrow(&mut self, range: ByteRange) {
        self.window = range;
    }

    /// The parts of `range` that were allocated ahead.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        [self.before, self.window].into_iter().filter_map(move |window| {
            let (start, end) = (range.start.max(window.start), range.end.min(window.end));
            (start < end).then_some(ByteRange { start, end })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 1024 * MIB;

    fn extent(number: u64) -> ByteRange {
        ByteRange { start: number * MIB, end: (number + 1) * MIB }
    }

    #[test]
    fn the_first_hundred_extents_take_few_steps_also_a_little_out_of_order() {
        let mut ahead = Ahead::default();
        let order = (0..100).map(|number: u64| number ^ 1);
        let steps: Vec<_> = order.filter_map(|number| ahead.window_for(extent(number), SIZE)).collect();
        assert!(steps.len() < 10, "{steps:?}");
        assert!(steps.iter().all(|step| step.len() <= MOST));
        let is_allocated =
            |number| steps.iter().any(|s| s.start <= extent(number).start && extent(number).end <= s.end);
        assert!((0..100).all(is_allocated), "{steps:?}");
    }

    #[test]
    fn data_here_and_there_is_allocated_for_itself() {
        let mut ahead = Ahead::default();
        for number in (10..1000).step_by(10) {
            assert_eq!(ahead.window_for(extent(number), SIZE), Some(extent(number)));
        }
    }

    #[test]
    fn it_ends_with_the_file() {
        let mut ahead = Ahead::default();
        let ends = (0..10).filter_map(|number| ahead.window_for(extent(number), 10 * MIB)).map(|window| window.end);
        assert_eq!(ends.max(), Some(10 * MIB));
    }

    #[test]
    fn what_stays_zero_is_known_if_it_was_allocated_in_this_window_or_the_last() {
        let mut ahead = Ahead::default();
        let windows: Vec<_> = (0..7).filter_map(|number| ahead.window_for(extent(number), SIZE)).collect();
        let [.., before, last] = windows[..] else { panic!("{windows:?}") };
        let all = ByteRange { start: 0, end: SIZE };
        assert_eq!(ahead.within(all).collect::<Vec<_>>(), [before, last]);
        assert_eq!(ahead.within(ByteRange { start: last.end, end: SIZE }).count(), 0);
    }
}
