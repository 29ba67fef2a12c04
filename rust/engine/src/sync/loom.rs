//! Under `--cfg loom`: the primitives that the map, the gate, the flights and the waiters are made of, as loom models them,
//! with the interface of the real ones. The rest of the engine is built over the real ones, so that nothing in it has to
//! know of loom, and is not used.

use std::ops::{Deref, DerefMut};

pub use ::loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
pub use ::loom::thread_local;
pub use arc_swap::ArcSwapOption;
pub use crossbeam_channel as channel;
pub use parking_lot::RwLock;
pub use std::sync::Arc;
pub use std::thread;
pub use std::time::Instant;

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct Mutex<T>(::loom::sync::Mutex<T>);

/// As parking_lot's.
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    held: Option<::loom::sync::MutexGuard<'a, T>>,
}

/// As parking_lot's.
#[derive(Debug, Default)]
pub struct Condvar(::loom::sync::Condvar);

/// Whether a wait ended by its deadline.
pub struct WaitTimeoutResult(());

const SOUND: &str = "no lock is poisoned";
const HELD: &str = "a guard holds its lock but during a wait";

impl<T> Mutex<T> {
    /// As parking_lot's.
    pub fn new(value: T) -> Self {
        Self(::loom::sync::Mutex::new(value))
    }

    /// As parking_lot's.
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { lock: self, held: Some(self.0.lock().expect(SOUND)) }
    }

    /// As parking_lot's.
    pub fn into_inner(self) -> T {
        self.0.into_inner().expect(SOUND)
    }

    /// As parking_lot's.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().expect(SOUND)
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

impl Condvar {
    /// As parking_lot's.
    pub fn new() -> Self {
        Self::default()
    }

    /// As parking_lot's.
    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect(HELD);
        guard.held = Some(self.0.wait(held).expect(SOUND));
    }

    /// There is no time here: others may go on, and then the deadline has passed.
    #[track_caller]
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _deadline: Instant) -> WaitTimeoutResult {
        guard.held = None;
        guard.held = Some(guard.lock.0.lock().expect(SOUND));
        WaitTimeoutResult(())
    }

    /// As parking_lot's.
    #[track_caller]
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// As parking_lot's.
    #[track_caller]
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl WaitTimeoutResult {
    /// Always.
    pub fn timed_out(&self) -> bool {
        true
    }
}
