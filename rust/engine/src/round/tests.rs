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

/// Four lanes of such a backup.
struct Rig {
    _folder: tempfile::TempDir,
    driver: Arc<Driver>,
    _backup: Backup,
    round: Arc<Round>,
    lanes: Lanes,
    /// So far ahead that no extent takes any time.
    later: Instant,
}

impl Rig {
    fn new(room: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (driver, backup) = active(&folder, room);
        let round = backup.round().unwrap();
        let lanes = Lanes::new(4, &round);
        let later = Instant::now() + Duration::from_secs(3600);
        Self { _folder: folder, driver, _backup: backup, round, lanes, later }
    }

    /// How many lanes are open so many milliseconds later.
    fn open_after(&self, ms: u64) -> usize {
        let now = self.later + Duration::from_millis(ms);
        let taken: Vec<Lane> = std::iter::from_fn(|| self.lanes.try_enter(&self.round, now)).collect();
        taken.len()
    }

    fn ask(&self, block: u32) -> Decision {
        let waiter = |_| Waiter::request(Some(self.later), Box::new(|_| ()));
        self.round.gate.admit(BlockRange::at(block, 1), None, waiter).decision
    }

    /// A program's write that waits for a copy, until somebody says that it was made.
    fn standing_write(&self) -> mpsc::Receiver<Result<(), Error>> {
        assert!(matches!(self.ask(0), Decision::Copy(_)));
        let (sender, ended) = mpsc::channel();
        self.driver.submit(Request::Write((&[2; 512]).into(), 0), Box::new(move |outcome| drop(sender.send(outcome))));
        ended
    }
}

#[test]
fn programs_have_half_of_the_lanes_until_they_are_quiet_or_writes_wait_for_a_drain() {
    let rig = Rig::new(1);
    assert_eq!(rig.open_after(0), 4);
    rig.driver.read(&mut [0; 512], 0).unwrap();
    assert_eq!([0, 900, 1000].map(|ms| rig.open_after(ms)), [2, 2, 4]);
    rig.driver.write(&[2; 512], 0).unwrap();
    assert_eq!(rig.open_after(2000), 2);
    assert!(matches!(rig.ask(1), Decision::Wait { .. }));
    assert_eq!(rig.open_after(2000), 4);
}

#[test]
fn while_requests_stand_one_lane_is_open_and_the_others_again_after_a_respite() {
    let rig = Rig::new(1);
    assert_eq!(rig.open_after(0), 4);
    let ended = rig.standing_write();
    assert_eq!([2000, 2005, 2006].map(|ms| rig.open_after(ms)), [2, 2, 1]);
    rig.driver.read(&mut [0; 512], 0).unwrap();
    assert_eq!(rig.open_after(2205), 1);
    assert_eq!([2206, 2210, 2211].map(|ms| rig.open_after(ms)), [2, 2, 1]);
    wake_all(rig.round.gate.copied(BlockRange::at(0, 1)));
    ended.recv().unwrap().unwrap();
    assert_eq!([2411, 3410, 3411].map(|ms| rig.open_after(ms)), [2, 2, 4]);
}

#[test]
fn what_waits_for_a_drain_does_not_stand() {
    let rig = Rig::new(2);
    let _ended = rig.standing_write();
    assert_eq!(rig.open_after(0), 2);
    assert!(matches!(rig.ask(1), Decision::Copy(_)));
    assert!(matches!(rig.ask(2), Decision::Wait { .. }));
    assert_eq!(rig.open_after(10), 4);
    rig.round.freed(Room { slots: 1, staging: 1 });
    assert_eq!(rig.open_after(10), 2);
}

#[test]
fn requests_stand_too_long_after_the_time_of_two_extents_or_a_tenth_of_a_second() {
    // The last extent counts an eighth, those of `open_after` take no time: they take more than 10 ms, and more than 50.
    for (last, patience) in [(160, 20), (8000, 100)] {
        let rig = Rig::new(1);
        drop(rig.lanes.try_enter(&rig.round, Instant::now() - Duration::from_millis(last)));
        let _ended = rig.standing_write();
        assert_eq!([0, patience, 101].map(|ms| rig.open_after(ms)), [2, 2, 1]);
    }
}

#[test]
fn what_programs_did_while_the_backup_was_prepared_counts_and_its_end_leaves_no_lane() {
    let Rig { _folder, driver, _backup, round, .. } = Rig::new(1);
    driver.flush().unwrap();
    let lanes = Lanes::new(4, &round);
    let both = [lanes.enter(&round), lanes.enter(&round)];
    assert!(both.iter().all(Option::is_some));
    assert!(lanes.try_enter(&round, Instant::now()).is_none());
    round.cancel();
    assert!(lanes.enter(&round).is_none());
}
