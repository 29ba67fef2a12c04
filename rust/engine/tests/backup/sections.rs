//! A container on one or more sections of the protected device itself.

use std::fs;
use std::sync::mpsc::channel;
use std::time::Duration;

use blockcow_engine::driver::{ContainerPlace, Driver};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_engine::storage::Operation;

use crate::door::{Calls, Door};
use crate::rig::{Chance, PATIENCE, Rig, assert_same, finish, folder_in_memory};

const SIZE: u64 = 8 << 20;
const SECTION: ByteRange = ByteRange { start: 6 << 20, end: 7 << 20 };

#[test]
fn its_blocks_are_zero_in_the_image() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(1));
    let driver = rig.driver();
    let mut expected = rig.bytes();
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Sections(vec![ByteRange { start: SECTION.start - 100, end: SECTION.end + 100 }]);
    spec.capacity_bytes = 1 << 20;
    let backup = driver.prepare(spec).unwrap();
    assert_eq!(backup.status().blocks_listed, (SIZE - SECTION.len()) / 4096, "whole blocks only");
    driver.cut(&backup, PATIENCE).unwrap();
    driver.write(&[1; 5 << 20], 0).unwrap();
    finish(&backup);
    expected[SECTION.start as usize..SECTION.end as usize].fill(0);
    assert_same(&fs::read(rig.image()).unwrap(), &expected, "the image");
}

#[test]
fn a_write_into_it_breaks_the_backup_and_stays() {
    for seed in 0..50 {
        let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(seed));
        let driver = rig.driver();
        let mut spec = rig.spec();
        spec.container = ContainerPlace::Sections(vec![SECTION]);
        (spec.capacity_bytes, spec.staging_bytes, spec.limit_read) = (1 << 20, 16 << 10, Some(1 << 20));
        let backup = driver.prepare(spec).unwrap();
        driver.cut(&backup, PATIENCE).unwrap();
        std::thread::scope(|scope| {
            let driver = &driver;
            // Copies before write keep the write-behind busy in the section.
            scope.spawn(move || (0..512).for_each(|block| driver.write(&[3; 4096], block * 4096).unwrap()));
            scope.spawn(move || driver.write(&[8; 1 << 20], SECTION.start).unwrap());
        });
        assert!(backup.wait(Some(PATIENCE)));
        assert_eq!((backup.state(), backup.cause().unwrap().kind), (State::Broken, ErrorKind::Trespass));
        let section = rig.bytes()[SECTION.start as usize..SECTION.end as usize].to_vec();
        assert_same(&section, &[8; 1 << 20], "what the program wrote");
        rig.assert_nothing_at_destination();
    }
}

#[test]
fn a_section_outside_the_device_or_below_one_block_is_refused() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(2));
    let driver = rig.driver();
    let bytes = |start, end| ByteRange { start, end };
    for sections in [
        vec![],
        vec![bytes(0, SIZE + 4096)],
        vec![bytes(100, 4196)],
        vec![bytes(100, 4196), bytes(9000, 12_288)],
        vec![bytes(0, 8192), bytes(4096, 12_288)],
    ] {
        let mut spec = rig.spec();
        spec.container = ContainerPlace::Sections(sections);
        assert_eq!(driver.prepare(spec).err().unwrap().kind, ErrorKind::Invalid);
        rig.assert_nothing_at_destination();
    }
}

/// Sections in no order whose ends are no ends of blocks, and the whole blocks in them.
fn scattered() -> (Vec<ByteRange>, Vec<ByteRange>) {
    let given = [(6 << 20, 100, 37), (1 << 20, 0, 1), (3 << 20, 4000, 20), ((3 << 20) + (20 << 12), 0, 3)];
    let section = |(start, spare, blocks): (u64, u64, u64)| {
        let whole = ByteRange { start, end: start + blocks * 4096 };
        (ByteRange { start: start - spare, end: whole.end + spare }, whole)
    };
    given.map(section).into_iter().unzip()
}

