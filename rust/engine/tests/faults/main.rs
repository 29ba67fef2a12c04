//! Every nth operation fails: a backup of 2,000 I/Os under writers, once for every n on device, container and destination,
//! and for every kind of failure. What is an operation: each system call on those files, the ones that publish included.

#[path = "../storage/disks.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the disks")]
mod disks;
mod fault;
#[path = "../kernel/mod.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the seat")]
mod kernel;
mod oracle;
mod plan;
#[path = "../backup/rig.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the rig")]
mod rig;
mod run;

use blockcow_proof::Tally;
use plan::{ERRNOS, Plan};
use run::{Scene, Target};

const FRESH: Scene = Scene { inside: false, target: Target::Fresh, fail_write: false, direct: false };
const OLDER: Scene = Scene { inside: true, target: Target::Older, fail_write: false, direct: false };
const IN_PLACE: Scene = Scene { inside: false, target: Target::InPlace, fail_write: false, direct: false };
const IN_PLACE_OLDER: Scene = Scene { target: Target::InPlaceOlder, ..IN_PLACE };
const DIRECT: Scene = Scene { direct: true, ..FRESH };
const FAIL_WRITE: Scene = Scene { fail_write: true, ..FRESH };

/// The one of the first scene, and of every part of the others, that costs seconds.
#[test]
fn a_few_operations_fail() {
    let tally = Tally::new("nth-fault", "a_few_operations_fail", 100);
    let mut plan = Plan::new(&tally);
    for scene in [FRESH, OLDER, IN_PLACE, IN_PLACE_OLDER, DIRECT, FAIL_WRITE] {
        plan.errors(scene, &[libc::EIO], 4);
    }
    plan.publishing(FRESH, libc::EIO);
    plan.publishing(OLDER, libc::ENOSPC);
    plan.shorts(FRESH, 4);
    plan.shorts(DIRECT, 4);
    plan.run();
}

#[test]
#[ignore = "run by make proof"]
fn every_operation_fails() {
    let tally = Tally::new("nth-fault", "every_operation_fails", 16_000);
    let mut plan = Plan::new(&tally);
    plan.errors(FRESH, &ERRNOS, u64::MAX);
    plan.shorts(FRESH, u64::MAX);
    for scene in [OLDER, IN_PLACE, IN_PLACE_OLDER, DIRECT] {
        plan.errors(scene, &[libc::EIO], 24);
        plan.shorts(scene, 8);
    }
    plan.errors(FAIL_WRITE, &[libc::EIO], 60);
    plan.run();
}
