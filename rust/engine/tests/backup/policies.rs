//! Deadlines and policies: what happens to a write when its copy cannot be made in time, or not at all.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::driver::{ContainerPlace, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Fault, FaultStorage, MemoryStorage, Operation, ThrottledStorage};

use crate::door::{Calls, Door};
use crate::rig::{Chance, PATIENCE, Rig, assert_same, finish, folder_in_memory};

const SIZE: u64 = 16 << 20;

/// A spec whose destination stands still until resumed, with a short deadline.
fn stalled(rig: &Rig, fail_write: bool) -> (Spec, Arc<ThrottledStorage>) {
    let (mut spec, throttle) = rig.stalled_spec();
    spec.policy = Policy { cbw_timeout: Duration::from_millis(300), fail_write };
    (spec, throttle)
}

/// The block at this offset cannot be read once; the sweep stands still before it comes there.
fn unreadable(offset: u64) -> Fault {
    let range = Some(ByteRange { start: offset, end: offset + 4096 });
    Fault { operation: Operation::Read, errno: 5, range, after: 0, times: Some(1) }
}

/// Writes backwards through the device, away from the sweep, until a write fails or all are done.
fn write_all(rig: &Rig, driver: &blockcow_engine::driver::Driver) -> Result<(), blockcow_engine::error::Error> {
    (0..rig.size / 4096).rev().try_for_each(|block| driver.write(&[9; 4096], block * 4096))
}

#[test]
fn after_the_deadline_the_backup_breaks_and_the_writes_go_through() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(1));
    let driver = rig.driver();
    let (spec, throttle) = stalled(&rig, false);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    write_all(&rig, &driver).unwrap();
    assert_eq!(backup.state(), State::Broken);
    assert_eq!(backup.cause().unwrap().kind, ErrorKind::Timeout);
    assert!(rig.bytes().iter().all(|&byte| byte == 9), "every write is on the device");
    assert!(backup.status().suspended_us.max >= 300_000, "{:?}", backup.status());
    throttle.resume();
    assert!(backup.wait(Some(PATIENCE)));
    rig.assert_nothing_at_destination();
    rig.assert_next_backup_works(&driver);
}

#[test]
fn under_fail_write_the_late_write_fails_and_the_backup_is_kept() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(2));
    let driver = rig.driver();
    let before = rig.bytes();
    let (spec, throttle) = stalled(&rig, true);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let error = write_all(&rig, &driver).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Timeout, Some(110)), "{error}");
    assert_eq!(backup.state(), State::Active);
    throttle.resume();
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
}

#[test]
fn under_fail_write_a_dead_container_fails_writes_that_need_it_and_the_backup_is_kept() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(3));
    let driver = rig.driver();
    let before = rig.bytes();
    let container = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new(SIZE))));
    container.inject(Fault { operation: Operation::Write, errno: 5, range: None, after: 0, times: None });
    let (mut spec, throttle) = stalled(&rig, true);
    spec.policy.cbw_timeout = PATIENCE;
    spec.container = ContainerPlace::Storage(container);
    spec.capacity_bytes = SIZE;
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let error = write_all(&rig, &driver).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Container, Some(5)), "{error}");
    throttle.resume();
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
}

#[test]
fn under_fail_write_an_unreadable_old_block_fails_its_write() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(4));
    let faulty = Arc::new(FaultStorage::new(rig.storage.clone()));
    let driver = blockcow_engine::driver::Driver::new(faulty.clone());
    let (spec, throttle) = stalled(&rig, true);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    faulty.inject(unreadable(SIZE - 4096));
    let error = driver.write(&[1; 4096], SIZE - 4096).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Device, Some(5)), "{error}");
    throttle.resume();
    // Its claim was given back: the same write works now.
    driver.write(&[1; 4096], SIZE - 4096).unwrap();
    finish(&backup);
    assert_eq!(backup.status().container_used_bytes, 0, "its room was given back too");
}

