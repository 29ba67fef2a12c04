//! Locks with the API of `parking_lot`. Whoever waits for one may be overtaken by anybody.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::scheduler::{point, wait, wake};

/// What of a lock's word says that somebody changes the value; the rest counts those who read it.
const WRITER: u64 = 1 << 63;

/// A lock for one.
#[derive(Default)]
pub struct Mutex<T: ?Sized>(RwLock<T>);

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T: ?Sized>(RwLockWriteGuard<'a, T>);

/// A lock for one who changes or many who read.
#[derive(Default)]
pub struct RwLock<T: ?Sized> {
    word: AtomicU64,
    /// How many wait to change it: others who come to read wait for them, as with the real one.
    changers: AtomicU64,
    value: UnsafeCell<T>,
}

/// Holds a [`RwLock`] for reading.
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    /// A guard stays with its thread.
    _here: std::marker::PhantomData<*const ()>,
}

/// Holds a [`RwLock`] for changing.
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    /// A guard stays with its thread.
    _here: std::marker::PhantomData<*const ()>,
}

// SAFETY: the value moves with its lock.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: the word, an atomic, admits many readers or one changer, whatever threads they are.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}
// SAFETY: as above; a mutex has no readers.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    /// The value, without its lock.
    pub fn into_inner(self) -> T {
        self.0.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.write())
    }

    /// The value, of which nobody else knows.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.value.get_mut()
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    /// Gives the lock up for a while.
    pub(crate) fn without(guard: &mut Self, act: impl FnOnce()) {
        let lock = guard.0.lock;
        lock.release_write();
        act();
        lock.take_write();
    }
}

impl<T> RwLock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU64::new(0), changers: AtomicU64::new(0), value: UnsafeCell::new(value) }
    }
}

impl<T: ?Sized> RwLock<T> {
    fn address(&self) -> usize {
        (&raw const self.word).addr()
    }

    /// Waits until nobody changes it.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        point();
        while self.word.load(Ordering::Relaxed) == WRITER || self.changers.load(Ordering::Relaxed) > 0 {
            wait(self.address(), "a lock to read", None);
        }
        self.word.fetch_add(1, Ordering::Acquire);
        RwLockReadGuard { lock: self, _here: std::marker::PhantomData }
    }

    /// Waits until nobody else has it.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        point();
        self.take_write();
        RwLockWriteGuard { lock: self, _here: std::marker::PhantomData }
    }

    fn take_write(&self) {
        while self.word.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.changers.fetch_add(1, Ordering::Relaxed);
            wait(self.address(), "a lock", None);
            self.changers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn release_write(&self) {
        self.word.store(0, Ordering::Release);
        wake(self.address(), true);
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.word.fetch_sub(1, Ordering::Release);
        wake(self.lock.address(), true);
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.release_write();
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while this guard is counted in the word, nobody changes the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the word is `WRITER`, and this guard is the only one.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex(..)")
    }
}

impl<T: ?Sized> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RwLock(..)")
    }
}
