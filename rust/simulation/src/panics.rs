//! Panics of simulated threads: kept for the report, and not printed, whoever catches them.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOKED: Once = Once::new();

/// From now on a panic is kept if `inside` says that it is a simulated thread's.
pub(crate) fn keep(inside: fn() -> bool) {
    HOOKED.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !inside() {
                return others(info);
            }
            FIRST.with_borrow_mut(|first| {
                first.get_or_insert_with(|| info.to_string());
            });
        }));
    });
}

/// The first panic since this was asked last.
pub(crate) fn take() -> Option<String> {
    FIRST.take()
}
