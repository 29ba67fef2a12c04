//! The limit on what one connection keeps in memory: payloads, parked writes, replies that were not sent yet.

use parking_lot::{Condvar, Mutex};

/// A number of bytes that may be taken.
pub(super) struct Budget {
    limit: usize,
    taken: Mutex<usize>,
    given: Condvar,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::new(0), given: Condvar::new() }
    }

    /// Takes `bytes` if that much is left, or nobody has any.
    pub(super) fn try_take(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock();
        let fits = *taken == 0 || *taken + bytes <= self.limit;
        *taken += if fits { bytes } else { 0 };
        fits
    }

    /// Takes `bytes`; waits until that much is left, or nobody has any.
    pub(super) fn take(&self, bytes: usize) {
        let mut taken = self.taken.lock();
        while *taken > 0 && *taken + bytes > self.limit {
            self.given.wait(&mut taken);
        }
        *taken += bytes;
    }

    pub(super) fn give(&self, bytes: usize) {
        *self.taken.lock() -= bytes;
        self.given.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_asks_for_more_than_is_left_waits_until_it_is_given_back() {
        let budget = Budget::new(100);
        budget.take(60);
        assert!(!budget.try_take(41));
        assert!(budget.try_take(40));
        thread::scope(|scope| {
            scope.spawn(|| budget.take(100));
            budget.give(60);
            budget.give(40);
        });
        assert!(!budget.try_take(1));
        budget.give(100);
        assert!(budget.try_take(1000), "what is larger than the limit goes alone");
    }
}
