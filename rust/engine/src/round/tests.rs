//! What a round does by itself; whole backups are tried by the engine's tests.

use std::collections::BTreeMap;

use super::*;
use crate::backup::Backup;
use crate::destination::manifest_path_for;
use crate::driver::{ContainerPlace, Driver, Listing, Spec};
use crate::gate::Decision;
use crate::storage::MemoryStorage;
use crate::sweep::{Lane, Lanes};
use crate::sync::AtomicU32;

const TIMEOUT: Duration = Duration::from_secs(60);

/// An active backup of a small device under `fail-write`, with room for one block and without threads.
fn active(folder: &tempfile::TempDir) -> (Arc<Driver>, Backup) {
    let size = 16 * 4096;
    let device = Arc::new(MemoryStorage::new(size));
    device.write_at(&vec![1; size as usize], 0).unwrap();
    let driver = Driver::new(device);
    let image = folder.path().join("image");
    let spec = Spec {
        block_size: Some(4096),
        logical_block: 512,
        container: ContainerPlace::Memory(4096),
        staging_bytes: 4096,
        capacity_bytes: 4096,
        drain_bytes: 4096,
        destination: Destination::file(&image, &manifest_path_for(&image), size, false).unwrap(),
        listing: Listing::Device,
        policy: Policy { cbw_timeout: TIMEOUT, fail_write: true },
        limit_read: None,
        identity: BTreeMap::new(),
        keep: false,
    };
    let backup = driver.prepare(spec).unwrap();
    driver.hold(TIMEOUT).unwrap().arm(&backup).unwrap();
    (driver, backup)
}

#[test]
fn after_a_late_write_has_failed_the_next_deadline_is_looked_at_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let (_driver, backup) = active(&folder);
    let round = backup.round().unwrap();
    let failed = Arc::new(AtomicU32::new(0));
    let suspend = |block: u32, since: Instant| {
        let failed = failed.clone();
        let fail = move |outcome| {
            failed.fetch_add(u32::from(outcome == Outcome::Fail(libc::ETIMEDOUT)), Ordering::Relaxed);
        };
        round.gate.admit(BlockRange::at(block, 1), None, |_| Waiter::request(Some(since), Box::new(fail))).decision
    };
    let now = Instant::now();
    assert!(matches!(suspend(0, now), Decision::Copy(_)));
    assert!(matches!(suspend(1, now - TIMEOUT), Decision::Wait { .. }));
    let younger = now - TIMEOUT / 2;
    assert!(matches!(suspend(2, younger), Decision::Wait { .. }));
    assert_eq!(round.enforce_deadline(), younger + TIMEOUT);
    assert_eq!(failed.load(Ordering::Relaxed), 1);
}

#[test]
fn programs_have_half_of_the_lanes_until_they_are_quiet_or_writes_wait_for_a_drain() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, backup) = active(&folder);
    let round = backup.round().unwrap();
    let lanes = Lanes::new(4, &round);
    let open = |now: Instant| {
        let taken: Vec<Lane> = std::iter::from_fn(|| lanes.try_enter(&round, now)).collect();
        taken.len()
    };
    let now = Instant::now();
    assert_eq!(open(now), 4);
    driver.read(&mut [0; 512], 0).unwrap();
    assert_eq!(open(now), 2);
    assert_eq!(open(now + Duration::from_millis(900)), 2);
    assert_eq!(open(now + Duration::from_secs(1)), 4);
    driver.write(&[2; 512], 0).unwrap();
    assert_eq!(open(now + Duration::from_secs(2)), 2);
    let waiter = |_| Waiter::request(Some(now), Box::new(|_| ()));
    assert!(matches!(round.gate.admit(BlockRange::at(1, 1), None, waiter).decision, Decision::Wait { .. }));
    assert_eq!(open(now + Duration::from_secs(2)), 4);
}

#[test]
fn what_programs_did_while_the_backup_was_prepared_counts_and_its_end_leaves_no_lane() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, backup) = active(&folder);
    let round = backup.round().unwrap();
    driver.flush().unwrap();
    let lanes = Lanes::new(4, &round);
    let both = [lanes.enter(&round), lanes.enter(&round)];
    assert!(both.iter().all(Option::is_some));
    assert!(lanes.try_enter(&round, Instant::now()).is_none());
    round.cancel();
    assert!(lanes.enter(&round).is_none());
}
