//! Threads, locks, channels and a clock whose every choice comes from a seed, behind the API of the real ones.
//!
//! Exactly one simulated thread runs at a time, each on a stack of its own, all on the OS thread that called [`simulate`].
//! Whoever touches a lock, an atomic or a channel may lose its turn there, and time moves on only when all wait: hours take
//! microseconds, and the same seed does the same again. Nothing is global: OS threads may each run simulations of their own.
//! Knows nothing of storages or backups, and does not show what weak memory orders allow.

pub mod channel;
pub mod thread;

mod atomic;
mod chance;
mod clock;
mod condvar;
mod local;
mod lock;
mod order;
mod panics;
mod scheduler;
mod stacks;
mod task;
#[cfg(test)]
mod tests;

pub use arc_swap::ArcSwapOption;
pub use atomic::{AtomicBool, AtomicU32, AtomicU64};
pub use chance::Chance;
pub use clock::Instant;
pub use condvar::{Condvar, WaitTimeoutResult};
pub use local::LocalKey;
pub use lock::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use scheduler::{End, Habits, Report, elapsed, kill_after, note, simulate};
pub use std::sync::Arc;
pub use std::sync::atomic::Ordering;
