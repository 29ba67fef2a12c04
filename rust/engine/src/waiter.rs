//! Who waits at the gate, and how it is woken: a blocked thread, or a parked request that some thread will resume.

use crate::sync::{Arc, Condvar, Instant, Mutex, thread_local};

/// What a woken party is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ask the gate again.
    AskAgain,
    /// The write fails with this errno.
    Fail(i32),
}

/// Somebody who waits.
pub struct Waiter {
    since: Option<Instant>,
    wake: Wake,
}

enum Wake {
    Thread(Arc<Parker>),
    Request(Box<dyn FnOnce(Outcome) + Send>),
}

impl Waiter {
    /// A thread that sleeps on `parker`. `since` is when its write was first suspended; `None` has no deadline.
    pub fn thread(parker: &Arc<Parker>, since: Option<Instant>) -> Self {
        Self { since, wake: Wake::Thread(parker.clone()) }
    }

    /// A parked request; `resume` must not block.
    pub fn request(since: Option<Instant>, resume: Box<dyn FnOnce(Outcome) + Send>) -> Self {
        Self { since, wake: Wake::Request(resume) }
    }

    /// When its write was first suspended.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Wakes it.
    pub fn wake(self, outcome: Outcome) {
        match self.wake {
            Wake::Thread(parker) => parker.unpark(outcome),
            Wake::Request(resume) => resume(outcome),
        }
    }
}

/// Tells all of them to ask again.
pub fn wake_all(waiters: impl IntoIterator<Item = Waiter>) {
    for waiter in waiters {
        waiter.wake(Outcome::AskAgain);
    }
}

/// Where one thread sleeps until it is told an outcome.
#[derive(Default)]
pub struct Parker {
    outcome: Mutex<Option<Outcome>>,
    told: Condvar,
}

thread_local! {
    static OWN: Arc<Parker> = Arc::new(Parker::default());
}

impl Parker {
    /// The parker of this thread. Only for waits that always end by being told, so that no stale word is left behind.
    pub fn of_this_thread() -> Arc<Self> {
        OWN.with(Arc::clone)
    }

    /// Sleeps until told.
    pub fn park(&self) -> Outcome {
        let mut outcome = self.outcome.lock();
        loop {
            match outcome.take() {
                Some(told) => return told,
                None => self.told.wait(&mut outcome),
            }
        }
    }

    /// Sleeps until told or until `deadline`.
    pub fn park_until(&self, deadline: Instant) -> Option<Outcome> {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() && !self.told.wait_until(&mut outcome, deadline).timed_out() {}
        outcome.take()
    }

    fn unpark(&self, outcome: Outcome) {
        *self.outcome.lock() = Some(outcome);
        self.told.notify_one();
    }
}
