//! The synchronisation primitives, threads and clocks that the engine uses. This is the only place to swap them for a model
//! checker's. Not behind it: `scan`, whose readers share no more than two counters.

pub use arc_swap::ArcSwapOption;
pub use crossbeam_channel as channel;
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
pub use std::thread;
pub use std::time::Instant;
