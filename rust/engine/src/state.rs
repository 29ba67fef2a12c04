//! The states of a backup, and the one table of what can follow what.

use serde::Serialize;

use crate::error::Error;
use crate::sync::{Condvar, Instant, Mutex};
use std::time::Duration;

/// How long to wait, after the end of a backup, for I/O that does not come back.
const CLEAN_UP_PATIENCE: Duration = Duration::from_secs(5);

/// The state of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Prepared; the cut has not been made.
    Created,
    /// Between the cut and the end.
    Active,
    /// Published: the destination equals the device at the cut.
    Complete,
    /// Ended by a failure; the first cause is known.
    Broken,
    /// Ended by the user.
    Cancelled,
}

impl State {
    /// Every state, for tests and tables.
    pub const ALL: [Self; 5] = [Self::Created, Self::Active, Self::Complete, Self::Broken, Self::Cancelled];

    /// Whether nothing can follow.
    pub fn is_end(self) -> bool {
        !TRANSITIONS.iter().any(|&(from, _)| from == self)
    }
}

/// What can follow what. Anything else cannot happen.
const TRANSITIONS: [(State, State); 6] = [
    (State::Created, State::Active),
    (State::Created, State::Broken),
    (State::Created, State::Cancelled),
    (State::Active, State::Complete),
    (State::Active, State::Broken),
    (State::Active, State::Cancelled),
];

/// The life of one backup: its state, the first cause of its end, and whether everything is cleaned up after it.
pub struct Life {
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    state: State,
    cause: Option<Error>,
    /// Publishing has begun: only its outcome decides now.
    publishing: bool,
    ended_at: Option<Instant>,
    cleaned_up: bool,
}

impl Default for Life {
    fn default() -> Self {
        let now = Now { state: State::Created, cause: None, publishing: false, ended_at: None, cleaned_up: false };
        Self { now: Mutex::new(now), changed: Condvar::new() }
    }
}

impl Life {
    /// The present state.
    pub fn state(&self) -> State {
        self.now.lock().state
    }

    /// The first cause of a broken or cancelled backup.
    pub fn cause(&self) -> Option<Error> {
        self.now.lock().cause.clone()
    }

    /// When it ended.
    pub fn ended_at(&self) -> Option<Instant> {
        self.now.lock().ended_at
    }

    /// Something else went wrong after the end: added to what is shown of the first cause.
    pub fn also(&self, error: &Error) {
        if let Some(cause) = &mut self.now.lock().cause {
            cause.reason = format!("{}; also: {error}", cause.reason);
        }
    }

    /// Moves on to `to`, with the cause of an end that is no success. Returns the state before, or `None` if the table
    /// does not allow it or publishing has begun; then nothing changes.
    pub fn go(&self, to: State, cause: Option<Error>) -> Option<State> {
        let mut now = self.now.lock();
        if now.publishing {
            return None;
        }
        self.step(&mut now, to, cause)
    }

    fn step(&self, now: &mut Now, to: State, cause: Option<Error>) -> Option<State> {
        if !TRANSITIONS.contains(&(now.state, to)) {
            return None;
        }
        let before = std::mem::replace(&mut now.state, to);
        now.cause = cause;
        now.ended_at = to.is_end().then(Instant::now);
        self.changed.notify_all();
        Some(before)
    }

    /// From now on only `published` ends this backup. `false`: it has ended already.
    pub fn begin_publishing(&self) -> bool {
        let mut now = self.now.lock();
        now.publishing = now.state == State::Active;
        now.publishing
    }

    /// Publishing came out like this.
    pub fn published(&self, outcome: Result<(), Error>) -> State {
        let mut now = self.now.lock();
        now.publishing = false;
        match outcome {
            Ok(()) => self.step(&mut now, State::Complete, None),
            Err(error) => self.step(&mut now, State::Broken, Some(error)),
        };
        now.state
    }

    /// Waits for the end and the cleaning up; `false` if the deadline came first. The cleaning up is not waited for
    /// longer than `CLEAN_UP_PATIENCE` after the end: I/O that hangs must not hang the backup's owner too.
    pub fn wait_for_clean_up(&self, deadline: Option<Instant>) -> bool {
        if !self.wait(deadline, |state, _| state.is_end()) {
            return false;
        }
        let patience = self.ended_at().unwrap_or_else(Instant::now) + CLEAN_UP_PATIENCE;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        self.wait(Some(until), |_, cleaned_up| cleaned_up) || until == patience
    }

    /// Nothing is left to clean up.
    pub fn cleaned_up(&self) {
        self.now.lock().cleaned_up = true;
        self.changed.notify_all();
    }

    /// Somebody should look at the state again.
    pub fn nudge(&self) {
        let _now = self.now.lock();
        self.changed.notify_all();
    }

    /// Sleeps until `done` holds, which is asked after every change with the state and whether all is cleaned up, or
    /// until the deadline. Returns whether it holds.
    pub fn wait(&self, deadline: Option<Instant>, mut done: impl FnMut(State, bool) -> bool) -> bool {
        let mut now = self.now.lock();
        while !done(now.state, now.cleaned_up) {
            match deadline {
                None => self.changed.wait(&mut now),
                Some(deadline) if Instant::now() >= deadline => return false,
                Some(deadline) => {
                    self.changed.wait_until(&mut now, deadline);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::sync::{AtomicBool, Ordering};

    fn reach(state: State) -> Life {
        let life = Life::default();
        let path: &[State] = match state {
            State::Created => &[],
            State::Active => &[State::Active],
            end => &[State::Active, end],
        };
        for &step in path {
            life.go(step, None).unwrap();
        }
        life
    }

    #[test]
    fn only_the_table_happens() {
        for from in State::ALL {
            for to in State::ALL {
                let allowed = matches!(
                    (from, to),
                    (State::Created, State::Active | State::Broken | State::Cancelled)
                        | (State::Active, State::Complete | State::Broken | State::Cancelled)
                );
                let life = reach(from);
                assert_eq!(life.go(to, None), allowed.then_some(from), "{from:?} -> {to:?}");
                assert_eq!(life.state(), if allowed { to } else { from });
            }
        }
    }

    #[test]
    fn the_first_cause_stays() {
        let life = reach(State::Active);
        let error = |text: &str| Some(Error::new(ErrorKind::Destination, text, ""));
        life.go(State::Broken, error("first"));
        life.go(State::Broken, error("second"));
        assert_eq!(life.cause().unwrap().operation, "first");
    }

    #[test]
    fn an_end_that_is_not_cleaned_up_is_waited_for_until_the_deadline() {
        let life = reach(State::Cancelled);
        assert!(!life.wait_for_clean_up(Some(Instant::now())));
        life.cleaned_up();
        assert!(life.wait_for_clean_up(Some(Instant::now())));
    }

    #[test]
    fn nothing_comes_between_the_end_of_publishing_and_its_outcome() {
        for _ in 0..300 {
            let (life, cancelling) = (reach(State::Active), AtomicBool::new(false));
            assert!(life.begin_publishing());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while life.state() == State::Active {
                        life.go(State::Cancelled, None);
                        cancelling.store(true, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                });
                while !cancelling.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                assert_eq!(life.published(Ok(())), State::Complete);
            });
        }
    }

    #[test]
    fn a_cancel_during_publishing_is_too_late() {
        let life = reach(State::Active);
        assert!(life.begin_publishing());
        assert_eq!(life.go(State::Cancelled, None), None);
        assert_eq!(life.published(Ok(())), State::Complete);
        assert!(!reach(State::Cancelled).begin_publishing());
    }
}
