//! Threads with std's interface, as far as shuttle does not have it.

use std::io;

pub use ::shuttle::thread::{JoinHandle, Scope, ScopedJoinHandle, scope, spawn, yield_now};

/// As std's.
#[derive(Debug, Default)]
pub struct Builder(::shuttle::thread::Builder);

impl Builder {
    /// As std's.
    pub fn new() -> Self {
        Self::default()
    }

    /// As std's.
    #[must_use]
    pub fn name(self, name: String) -> Self {
        Self(self.0.name(name))
    }

    /// As std's.
    ///
    /// # Errors
    /// None.
    pub fn spawn<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        self.0.spawn(work)
    }

    /// As std's.
    ///
    /// # Errors
    /// None.
    pub fn spawn_scoped<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        Ok(scope.spawn(work))
    }
}
