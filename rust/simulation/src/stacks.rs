//! Stacks of simulated threads: made once, used again.

use std::cell::RefCell;

use corosensei::stack::DefaultStack;

/// Enough for the deepest calls of the engine in a build without optimisation.
const BYTES: usize = 512 << 10;

thread_local! {
    static SPARE: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn take() -> DefaultStack {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| DefaultStack::new(BYTES).expect("there is memory for a stack"))
}

pub(crate) fn give_back(stack: DefaultStack) {
    SPARE.with_borrow_mut(|spare| spare.push(stack));
}
