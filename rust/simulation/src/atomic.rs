//! Atomics before each of whose operations another thread may run. Laid out as the standard library's are.

use std::sync::atomic::Ordering;

use crate::scheduler::point;

macro_rules! atomic {
    ($name:ident, $value:ty, [$($change:ident),*]) => {
        /// The standard library's, with a scheduling point before each operation.
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub struct $name(std::sync::atomic::$name);

        impl $name {
            /// As the standard library's.
            pub const fn new(value: $value) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }

            /// As the standard library's.
            #[inline]
            pub fn load(&self, order: Ordering) -> $value {
                point();
                self.0.load(order)
            }

            /// As the standard library's.
            #[inline]
            pub fn store(&self, value: $value, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            /// As the standard library's.
            ///
            /// # Errors
            /// The value that was there, if it was not `current`.
            #[inline]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                point();
                self.0.compare_exchange(current, new, success, failure)
            }

            /// As the standard library's; it never fails without a reason.
            ///
            /// # Errors
            /// The value that was there, if it was not `current`.
            #[inline]
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }

            $(
                /// As the standard library's.
                #[inline]
                pub fn $change(&self, value: $value, order: Ordering) -> $value {
                    point();
                    self.0.$change(value, order)
                }
            )*
        }
    };
}

atomic!(AtomicBool, bool, [swap, fetch_or, fetch_and]);
atomic!(AtomicU32, u32, [swap, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_max]);
atomic!(AtomicU64, u64, [swap, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_max]);
