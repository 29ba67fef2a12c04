//! Condition variables with the API of `parking_lot`: no wake-up without a reason, and any of the waiting may be the one.

use crate::clock::Instant;
use crate::lock::MutexGuard;
use crate::scheduler::{point, wait, wake};

/// Where threads wait for a change of what a lock protects.
#[derive(Debug, Default)]
pub struct Condvar {
    /// Only for its address.
    _place: std::sync::atomic::AtomicU8,
}

/// How a wait with a limit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time came first.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// One where nobody waits.
    pub const fn new() -> Self {
        Self { _place: std::sync::atomic::AtomicU8::new(0) }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Waits to be told.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        MutexGuard::without(guard, || {
            wait(self.address(), "a condition", None);
        });
    }

    /// Waits to be told, until `deadline`.
    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        let mut told = false;
        MutexGuard::without(guard, || {
            told = wait(self.address(), "a condition, for a time", Some(deadline.since_beginning()));
        });
        WaitTimeoutResult(!told)
    }

    /// Tells one.
    pub fn notify_one(&self) {
        point();
        wake(self.address(), false);
    }

    /// Tells all.
    pub fn notify_all(&self) {
        point();
        wake(self.address(), true);
    }
}
