//! Locks and condition variables with parking_lot's interface over shuttle's. A wait with a deadline is a doze: see `time`.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use super::time::{Dozer, Instant};

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct Mutex<T>(::shuttle::sync::Mutex<T>);

/// As parking_lot's.
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    held: Option<::shuttle::sync::MutexGuard<'a, T>>,
}

const HELD: &str = "a guard holds its lock but during a wait";

impl<T> Mutex<T> {
    /// As parking_lot's.
    pub fn new(value: T) -> Self {
        Self(::shuttle::sync::Mutex::new(value))
    }

    /// As parking_lot's.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { lock: self, held: Some(self.take()) }
    }

    fn take(&self) -> ::shuttle::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As parking_lot's.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// As parking_lot's.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect(HELD)
    }
}

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct Condvar {
    sleepers: ::shuttle::sync::Condvar,
    /// Those with a deadline, in the order in which they came.
    dozers: std::sync::Mutex<VecDeque<Arc<Dozer>>>,
}

/// Whether a wait ended by its deadline.
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// As parking_lot's.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// As parking_lot's.
    pub fn new() -> Self {
        Self::default()
    }

    /// As parking_lot's.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect(HELD);
        guard.held = Some(self.sleepers.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    /// As parking_lot's.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        let dozer = Dozer::new(deadline);
        self.dozers().push_back(dozer.clone());
        guard.held = None;
        dozer.doze();
        guard.held = Some(guard.lock.take());
        self.dozers().retain(|other| !Arc::ptr_eq(other, &dozer));
        WaitTimeoutResult(!dozer.is_told())
    }

    /// As parking_lot's.
    pub fn notify_one(&self) {
        super::point();
        let first = self.dozers().pop_front();
        match first {
            Some(dozer) => dozer.tell(),
            None => self.sleepers.notify_one(),
        }
    }

    /// As parking_lot's.
    pub fn notify_all(&self) {
        self.sleepers.notify_all();
        self.dozers().drain(..).for_each(|dozer| dozer.tell());
    }

    fn dozers(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Dozer>>> {
        self.dozers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct RwLock<T>(::shuttle::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// As parking_lot's.
    pub fn new(value: T) -> Self {
        Self(::shuttle::sync::RwLock::new(value))
    }

    /// As parking_lot's.
    pub fn read(&self) -> ::shuttle::sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As parking_lot's.
    pub fn write(&self) -> ::shuttle::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
