//! Time under shuttle: it stands still while somebody has something to do, and goes on to the next deadline when all wait. With
//! haste it does so now and then all the same, as if the machine were slow. So deadlines are explored, and no run is endless.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::shuttle::current::TaskId;
use ::shuttle::scheduler::{Schedule, Scheduler, Task};

// An execution has one thread of the system, whatever number of its own.
std::thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static DOZING: RefCell<BTreeMap<TaskId, Instant>> = const { RefCell::new(BTreeMap::new()) };
}

/// As std's, since the beginning of the execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// As std's.
    pub fn now() -> Self {
        Self(NOW.get())
    }

    /// As std's.
    pub fn elapsed(&self) -> Duration {
        Self::now().duration_since(*self)
    }

    /// As std's.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// As std's.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(duration).map(Self)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

/// Somebody who waits with a deadline.
#[derive(Debug)]
pub(super) struct Dozer {
    task: TaskId,
    deadline: Instant,
    told: AtomicBool,
}

impl Dozer {
    pub(super) fn new(deadline: Instant) -> Arc<Self> {
        let told = AtomicBool::new(false);
        Arc::new(Self { task: ::shuttle::current::me(), deadline, told })
    }

    /// Waits until told, or until the scheduler lets it go on untold: then its time has come.
    pub(super) fn doze(&self) {
        if !self.is_told() {
            DOZING.with_borrow_mut(|dozing| dozing.insert(self.task, self.deadline));
        }
        ::shuttle::thread::yield_now();
        DOZING.with_borrow_mut(|dozing| dozing.remove(&self.task));
        if !self.is_told() {
            NOW.set(NOW.get().max(self.deadline.0));
        }
    }

    pub(super) fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        DOZING.with_borrow_mut(|dozing| dozing.remove(&self.task));
    }

    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }
}

/// A scheduler that chooses among those who have something to do, and when there is nobody, or out of haste, lets time go on
/// to the next deadline.
pub struct InTime<S> {
    scheduler: S,
    /// Of so many steps, one goes on to the next deadline; 0 for none.
    haste: u64,
    chance: u64,
}

impl<S> InTime<S> {
    /// Chooses by `scheduler`. Of `haste` steps one goes on to the next deadline before its time; with 0 none does.
    pub fn new(scheduler: S, haste: u64) -> Self {
        Self { scheduler, haste, chance: 1 }
    }

    fn hurries(&mut self) -> bool {
        // xorshift64
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.haste > 0 && self.chance.is_multiple_of(self.haste)
    }
}

impl<S: Scheduler> Scheduler for InTime<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        NOW.set(Duration::ZERO);
        DOZING.with_borrow_mut(BTreeMap::clear);
        self.scheduler.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let dozing = DOZING.with_borrow(BTreeMap::clone);
        let awake: Vec<&Task> = runnable.iter().copied().filter(|task| !dozing.contains_key(&task.id())).collect();
        let next =
            runnable.iter().map(|task| task.id()).filter(|id| dozing.contains_key(id)).min_by_key(|id| dozing[id]);
        match next {
            Some(next) if awake.is_empty() || self.hurries() => Some(next),
            _ => self.scheduler.next_task(&awake, current, is_yielding),
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.scheduler.next_u64()
    }
}
