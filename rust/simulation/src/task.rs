//! One simulated thread: its stack, what it waits for, and its thread-locals.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};

use crate::stacks;

pub(crate) type Switch = Yielder<(), ()>;

pub(crate) struct Task {
    pub(crate) name: String,
    /// Taken out while it runs.
    pub(crate) coroutine: Option<Coroutine<(), (), (), DefaultStack>>,
    /// Where it can be switched; null before it first runs.
    pub(crate) switch: *const Switch,
    /// What it waits for.
    pub(crate) waits: Option<&'static str>,
    /// Counts its waits, so that the timer of an earlier one does not end a later one.
    pub(crate) wait: u64,
    /// The highest of those who can run goes on, where the scheduler has favourites.
    pub(crate) favour: u64,
    /// By the address of the key.
    pub(crate) locals: Vec<(usize, Rc<dyn Any>)>,
}

impl Task {
    /// A thread that will do `work`, which is told where it can be switched.
    pub(crate) fn new(name: String, favour: u64, work: Box<dyn FnOnce(&Switch)>) -> Self {
        let body = move |switch: &Switch, ()| {
            // The panic has been kept; nothing may unwind beyond the stack.
            let _ = catch_unwind(AssertUnwindSafe(|| work(switch)));
        };
        let coroutine = Some(Coroutine::with_stack(stacks::take(), body));
        Self { name, coroutine, switch: std::ptr::null(), waits: None, wait: 0, favour, locals: Vec::new() }
    }

    /// The thread is no more: what is on its stack is neither used nor dropped, as when a process is killed.
    pub(crate) fn vanish(self) {
        let Some(mut coroutine) = self.coroutine else { return };
        if !coroutine.done() {
            // SAFETY: nothing runs on this stack again; what lies on it is forgotten, and only its heap memory is lost. No
            // other thread of the simulation that might borrow from it runs any more either.
            unsafe { coroutine.force_reset() };
        }
        stacks::give_back(coroutine.into_stack());
    }
}
