//! A container that is much too small, before a destination that is slow: no write fails and nothing is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io, thread};

use blockcow_engine::backup::SWEEPERS;
use blockcow_engine::driver::ContainerPlace;
use blockcow_engine::events::What;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Alignment, Operation, Storage, ThrottledStorage, Zeroing};

use crate::door::{Calls, Door};
use crate::rig::{Chance, PATIENCE, Rig, assert_same, create, finish, folder_in_memory};

const MIB: u64 = 1 << 20;

/// Notes the extents in the order in which their data arrive.
struct Recorder {
    inner: Arc<dyn Storage>,
    extents: Mutex<Vec<u64>>,
}

impl Storage for Recorder {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut extents = self.extents.lock().unwrap();
        if !extents.contains(&(offset / MIB)) {
            extents.push(offset / MIB);
        }
        drop(extents);
        self.inner.write_at(buf, offset)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.inner.zero(range, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.inner.discard(range)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[test]
fn container_of_1_mib_device_of_256_mib_destination_at_20_mb_a_second() {
    let mut chance = Chance::new(5);
    let rig = Rig::file(folder_in_memory(), 256 * MIB, &mut chance);
    let driver = rig.driver();
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Storage(create(&rig.folder.path().join("container"), MIB));
    spec.staging_bytes = 256 << 10;
    spec.capacity_bytes = MIB;
    spec.drain_bytes = MIB / 4;
    spec.destination = spec.destination.decorate(|storage| Arc::new(ThrottledStorage::new(storage, 20_000_000)));
    let before = rig.bytes();
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..4 {
            let (driver, done) = (&driver, &done);
            let mut chance = Chance::new(writer + 10);
            scope.spawn(move || {
                let mut data = [0; 4096];
                while !done.load(Ordering::Acquire) {
                    chance.fill(&mut data);
                    driver.write(&data, chance.below(256 * MIB / 4096) * 4096).unwrap();
                }
            });
        }
        finish(&backup);
        done.store(true, Ordering::Release);
    });
    let status = backup.status();
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
    assert!(status.drains > 0, "{status:?}");
    assert!(status.container_peak_bytes <= MIB, "{status:?}");
    let mut drains = (0, 0);
    while let Some(events) = backup.next_events(Duration::ZERO, 1000) {
        drains.0 += events.iter().filter(|event| matches!(event.what, What::DrainBegins { .. })).count();
        drains.1 += events.iter().filter(|event| matches!(event.what, What::DrainEnds { .. })).count();
    }
    assert!(status.events_dropped > 0 || drains.0 as u64 == status.drains, "{drains:?} {status:?}");
    println!(
        "full container: {} drains, {} writes suspended, the longest for {} ms, {:.1} s in all",
        status.drains,
        status.suspended_writes,
        status.suspended_us.max / 1000,
        status.duration_s
    );
}

#[test]
fn one_slot_is_enough_for_a_write_of_many_blocks() {
    let mut chance = Chance::new(9);
    let rig = Rig::file(folder_in_memory(), 8 * MIB, &mut chance);
    let driver = rig.driver();
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Memory(4096);
    (spec.capacity_bytes, spec.drain_bytes) = (4096, 4096);
    let before = rig.bytes();
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    thread::scope(|scope| {
        for part in 0..4 {
            let driver = &driver;
            scope.spawn(move || driver.write(&vec![part as u8; 2 << 20], part * 2 * MIB).unwrap());
        }
    });
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
    assert!((0..4u64).all(|part| rig.bytes()[(part * 2 * MIB) as usize] == part as u8));
    assert!(backup.status().container_peak_bytes <= 4096);
}

