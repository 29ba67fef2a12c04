//! blockcow's copy-before-write engine. No Python and no protocol; front-ends and bindings stand on top of it.

pub mod buffer;
pub mod digest;
pub mod error;
pub mod geometry;
pub mod manifest;
pub mod storage;
mod sync;
pub mod zeroes;
