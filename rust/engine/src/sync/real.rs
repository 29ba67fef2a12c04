//! What the engine is built with unless a test wants something else: the real primitives, as they are. Adds nothing to them.

pub use arc_swap::ArcSwapOption;
pub use crossbeam_channel as channel;
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
pub use std::thread;
pub use std::thread_local;
pub use std::time::Instant;
