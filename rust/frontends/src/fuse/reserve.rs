//! Threads that rest until others are held up by slow I/O, and then read requests in their place.
//!
//! On a quick device more threads than processors only wake each other.

use parking_lot::{Condvar, Mutex};

/// Where the threads of one connection rest.
#[derive(Default)]
pub(super) struct Reserve {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    resting: usize,
    /// How many of those have been called and did not get up yet.
    called: usize,
    dismissed: bool,
}

impl Reserve {
    /// Rests until called or dismissed.
    pub(super) fn rest(&self) {
        let mut state = self.state.lock();
        state.resting += 1;
        while state.called == 0 && !state.dismissed {
            self.changed.wait(&mut state);
        }
        state.resting -= 1;
        state.called = state.called.saturating_sub(1);
    }

    /// Calls one of those who rest, if any does.
    pub(super) fn call(&self) {
        let mut state = self.state.lock();
        if state.called < state.resting {
            state.called += 1;
            self.changed.notify_one();
        }
    }

    /// Nobody rests any more.
    pub(super) fn dismiss(&self) {
        self.state.lock().dismissed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Long enough for any machine; only a failure takes it.
    const LONG: Duration = Duration::from_secs(60);

    /// Runs `check` beside so many threads that rest once each, and tell when they got up. All are dismissed at the end.
    fn beside(count: usize, check: impl FnOnce(&Reserve, &Receiver<()>)) {
        let reserve = Reserve::default();
        let (tell, told) = channel();
        thread::scope(|scope| {
            for _ in 0..count {
                let (reserve, tell) = (&reserve, tell.clone());
                scope.spawn(move || {
                    reserve.rest();
                    tell.send(()).unwrap();
                });
            }
            while reserve.state.lock().resting < count {
                thread::yield_now();
            }
            check(&reserve, &told);
            reserve.dismiss();
        });
    }

    #[test]
    fn a_call_gets_up_one() {
        beside(3, |reserve, told| {
            reserve.call();
            told.recv_timeout(LONG).unwrap();
            let state = reserve.state.lock();
            assert_eq!((state.resting, state.called), (2, 0));
        });
    }

    #[test]
    fn calls_get_up_as_many_and_no_more_than_rest() {
        beside(2, |reserve, told| {
            for _ in 0..5 {
                reserve.call();
            }
            told.recv_timeout(LONG).unwrap();
            told.recv_timeout(LONG).unwrap();
            let state = reserve.state.lock();
            assert_eq!((state.resting, state.called), (0, 0));
        });
    }

    #[test]
    fn a_call_to_nobody_is_not_kept_for_later() {
        let reserve = Reserve::default();
        reserve.call();
        assert_eq!(reserve.state.lock().called, 0);
    }

    #[test]
    fn after_the_dismissal_nobody_rests() {
        let reserve = Reserve::default();
        reserve.dismiss();
        reserve.rest();
        assert_eq!(reserve.state.lock().resting, 0);
    }
}
