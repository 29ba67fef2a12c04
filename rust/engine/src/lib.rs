//! blockcow's copy-before-write engine. No Python and no protocol; front-ends and bindings stand on top of it.

pub mod arena;
pub mod backup;
pub mod buffer;
mod container;
pub mod copied;
mod copy;
mod counters;
pub mod destination;
pub mod digest;
pub mod driver;
pub mod error;
pub mod events;
pub mod flights;
pub mod gate;
pub mod geometry;
mod journal;
pub mod list;
pub mod manifest;
#[doc(hidden)]
pub mod mutant;
mod partial;
pub mod restore;
mod round;
pub mod scan;
mod slab;
pub mod state;
mod stats;
pub mod storage;
mod sweep;
pub mod sync;
pub mod verify;
pub mod waiter;
pub mod zeroes;

pub use round::Policy;
pub use stats::Percentiles;
