//! blockcow's copy-before-write engine. No Python and no protocol; front-ends and bindings stand on top of it.

pub mod buffer;
pub mod destination;
pub mod digest;
pub mod error;
pub mod geometry;
pub mod manifest;
mod partial;
pub mod restore;
mod scan;
pub mod storage;
mod sync;
pub mod verify;
pub mod zeroes;