#[test]
fn past_the_soft_mark_the_fullest_extent_is_swept_next() {
    let mut chance = Chance::new(13);
    let rig = Rig::file(folder_in_memory(), 16 * MIB, &mut chance);
    rig.driver().write(&vec![1; 16 << 20], 0).unwrap();
    let driver = rig.driver();
    let (mut throttle, mut recorder) = (None, None);
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Memory(64 * 4096);
    spec.capacity_bytes = 64 * 4096;
    spec.destination = spec.destination.decorate(|storage| {
        let stalled = Arc::new(ThrottledStorage::new(storage, u64::MAX));
        stalled.stall();
        throttle = Some(stalled.clone());
        let recording = Arc::new(Recorder { inner: stalled, extents: Mutex::default() });
        recorder = Some(recording.clone());
        recording as Arc<dyn Storage>
    });
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let recorder = recorder.unwrap();
    while recorder.extents.lock().unwrap().len() < SWEEPERS {
        thread::yield_now();
    }
    // All sweepers are stuck at the destination. Three quarters of the container come from one late extent.
    for block in 0..48 {
        driver.write(&[2; 4096], 12 * MIB + block * 4096).unwrap();
    }
    throttle.unwrap().resume();
    finish(&backup);
    let order = recorder.extents.lock().unwrap().clone();
    let place = order.iter().position(|&extent| extent == 12).unwrap();
    assert!(place < 2 * SWEEPERS, "extent 12 came after {place} others: {order:?}");
    assert_eq!(backup.status().drains, 0, "the soft mark is below the capacity");
}

#[test]
fn reads_go_on_while_every_writer_waits() {
    let mut chance = Chance::new(11);
    let rig = Rig::file(folder_in_memory(), 16 * MIB, &mut chance);
    let driver = rig.driver();
    let (spec, throttle) = rig.stalled_spec();
    let before = rig.bytes();
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let driver = &driver;
            scope.spawn(move || {
                for block in (writer..16 * MIB / 4096).step_by(4) {
                    driver.write(&[7; 4096], (16 * MIB / 4096 - 1 - block) * 4096).unwrap();
                }
            });
        }
        while backup.status().suspended_now < 4 {
            thread::yield_now();
        }
        let mut bytes = [0; 4096];
        driver.read(&mut bytes, 0).unwrap();
        assert_eq!(bytes[..], before[..4096]);
        throttle.resume();
    });
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
}

#[test]
fn a_drain_is_not_held_up_by_the_limit_on_reading() {
    // Each drain also lets go the sweepers that wait with an extent of their own: some twenty extents in all.
    let rig = Rig::file(folder_in_memory(), 64 * MIB, &mut Chance::new(12));
    let driver = rig.driver();
    let mut spec = rig.spec();
    // At this rate one extent takes minutes.
    spec.limit_read = Some(4096);
    spec.policy.cbw_timeout = Duration::from_secs(20);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    for block in 3 * MIB / 4096..7 * MIB / 4096 {
        driver.write(&[1; 4096], block * 4096).unwrap();
    }
    assert_eq!(backup.state(), blockcow_engine::state::State::Active, "{:?}", backup.cause());
    assert!(backup.status().drains > 0, "{:?}", backup.status());
    backup.cancel();
    assert!(backup.wait(Some(PATIENCE)));
}

#[test]
fn a_slot_is_held_until_its_block_is_at_the_destination() {
    let rig = Rig::file(folder_in_memory(), MIB, &mut Chance::new(13));
    let driver = rig.driver();
    driver.write(&[1; 4096], 0).unwrap();
    let writes = Calls(Operation::Write, ByteRange { start: 0, end: MIB });
    let mut door = None;
    let mut spec = rig.spec();
    spec.destination = spec.destination.decorate(|storage| door.insert(Door::new(storage)).clone());
    let door = door.unwrap();
    door.shut(writes);
    let backup = driver.prepare(spec).unwrap();
    let hold = driver.hold(PATIENCE).unwrap();
    hold.arm(&backup).unwrap();
    let held = hold.release();
    driver.write(&[2; 4096], 0).unwrap();
    backup.start(held).unwrap();
    door.until_waiting(1);
    assert_eq!(backup.status().container_used_bytes, 4096, "the destination has not taken it");
    door.open(writes);
    finish(&backup);
    assert_eq!(backup.status().container_used_bytes, 0);
}
