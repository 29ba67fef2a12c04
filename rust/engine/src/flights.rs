//! Counts the writes in flight, and holds new ones for the cut. Pure state: no I/O, no clock, no thread.
//!
//! `W` is whatever the caller uses to wake somebody: it is stored when somebody must wait and handed back when it is
//! time.

use crate::mutant::planted;
use crate::sync::{AtomicU64, Mutex, Ordering};

const HOLD: u64 = 1 << 63;

/// The writes in flight to one device.
pub struct Flights<W> {
    /// Number of writes in flight, and the hold bit.
    word: AtomicU64,
    waiting: Mutex<Waiting<W>>,
}

struct Waiting<W> {
    /// Writes that came during the hold.
    held: Vec<W>,
    /// Who made the hold, while it waits for the writes in flight to end.
    holder: Option<W>,
}

impl<W> Default for Flights<W> {
    fn default() -> Self {
        Self { word: AtomicU64::new(0), waiting: Mutex::new(Waiting { held: Vec::new(), holder: None }) }
    }
}

impl<W> Flights<W> {
    /// Counts a write in. `false`: a hold is on, the waiter is stored, and the write tries again when it is handed
    /// back.
    #[inline]
    pub fn enter(&self, waiter: impl FnOnce() -> W) -> bool {
        self.try_enter() || self.enter_or_wait(waiter)
    }

    #[inline]
    fn try_enter(&self) -> bool {
        let mut now = self.word.load(Ordering::Relaxed);
        while now & HOLD == 0 {
            match self.word.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    #[cold]
    fn enter_or_wait(&self, waiter: impl FnOnce() -> W) -> bool {
        let mut waiting = self.waiting.lock();
        // `release` clears the bit under this lock, so a hold that is still on will find the waiter.
        if self.try_enter() {
            return true;
        }
        waiting.held.push(waiter());
        false
    }

    /// Counts a write out. Hands back the holder if this was the last write that it waited for.
    #[inline]
    #[must_use]
    pub fn leave(&self) -> Option<W> {
        if self.word.fetch_sub(1, Ordering::AcqRel) == HOLD | 1 {
            let mut waiting = self.waiting.lock();
            // That hold may have been given up meanwhile; whoever holds now waits for other writes.
            if self.word.load(Ordering::Acquire) == HOLD {
                return waiting.holder.take();
            }
        }
        None
    }

    /// Starts a hold. `true`: no write is in flight. `false`: the holder is stored and handed back when the last one
    /// ends. At most one hold at a time.
    pub fn hold(&self, holder: impl FnOnce() -> W) -> bool {
        let mut waiting = self.waiting.lock();
        let before = self.word.fetch_or(HOLD, Ordering::AcqRel);
        debug_assert_eq!(before & HOLD, 0, "one hold at a time");
        if before == 0 || planted("cut-does-not-wait-for-writes-in-flight") {
            return true;
        }
        waiting.holder = Some(holder());
        false
    }

    /// Ends the hold and hands back the writes that came during it.
    #[must_use]
    pub fn release(&self) -> Vec<W> {
        let mut waiting = self.waiting.lock();
        self.word.fetch_and(!HOLD, Ordering::AcqRel);
        waiting.holder = None;
        if planted("held-writes-are-not-woken") {
            return Vec::new();
        }
        std::mem::take(&mut waiting.held)
    }

    /// Whether a hold is on.
    pub fn holding(&self) -> bool {
        self.word.load(Ordering::Relaxed) & HOLD != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_is_handed_back_by_the_last_write() {
        let flights = Flights::default();
        assert!(flights.enter(|| "a") && flights.enter(|| "b"));
        assert!(!flights.hold(|| "cut"));
        assert!(!flights.enter(|| "late"));
        assert_eq!(flights.leave(), None);
        assert_eq!(flights.leave(), Some("cut"));
        assert_eq!(flights.release(), ["late"]);
        assert!(flights.enter(|| "late"));
    }

    #[test]
    fn one_that_left_late_does_not_answer_for_those_of_the_next_hold() {
        let flights = Flights::default();
        assert!(flights.enter(|| "first"));
        assert!(!flights.hold(|| "cut"));
        std::thread::scope(|scope| {
            let mut waiting = flights.waiting.lock();
            let late = scope.spawn(|| flights.leave());
            while flights.word.load(Ordering::Acquire) != HOLD {
                std::thread::yield_now();
            }
            // Before it has the lock, the hold is given up, another write comes in, and another hold waits for that one.
            flights.word.store(HOLD | 1, Ordering::Release);
            waiting.holder = Some("next cut");
            drop(waiting);
            assert_eq!(late.join().unwrap(), None);
        });
        assert_eq!(flights.leave(), Some("next cut"));
    }

    #[test]
    fn a_hold_with_nothing_in_flight_is_quiet_at_once() {
        let flights = Flights::default();
        assert!(flights.enter(|| 0));
        assert_eq!(flights.leave(), None);
        assert!(flights.hold(|| 1) && flights.holding());
        assert!(flights.release().is_empty() && !flights.holding());
    }
}
