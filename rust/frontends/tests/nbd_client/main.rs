//! The NBD client against servers that nobody here wrote, nbdkit and qemu-nbd, and against some that are out of their mind.

mod conformance;
mod faults;
mod servers;
#[path = "../../../engine/tests/storage/suite.rs"]
mod suite;
