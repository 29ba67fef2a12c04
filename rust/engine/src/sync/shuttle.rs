//! With the feature `shuttle`: primitives and threads under a scheduler that decides before each of their steps who goes on,
//! with the interface of the real ones. Atomics keep their layout, so that they can lie in an arena. Only for executions of
//! shuttle; orderings of memory are not explored, for that is loom's part.

pub mod channel;
mod lock;
pub mod thread;
mod time;

use std::fmt;
use std::time::Duration;

pub use ::shuttle::thread_local;
pub use lock::{Condvar, Mutex, MutexGuard, RwLock};
pub use std::sync::Arc;
pub use std::sync::atomic::Ordering;
pub use time::{InTime, Instant};

/// Others may go on here.
fn point() {
    // The name for it where there is no time.
    ::shuttle::thread::sleep(Duration::ZERO);
}

/// A point before what orders other memory. What is only counted needs none: no schedule makes it come out otherwise.
fn point_if_ordering(order: Ordering) {
    if order != Ordering::Relaxed {
        point();
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// As std's, with a scheduling point before each step.
        #[derive(Default)]
        #[repr(transparent)]
        pub struct $name(std::sync::atomic::$name);

        impl $name {
            /// As std's.
            pub const fn new(value: $value) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }

            /// As std's.
            pub fn load(&self, order: Ordering) -> $value {
                point_if_ordering(order);
                self.0.load(order)
            }

            /// As std's.
            pub fn store(&self, value: $value, order: Ordering) {
                point_if_ordering(order);
                self.0.store(value, order);
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! steps {
    ($name:ident, $value:ty, $($step:ident)*) => {
        impl $name {
            $(
                /// As std's.
                pub fn $step(&self, value: $value, order: Ordering) -> $value {
                    point_if_ordering(order);
                    self.0.$step(value, order)
                }
            )*
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
steps!(AtomicBool, bool, swap);
steps!(AtomicU32, u32, swap fetch_add fetch_sub fetch_and fetch_or fetch_max);
steps!(AtomicU64, u64, swap fetch_add fetch_sub fetch_and fetch_or fetch_max);

impl AtomicU64 {
    /// As std's.
    ///
    /// # Errors
    /// The value that was there instead.
    pub fn compare_exchange(&self, now: u64, new: u64, well: Ordering, ill: Ordering) -> Result<u64, u64> {
        point_if_ordering(well);
        self.0.compare_exchange(now, new, well, ill)
    }

    /// As std's, but it fails only if another value is there.
    ///
    /// # Errors
    /// The value that was there instead.
    pub fn compare_exchange_weak(&self, now: u64, new: u64, well: Ordering, ill: Ordering) -> Result<u64, u64> {
        self.compare_exchange(now, new, well, ill)
    }
}

/// As `arc_swap`'s, with a scheduling point before each step.
pub struct ArcSwapOption<T>(arc_swap::ArcSwapOption<T>);

impl<T> ArcSwapOption<T> {
    /// As `arc_swap`'s.
    pub fn empty() -> Self {
        Self(arc_swap::ArcSwapOption::empty())
    }

    /// As `arc_swap`'s.
    pub fn load(&self) -> arc_swap::Guard<Option<Arc<T>>> {
        point();
        self.0.load()
    }

    /// As `arc_swap`'s.
    pub fn load_full(&self) -> Option<Arc<T>> {
        point();
        self.0.load_full()
    }

    /// As `arc_swap`'s.
    pub fn store(&self, value: Option<Arc<T>>) {
        point();
        self.0.store(value);
    }

    /// As `arc_swap`'s.
    pub fn compare_and_swap(
        &self,
        now: &arc_swap::Guard<Option<Arc<T>>>,
        new: Option<Arc<T>>,
    ) -> arc_swap::Guard<Option<Arc<T>>> {
        point();
        self.0.compare_and_swap(now, new)
    }
}
