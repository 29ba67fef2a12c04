//! Holes and lists: what is off the list costs nothing and is zero in the image.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockcow_engine::driver::{ContainerPlace, Listing};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;

use crate::rig::{Chance, PATIENCE, Rig, assert_same, finish, folder_in_memory};

const MIB: u64 = 1 << 20;

/// A device with data in the first and the tenth MiB and holes elsewhere.
fn sparse() -> Rig {
    let rig = Rig::file(folder_in_memory(), 64 * MIB, &mut Chance::new(1));
    drop(rig.storage.clone());
    let file = fs::OpenOptions::new().write(true).open(&rig.path).unwrap();
    file.set_len(0).unwrap();
    file.set_len(64 * MIB).unwrap();
    let mut data = vec![0; MIB as usize];
    for place in [0, 9] {
        Chance::new(place + 3).fill(&mut data);
        rig.driver().write(&data, place * MIB).unwrap();
    }
    rig
}

#[test]
fn holes_are_neither_listed_nor_written() {
    let rig = sparse();
    let driver = rig.driver();
    let before = rig.bytes();
    let backup = driver.prepare(rig.spec()).unwrap();
    assert_eq!(backup.status().blocks_listed, 2 * MIB / 4096);
    driver.cut(&backup, PATIENCE).unwrap();
    driver.write(&[5; 1 << 20], 30 * MIB).unwrap();
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
    assert_eq!(fs::metadata(rig.image()).unwrap().blocks() * 512, 2 * MIB, "the image is sparse");
    let status = backup.status();
    assert_eq!((status.blocks_copied_before_write, status.dest_written_bytes), (0, 2 * MIB));
}

#[test]
fn a_hole_that_is_written_before_the_cut_is_in_the_image() {
    for seed in 0..50 {
        let rig = sparse();
        let driver = rig.driver();
        let done = AtomicBool::new(false);
        let expected = thread::scope(|scope| {
            for writer in 0..3 {
                let (driver, done) = (&driver, &done);
                let mut chance = Chance::new(seed * 10 + writer);
                scope.spawn(move || {
                    while !done.load(Ordering::Acquire) {
                        driver.write(&[1 + writer as u8; 700], chance.below(64 * MIB - 700)).unwrap();
                    }
                });
            }
            let backup = driver.prepare(rig.spec()).unwrap();
            let hold = driver.hold(PATIENCE).unwrap();
            let expected = rig.bytes();
            hold.arm(&backup).unwrap();
            backup.start(hold.release()).unwrap();
            finish(&backup);
            done.store(true, Ordering::Release);
            expected
        });
        assert_same(&fs::read(rig.image()).unwrap(), &expected, &format!("seed {seed}: the image"));
    }
}

#[test]
fn zeroes_on_the_device_are_not_written_and_take_no_slot() {
    let rig = Rig::file(folder_in_memory(), 8 * MIB, &mut Chance::new(1));
    let driver = rig.driver();
    driver.write(&[0; 6 << 20], 0).unwrap();
    let before = rig.bytes();
    let mut spec = rig.spec();
    spec.limit_read = Some(4 * MIB);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    driver.write(&[5; 5 << 20], MIB).unwrap();
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
    let status = backup.status();
    assert!(status.blocks_copied_before_write > 0, "{status:?}");
    assert!(fs::metadata(rig.image()).unwrap().blocks() * 512 <= 2 * MIB, "the image is sparse");
}

#[test]
fn a_list_of_ranges_is_taken_by_whole_blocks() {
    let rig = Rig::file(folder_in_memory(), 8 * MIB, &mut Chance::new(6));
    let driver = rig.driver();
    let mut expected = rig.bytes();
    let mut spec = rig.spec();
    spec.listing = Listing::Ranges(vec![ByteRange { start: MIB + 5, end: MIB + 6 }, ByteRange { start: 0, end: 8192 }]);
    let backup = driver.prepare(spec).unwrap();
    assert_eq!(backup.status().blocks_listed, 3);
    driver.cut(&backup, PATIENCE).unwrap();
    driver.write(&[5; 8 << 20], 0).unwrap();
    finish(&backup);
    expected[8192..MIB as usize].fill(0);
    expected[MIB as usize + 4096..].fill(0);
    assert_same(&fs::read(rig.image()).unwrap(), &expected, "the image");
}

#[test]
fn a_write_into_the_containers_section_before_the_cut_ends_the_backup() {
    write_into_the_section_before_the_cut(&sparse());
    write_into_the_section_before_the_cut(&Rig::file(folder_in_memory(), 64 * MIB, &mut Chance::new(9)));
}

fn write_into_the_section_before_the_cut(rig: &Rig) {
    let driver = rig.driver();
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Sections(vec![ByteRange { start: 30 * MIB, end: 31 * MIB }]);
    let backup = driver.prepare(spec).unwrap();
    driver.write(&[8; 4096], 30 * MIB).unwrap();
    assert_eq!((backup.state(), backup.cause().unwrap().kind), (State::Broken, ErrorKind::Trespass));
    assert_eq!(driver.cut(&backup, PATIENCE).unwrap_err().kind, ErrorKind::State);
    drop(backup);
    rig.assert_nothing_at_destination();
    assert_eq!(rig.bytes()[30 * MIB as usize..][..4096], [8; 4096]);
    rig.assert_next_backup_works(&driver);
}
