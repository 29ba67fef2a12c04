//! What a round does by itself; whole backups are tried by the engine's tests.

use std::collections::BTreeMap;
use std::sync::mpsc;

use super::*;
use crate::backup::Backup;
use crate::destination::manifest_path_for;
use crate::driver::{ContainerPlace, Driver, Listing, Request, Spec};
use crate::gate::Decision;
use crate::storage::MemoryStorage;
use crate::sweep::{Lane, Lanes};
use crate::sync::AtomicU32;

const TIMEOUT: Duration = Duration::from_secs(60);

/// An active backup of a small device under `fail-write`, with room for so many blocks and without threads.
fn active(folder: &tempfile::TempDir, room: u64) -> (Arc<Driver>, Backup) {
    let size = 16 * 4096;
    let device = Arc::new(MemoryStorage::new(size));
    device.write_at(&vec![1; size as usize], 0).unwrap();
    let driver = Driver::new(device);
    let image = folder.path().join("image");
    let spec = Spec {
        block_size: Some(4096),
        logical_block: 512,
        container: ContainerPlace::Memory(room * 4096),
        staging_bytes: room * 4096,
        capacity_bytes: room * 4096,
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
    let (_driver, backup) = active(&folder, 1);
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

/// How many lanes are open at an instant.
fn open(lanes: &Lanes, round: &Round, now: Instant) -> usize {
    let taken: Vec<Lane> = std::iter::from_fn(|| lanes.try_enter(round, now)).collect();
    taken.len()
}

/// A program's write that waits for a copy, until somebody says that it was made.
fn standing_write(driver: &Arc<Driver>, round: &Round) -> mpsc::Receiver<Result<(), Error>> {
    let waiter = |_| Waiter::request(None, Box::new(|_| ()));
    assert!(matches!(round.gate.admit(BlockRange::at(0, 1), None, waiter).decision, Decision::Copy(_)));
    let (sender, ended) = mpsc::channel();
    driver.submit(Request::Write((&[2; 512]).into(), 0), Box::new(move |outcome| drop(sender.send(outcome))));
    ended
}

#[test]
fn programs_have_half_of_the_lanes_until_they_are_quiet_or_writes_wait_for_a_drain() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, backup) = active(&folder, 1);
    let round = backup.round().unwrap();
    let lanes = Lanes::new(4, &round);
    let open = |now| open(&lanes, &round, now);
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
fn while_requests_stand_one_lane_is_open_and_the_others_again_after_a_respite() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, backup) = active(&folder, 1);
    let round = backup.round().unwrap();
    let lanes = Lanes::new(4, &round);
    // So far ahead that no extent takes any time.
    let now = Instant::now() + Duration::from_secs(3600);
    let open_after = |ms| open(&lanes, &round, now + Duration::from_millis(ms));
    assert_eq!(open_after(0), 4);
    let ended = standing_write(&driver, &round);
    assert_eq!([2000, 2005, 2006].map(open_after), [2, 2, 1]);
    driver.read(&mut [0; 512], 0).unwrap();
    assert_eq!(open_after(2205), 1);
    assert_eq!([2206, 2210, 2211].map(open_after), [2, 2, 1]);
    wake_all(round.gate.copied(BlockRange::at(0, 1)));
    ended.recv().unwrap().unwrap();
    assert_eq!([2411, 3410, 3411].map(open_after), [2, 2, 4]);
}

#[test]
fn what_waits_for_a_drain_does_not_stand() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, backup) = active(&folder, 2);
    let round = backup.round().unwrap();
    let lanes = Lanes::new(4, &round);
    let now = Instant::now() + Duration::from_secs(3600);
    let open_after = |ms| open(&lanes, &round, now + Duration::from_millis(ms));
    let _ended = standing_write(&driver, &round);
    assert_eq!(open_after(0), 2);
    let ask = |block| {
        let waiter = |_| Waiter::request(Some(now), Box::new(|_| ()));
        round.gate.admit(BlockRange::at(block, 1), None, waiter).decision
    };
    assert!(matches!(ask(1), Decision::Copy(_)));
    assert!(matches!(ask(2), Decision::Wait { .. }));
    assert_eq!(open_after(10), 4);
    round.freed(Room { slots: 1, staging: 1 });
    assert_eq!(open_after(10), 2);
}

#[test]
fn requests_stand_too_long_after_the_time_of_two_extents_or_a_tenth_of_a_second() {
    // The last extent counts an eighth, those of `open` take no time: they take more than 10 ms, and more than 50.
    for (last, patience) in [(160, 20), (8000, 100)] {
        let folder = tempfile::tempdir().unwrap();
        let (driver, backup) = active(&folder, 1);
        let round = backup.round().unwrap();
        let lanes = Lanes::new(4, &round);
        drop(lanes.try_enter(&round, Instant::now() - Duration::from_millis(last)));
        let _ended = standing_write(&driver, &round);
        let now = Instant::now() + Duration::from_secs(3600);
        assert_eq!([0, patience, 101].map(|ms| open(&lanes, &round, now + Duration::from_millis(ms))), [2, 2, 1]);
    }
}

#[test]
fn what_programs_did_while_the_backup_was_prepared_counts_and_its_end_leaves_no_lane() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, backup) = active(&folder, 1);
    let round = backup.round().unwrap();
    driver.flush().unwrap();
    let lanes = Lanes::new(4, &round);
    let both = [lanes.enter(&round), lanes.enter(&round)];
    assert!(both.iter().all(Option::is_some));
    assert!(lanes.try_enter(&round, Instant::now()).is_none());
    round.cancel();
    assert!(lanes.enter(&round).is_none());
}
