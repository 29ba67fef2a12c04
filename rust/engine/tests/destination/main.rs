//! Backups as files and devices: what is published, what is left after a failure, what verify and restore make of it.

mod backup;
mod damage;
#[allow(dead_code, reason = "shared with the tests of storages, which use the rest")]
#[path = "../storage/disks.rs"]
mod disks;
mod publish;
mod restore;
mod shapes;
mod storages;
mod verify;
