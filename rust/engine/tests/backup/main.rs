//! Whole backups by the real engine on real storages, against what the tests know independently.

mod cut;
#[path = "../storage/disks.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the disks")]
mod disks;
mod door;
mod equal;
mod faults;
mod full;
mod group;
mod parked;
mod policies;
mod rig;
mod sections;
mod several;
mod sparse;