#[test]
fn a_copy_that_fails_breaks_the_backup_and_the_write_goes_through() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(7));
    let faulty = Arc::new(FaultStorage::new(rig.storage.clone()));
    let driver = blockcow_engine::driver::Driver::new(faulty.clone());
    let (spec, throttle) = stalled(&rig, false);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    faulty.inject(unreadable(SIZE - 4096));
    driver.write(&[1; 4096], SIZE - 4096).unwrap();
    assert_eq!((backup.state(), backup.cause().unwrap().kind), (State::Broken, ErrorKind::Device));
    throttle.resume();
    assert!(backup.wait(Some(PATIENCE)));
    assert_eq!(rig.bytes()[SIZE as usize - 4096..], [1; 4096]);
}

#[test]
fn of_several_runs_all_are_given_back_when_the_first_cannot_be_read() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(8));
    let faulty = Arc::new(FaultStorage::new(rig.storage.clone()));
    let driver = blockcow_engine::driver::Driver::new(faulty.clone());
    let (spec, throttle) = stalled(&rig, true);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let first = SIZE - 3 * 4096;
    driver.write(&[1; 4096], first + 4096).unwrap();
    faulty.inject(unreadable(first));
    driver.write(&[2; 3 * 4096], first).unwrap_err();
    throttle.resume();
    // The sweep copies what the write could not.
    finish(&backup);
}

#[test]
fn a_hold_that_cannot_be_had_leaves_the_device_passing() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(5));
    let slow = Arc::new(ThrottledStorage::new(rig.storage.clone(), u64::MAX));
    let counted = Arc::new(FaultStorage::new(slow.clone()));
    let driver = blockcow_engine::driver::Driver::new(counted.clone());
    slow.stall();
    thread::scope(|scope| {
        let driver = &driver;
        let writer = scope.spawn(move || driver.write(&[1; 512], 0));
        let backup = driver.prepare(rig.spec()).unwrap();
        while counted.calls(Operation::Write) == 0 {
            thread::yield_now();
        }
        let error = driver.cut(&backup, Duration::from_millis(50)).unwrap_err();
        assert_eq!((error.kind, driver.state()), (ErrorKind::Timeout, "passing"));
        slow.resume();
        writer.join().unwrap().unwrap();
        driver.cut(&backup, PATIENCE).unwrap();
        finish(&backup);
    });
    assert_eq!(fs::read(rig.image()).unwrap()[..512], [1; 512]);
}

#[test]
fn under_fail_write_the_sweep_takes_over_blocks_and_leaves_their_neighbours_as_they_were() {
    let rig = Rig::file(folder_in_memory(), 1 << 20, &mut Chance::new(6));
    let door = Door::new(rig.storage.clone());
    let driver = blockcow_engine::driver::Driver::new(door.clone());
    let mut spec = rig.spec();
    spec.policy.fail_write = true;
    let before = rig.bytes();
    let backup = driver.prepare(spec).unwrap();
    let [low, high] = [5, 12].map(|block| Calls(Operation::Read, ByteRange::at(block * 4096, 4096).unwrap()));
    door.shut(low);
    door.shut(high);
    let hold = driver.hold(PATIENCE).unwrap();
    hold.arm(&backup).unwrap();
    let held = hold.release();
    thread::scope(|scope| {
        let driver = &driver;
        let [low_write, high_write] =
            [low, high].map(|calls| scope.spawn(move || driver.write(&[1; 4096], calls.1.start)));
        door.until_waiting(2);
        backup.start(held).unwrap();
        while backup.status().blocks_swept < 254 {
            thread::yield_now();
        }
        // Between the two, and copied by the sweep: a read over it would find this instead.
        driver.write(&[2; 4096], 8 * 4096).unwrap();
        // The sweep waits for the lower one, and so finds both unclaimed.
        for (calls, write) in [(high, high_write), (low, low_write)] {
            door.fail(calls, 5);
            assert_eq!(write.join().unwrap().unwrap_err().errno, Some(5));
        }
    });
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
}
