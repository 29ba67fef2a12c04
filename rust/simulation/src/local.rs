//! Thread-locals of simulated threads: all share one OS thread, so the real ones would be everybody's.

use std::rc::Rc;

use crate::scheduler;

/// One value for each simulated thread.
pub struct LocalKey<T: 'static> {
    make: fn() -> T,
}

impl<T: 'static> LocalKey<T> {
    /// For [`crate::thread_local`].
    pub const fn new(make: fn() -> T) -> Self {
        Self { make }
    }

    /// Shows this thread's value, which is made the first time. Outside a simulation every look has one of its own.
    pub fn with<R>(&'static self, look: impl FnOnce(&T) -> R) -> R {
        let key = std::ptr::from_ref(self).addr();
        let made = || Rc::new((self.make)());
        let value =
            scheduler::local(key, || made()).map_or_else(made, |any| any.downcast().expect("a key has one type"));
        look(&value)
    }
}

/// As the standard library's, for simulated threads.
#[macro_export]
macro_rules! thread_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident : $type:ty = $value:expr;)*) => {
        $($(#[$attribute])* $visibility static $name: $crate::LocalKey<$type> = $crate::LocalKey::new(|| $value);)*
    };
}
