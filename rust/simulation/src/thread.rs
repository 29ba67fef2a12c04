//! Simulated threads, with the API of `std::thread`. No thread can be refused.

use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

pub use std::thread::Result;

use crate::condvar::Condvar;
use crate::lock::Mutex;
use crate::scheduler;

/// What a thread came to.
struct Packet<T> {
    result: Mutex<Option<Result<T>>>,
    ended: Condvar,
}

impl<T> Packet<T> {
    fn take(&self) -> Result<T> {
        let mut result = self.result.lock();
        loop {
            match result.take() {
                Some(result) => return result,
                None => self.ended.wait(&mut result),
            }
        }
    }
}

/// Whoever waits for a thread to end.
pub struct JoinHandle<T>(Arc<Packet<T>>);

impl<T> JoinHandle<T> {
    /// Waits for the thread's end.
    ///
    /// # Errors
    /// What it panicked with.
    pub fn join(self) -> Result<T> {
        self.0.take()
    }
}

/// The same for a thread of a [`scope`].
pub struct ScopedJoinHandle<'scope, T>(JoinHandle<T>, PhantomData<&'scope ()>);

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the thread's end.
    ///
    /// # Errors
    /// What it panicked with.
    pub fn join(self) -> Result<T> {
        self.0.join()
    }
}

/// Makes threads.
#[derive(Debug, Default)]
pub struct Builder {
    name: Option<String>,
}

impl Builder {
    /// Of a thread without a name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names it.
    #[must_use]
    pub fn name(mut self, name: String) -> Self {
        self.name = Some(name);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// None.
    pub fn spawn<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        Ok(self.start(Box::new(work), None))
    }

    /// Starts it in a scope.
    ///
    /// # Errors
    /// None.
    pub fn spawn_scoped<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        scope.crowd.enter();
        Ok(ScopedJoinHandle(self.start(Box::new(work), Some(scope.crowd.clone())), PhantomData))
    }

    fn start<'scope, T: Send + 'scope>(
        self,
        work: Box<dyn FnOnce() -> T + Send + 'scope>,
        crowd: Option<Arc<Crowd>>,
    ) -> JoinHandle<T> {
        let packet = Arc::new(Packet { result: Mutex::new(None), ended: Condvar::new() });
        let told = packet.clone();
        let whole: Box<dyn FnOnce() + 'scope> = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            let panicked = result.is_err();
            *told.result.lock() = Some(result);
            told.ended.notify_all();
            drop(told);
            if let Some(crowd) = crowd {
                crowd.leave(panicked);
            }
        });
        // SAFETY: what the closure borrows outlives its scope, and `scope` does not return before the crowd has left.
        let whole: Box<dyn FnOnce()> = unsafe { std::mem::transmute(whole) };
        scheduler::spawn(self.name.unwrap_or_else(|| "unnamed".into()), whole);
        JoinHandle(packet)
    }
}

/// The threads of a scope that have not ended.
#[derive(Default)]
struct Crowd {
    /// How many, and whether one panicked.
    state: Mutex<(usize, bool)>,
    left: Condvar,
}

impl Crowd {
    fn enter(&self) {
        self.state.lock().0 += 1;
    }

    fn leave(&self, panicked: bool) {
        let mut state = self.state.lock();
        state.0 -= 1;
        state.1 |= panicked;
        drop(state);
        self.left.notify_all();
    }

    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while state.0 > 0 {
            self.left.wait(&mut state);
        }
        state.1
    }
}

/// Where threads can borrow.
pub struct Scope<'scope, 'env: 'scope> {
    crowd: Arc<Crowd>,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a thread that may borrow.
    pub fn spawn<T: Send + 'scope>(
        &'scope self,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> ScopedJoinHandle<'scope, T> {
        self.crowd.enter();
        ScopedJoinHandle(Builder::new().start(Box::new(work), Some(self.crowd.clone())), PhantomData)
    }
}

/// Runs `work`, and returns when all threads that it started in the scope have ended.
///
/// # Panics
/// If one of them panicked.
pub fn scope<'env, R>(work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R) -> R {
    let scope = Scope { crowd: Arc::default(), scope: PhantomData, env: PhantomData };
    let result = catch_unwind(AssertUnwindSafe(|| work(&scope)));
    let panicked = scope.crowd.wait();
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(_) if panicked => panic!("a scoped thread panicked"),
        Ok(result) => result,
    }
}

/// Starts a thread.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().start(Box::new(work), None)
}

/// Lets so much time pass.
pub fn sleep(duration: Duration) {
    scheduler::wait(0, "a time", Some(scheduler::elapsed() + duration));
}

/// Another thread may run here.
pub fn yield_now() {
    scheduler::point();
}
