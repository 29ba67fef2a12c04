//! The synchronisation primitives, threads and clocks that the engine uses. This is the only place to swap them, for a model
//! checker's or a scheduler's. Not behind it: `scan`, whose readers share no more than two counters.

#[cfg(loom)]
mod loom;
#[cfg(not(any(loom, feature = "shuttle", feature = "simulation")))]
mod real;
#[cfg(all(feature = "shuttle", not(loom)))]
mod shuttle;
#[cfg(all(feature = "simulation", not(any(loom, feature = "shuttle"))))]
mod simulated;

#[cfg(loom)]
pub use loom::*;
#[cfg(not(any(loom, feature = "shuttle", feature = "simulation")))]
pub use real::*;
#[cfg(all(feature = "shuttle", not(loom)))]
pub use shuttle::*;
#[cfg(all(feature = "simulation", not(any(loom, feature = "shuttle"))))]
pub use simulated::*;
