//! Faults of the device, the container and the destination, and cancel: the program's writes succeed, nothing hangs,
//! the first cause is told, nothing bears the final name, and the next backup works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use blockcow_engine::backup::Backup;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Fault, FaultStorage, MemoryStorage, Operation};

use crate::disks::{Mounted, can};
use crate::rig::{Chance, PATIENCE, Rig, folder_in_memory};

const SIZE: u64 = (8 << 20) + 512;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn rig(seed: u64) -> Rig {
    Rig::file(folder_in_memory(), SIZE, &mut Chance::new(seed))
}

fn fault(operation: Operation, errno: i32, after: u64) -> Fault {
    Fault { operation, errno, range: None, after, times: None }
}

/// Makes the cut, writes from four threads until the backup has ended, and returns it. Every write must succeed.
fn under_load(driver: &Driver, spec: Spec, meanwhile: impl FnOnce(&Backup)) -> Backup {
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..4 {
            let done = &done;
            let mut chance = Chance::new(writer + 1);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    driver.write(&[writer as u8; 3000], chance.below(SIZE - 3000)).unwrap();
                }
            });
        }
        meanwhile(&backup);
        assert!(backup.wait(Some(PATIENCE)), "hangs: {:?}", backup.status());
        done.store(true, Ordering::Release);
    });
    backup
}

fn assert_broken(backup: &Backup, kind: ErrorKind, errno: i32) {
    assert_eq!(backup.state(), State::Broken, "{:?}", backup.status());
    let cause = backup.cause().unwrap();
    assert_eq!((cause.kind, cause.errno), (kind, Some(errno)), "{cause}");
    assert!(backup.status().error.is_some());
}

#[test]
fn the_device_cannot_be_read_at_some_block() {
    for block in [0u64, 700, 2047] {
        let rig = rig(block);
        let faulty = Arc::new(FaultStorage::new(rig.storage.clone()));
        let driver = Driver::new(faulty.clone());
        let range = blockcow_engine::geometry::ByteRange::at(block * 4096 + 100, 1).unwrap();
        // The program's unaligned writes read the device too, but below the fault.
        faulty.inject(Fault { range: Some(range), ..fault(Operation::Read, EIO, 0) });
        let backup = under_load(&driver, rig.spec(), |_| {});
        assert_broken(&backup, ErrorKind::Device, EIO);
        let offset = backup.cause().unwrap().offset.unwrap();
        assert!(offset <= range.start && range.start < offset + (1 << 20), "offset {offset}");
        rig.assert_nothing_at_destination();
        faulty.clear();
        rig.assert_next_backup_works(&driver);
    }
}

#[test]
fn the_container_cannot_be_written() {
    for errno in [EIO, ENOSPC] {
        let rig = rig(errno as u64);
        let driver = rig.driver();
        let container = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new(4 << 20))));
        container.inject(fault(Operation::Write, errno, 2));
        let mut spec = rig.spec();
        spec.container = ContainerPlace::Storage(container);
        spec.capacity_bytes = 4 << 20;
        // So slow a sweep that the writers must use the container.
        spec.limit_read = Some(1 << 20);
        let backup = under_load(&driver, spec, |_| {});
        assert_broken(&backup, ErrorKind::Container, errno);
        rig.assert_nothing_at_destination();
        rig.assert_next_backup_works(&driver);
    }
}

#[test]
fn the_container_cannot_be_read() {
    let rig = rig(3);
    let driver = rig.driver();
    let container = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new(4 << 20))));
    container.inject(fault(Operation::Read, EIO, 0));
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Storage(container);
    (spec.capacity_bytes, spec.limit_read) = (4 << 20, Some(2 << 20));
    let backup = under_load(&driver, spec, |_| {});
    assert_broken(&backup, ErrorKind::Container, EIO);
    rig.assert_nothing_at_destination();
    rig.assert_next_backup_works(&driver);
}

