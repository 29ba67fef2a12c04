//! Storages: one suite for all of them, then what each one alone promises.

mod conformance;
mod decorators;
mod disks;
mod files;
mod locks;
mod suite;