#[test]
fn several_of_them_are_one_container_that_drains_and_is_zero_in_the_image() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(4));
    let driver = rig.driver();
    let mut expected = rig.bytes();
    let (given, whole) = scattered();
    let mut spec = rig.spec();
    // The third ends in the block in which the fourth begins.
    spec.container = ContainerPlace::Sections(given);
    (spec.capacity_bytes, spec.staging_bytes, spec.limit_read) = (1 << 20, 16 << 10, Some(8 << 20));
    let backup = driver.prepare(spec).unwrap();
    assert_eq!(backup.status().container_capacity_bytes, 61 * 4096);
    assert_eq!(backup.status().blocks_listed, SIZE / 4096 - 61);
    driver.cut(&backup, PATIENCE).unwrap();
    for block in (0..SIZE / 4096).rev() {
        let bytes = ByteRange { start: block * 4096, end: block * 4096 + 4096 };
        if !whole.iter().any(|section| section.overlaps(bytes)) {
            driver.write(&[5; 4096], bytes.start).unwrap();
        }
    }
    finish(&backup);
    assert!(backup.status().drains > 0, "{:?}", backup.status());
    for section in whole {
        expected[section.start as usize..section.end as usize].fill(0);
    }
    assert_same(&fs::read(rig.image()).unwrap(), &expected, "the image");
}

#[test]
fn a_write_into_any_of_several_breaks_the_backup_and_one_beside_them_does_not() {
    for (index, section) in scattered().1.into_iter().enumerate() {
        let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(5));
        let driver = rig.driver();
        let mut spec = rig.spec();
        spec.container = ContainerPlace::Sections(scattered().0);
        (spec.capacity_bytes, spec.limit_read) = (1 << 20, Some(1 << 20));
        let backup = driver.prepare(spec).unwrap();
        driver.cut(&backup, PATIENCE).unwrap();
        driver.write(&[1; 4096], (6 << 20) - 4096).unwrap();
        driver.write(&[1; 4096], (3 << 20) + (23 << 12)).unwrap();
        assert_eq!(backup.state(), State::Active);
        match index % 3 {
            0 => driver.write(&[8; 512], section.end - 512).unwrap(),
            1 => driver.discard(section.start, 1).unwrap(),
            _ => driver.zero(section.start - 1, 2).unwrap(),
        }
        assert!(backup.wait(Some(PATIENCE)));
        assert_eq!((backup.state(), backup.cause().unwrap().kind), (State::Broken, ErrorKind::Trespass));
        rig.assert_nothing_at_destination();
        rig.assert_next_backup_works(&driver);
    }
}

#[test]
fn a_write_to_it_that_hangs_holds_up_no_program_beyond_the_deadline() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(3));
    let door = Door::new(rig.storage.clone());
    let driver = Driver::new(door.clone());
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Sections(vec![SECTION]);
    // So slow a sweep that it makes no room in staging.
    (spec.capacity_bytes, spec.staging_bytes, spec.limit_read) = (1 << 20, 16 << 10, Some(1));
    spec.policy.cbw_timeout = Duration::from_millis(300);
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();
    let container_writes = Calls(Operation::Write, SECTION);
    door.shut(container_writes);
    std::thread::scope(|scope| {
        let (driver, (sender, receiver)) = (&driver, channel());
        scope.spawn(move || {
            (0..64).for_each(|block| driver.write(&[3; 4096], (4 << 20) + block * 4096).unwrap());
            sender.send(()).unwrap();
        });
        let done = receiver.recv_timeout(PATIENCE);
        door.open(container_writes);
        done.expect("every write goes through, although the container's hangs");
    });
    assert!(backup.wait(Some(PATIENCE)));
    assert_eq!((backup.state(), backup.cause().unwrap().kind), (State::Broken, ErrorKind::Timeout));
    assert!(rig.bytes()[4 << 20..][..64 * 4096].iter().all(|&byte| byte == 3));
}
