//! The synchronisation primitives, threads and clocks that the engine uses. This is the only place to swap them, for a model
//! checker's or a scheduler's. Not behind it: `scan`, whose readers share no more than two counters.

#[cfg(not(any(loom, feature = "shuttle", feature = "simulation")))]
mod real;
#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(any(loom, feature = "shuttle", feature = "simulation")))]
pub use real::*;
#[cfg(feature = "simulation")]
pub use simulated::*;
