//! FUSE: one file, mounted on a file, in front of a driver.
//!
//! The transport is our own, because a connection must outlive the process that serves it: another one takes over its
//! descriptors and has the kernel send again what was in flight ([`Export::adopt`]). A request is read, done and answered on
//! one thread; a write that must wait for a backup is parked in the driver, so that its thread goes on with the next one.

mod channel;
mod export;
mod file;
mod init;
mod mount;
mod session;
mod wire;

pub use export::{Export, Options};
