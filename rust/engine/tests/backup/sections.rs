//! A container on a section of the protected device itself.

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
    spec.container = ContainerPlace::Section(ByteRange { start: SECTION.start - 100, end: SECTION.end + 100 });
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
        spec.container = ContainerPlace::Section(SECTION);
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
    for section in [ByteRange { start: 0, end: SIZE + 4096 }, ByteRange { start: 100, end: 4196 }] {
        let mut spec = rig.spec();
        spec.container = ContainerPlace::Section(section);
        assert_eq!(driver.prepare(spec).err().unwrap().kind, ErrorKind::Invalid);
        rig.assert_nothing_at_destination();
    }
}

#[test]
fn a_write_to_it_that_hangs_holds_up_no_program_beyond_the_deadline() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(3));
    let door = Door::new(rig.storage.clone());
    let driver = Driver::new(door.clone());
    let mut spec = rig.spec();
    spec.container = ContainerPlace::Section(SECTION);
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
