//! The virtual clock's instants, with the API of `std::time::Instant`.

use std::ops::{Add, Sub};
use std::time::Duration;

use crate::scheduler;

/// An instant of the simulation under way. Outside one the clock stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

/// The clock does not begin at 0, so that there are instants before the beginning, as in a real machine.
const UPTIME: Duration = Duration::from_secs(1_000_000);

impl Instant {
    /// Now.
    pub fn now() -> Self {
        Self(UPTIME + scheduler::elapsed())
    }

    /// The time since then.
    pub fn elapsed(&self) -> Duration {
        Self::now().duration_since(*self)
    }

    /// The time from `earlier` to this instant, 0 if it is later.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// So much earlier, if the clock was running.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(duration).map(Self)
    }

    pub(crate) fn since_beginning(self) -> Duration {
        self.0.saturating_sub(UPTIME)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}
