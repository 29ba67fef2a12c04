//! A backup goes on in another process when the first is killed. The test holds what a keeper would hold; the processes
//! that back up are this very program, started again with the part of the worker.

mod damaged;
#[path = "../storage/disks.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the disks")]
mod disks;
mod keeper;
mod kills;
mod publish;
mod refused;
#[path = "../backup/rig.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the rig")]
mod rig;
mod worker;