#[test]
fn the_destination_cannot_be_written_or_synced() {
    for (operation, errno, after) in
        [(Operation::Write, EIO, 3), (Operation::Write, ENOSPC, 0), (Operation::Sync, EIO, 0)]
    {
        let rig = rig(after + 40);
        let driver = rig.driver();
        let mut spec = rig.spec();
        spec.destination = spec.destination.decorate(|storage| {
            let faulty = FaultStorage::new(storage);
            faulty.inject(fault(operation, errno, after));
            Arc::new(faulty)
        });
        let backup = under_load(&driver, spec, |_| {});
        assert_broken(&backup, ErrorKind::Destination, errno);
        let cause = backup.cause().unwrap().to_string();
        assert!(!cause.contains("also:"), "the clean-up worked: {cause}");
        rig.assert_nothing_at_destination();
        rig.assert_next_backup_works(&driver);
    }
}

#[test]
fn a_real_file_system_is_full() {
    if !can("faults::a_real_file_system_is_full", &["losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    let rig = rig(7);
    let driver = rig.driver();
    let small = Mounted::made("ext4", 4 << 20);
    let image = small.path("image");
    let mut spec = rig.spec();
    spec.destination = Destination::file(&image, &manifest_path_for(&image), SIZE, false).unwrap();
    let backup = under_load(&driver, spec, |_| {});
    assert_broken(&backup, ErrorKind::Destination, ENOSPC);
    let left: Vec<_> = std::fs::read_dir(small.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lost+found"], "nothing is left on the small file system");
    rig.assert_next_backup_works(&driver);
}

#[test]
fn cancel_at_any_moment() {
    let mut cancelled = 0;
    for seed in 0..60 {
        let rig = rig(seed);
        let driver = rig.driver();
        let mut spec = rig.spec();
        spec.limit_read = Some(64 << 20);
        let share = seed * SIZE / 70;
        let backup = under_load(&driver, spec, |backup| {
            while backup.status().done_bytes < share && backup.state() == State::Active {
                thread::yield_now();
            }
            backup.cancel();
        });
        if backup.state() == State::Complete {
            // This machine was so slow that the cancel came after the end.
            continue;
        }
        cancelled += 1;
        assert_eq!((backup.state(), backup.cause().unwrap().kind), (State::Cancelled, ErrorKind::Cancelled));
        rig.assert_nothing_at_destination();
        if cancelled % 20 == 0 {
            rig.assert_next_backup_works(&driver);
        }
    }
    assert!(cancelled >= 20, "{cancelled} of 60 cancels came in time");
}

#[test]
fn a_backup_that_is_dropped_or_never_cut_leaves_nothing() {
    let rig = rig(8);
    let driver = rig.driver();
    drop(driver.prepare(rig.spec()).unwrap());
    rig.assert_nothing_at_destination();
    let mut spec = rig.spec();
    spec.limit_read = Some(1 << 20);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let error = driver.prepare(rig_spec_elsewhere(&rig)).err().unwrap();
    assert_eq!(error.kind, ErrorKind::State, "one backup at a time");
    drop(backup);
    driver.settle();
    rig.assert_nothing_at_destination();
    rig.assert_next_backup_works(&driver);
}

fn rig_spec_elsewhere(rig: &Rig) -> Spec {
    let image = rig.folder.path().join("elsewhere");
    let destination = Destination::file(&image, &manifest_path_for(&image), rig.size, false).unwrap();
    Spec {
        destination,
        block_size: None,
        logical_block: 512,
        container: ContainerPlace::Memory(1 << 16),
        staging_bytes: 1 << 16,
        capacity_bytes: 1 << 16,
        drain_bytes: 1 << 14,
        listing: blockcow_engine::driver::Listing::Device,
        policy: blockcow_engine::Policy { cbw_timeout: Duration::from_secs(30), fail_write: false },
        limit_read: None,
        identity: std::collections::BTreeMap::new(),
        keep: false,
    }
}
