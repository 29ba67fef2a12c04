//! One cut for several devices: a writer alternates numbered writes between two devices, and their images show one instant.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use blockcow_engine::driver::{Driver, cut_together};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::state::State;
use blockcow_engine::storage::ThrottledStorage;

use crate::rig::{Chance, PATIENCE, Rig, finish, folder_in_memory};

const SIZE: u64 = 1 << 20;
const WRITERS: u64 = 4;

fn pair(seed: u64) -> [Rig; 2] {
    [1, 2].map(|number| Rig::file(folder_in_memory(), SIZE, &mut Chance::new(seed * 2 + number)))
}

fn number_at(bytes: &[u8], writer: u64) -> u64 {
    let at = (writer * 4096) as usize;
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn two_devices_are_cut_at_one_instant() {
    for seed in 0..100 {
        one_cut(seed);
    }
    println!("one cut for two devices: 100 runs");
}

fn one_cut(seed: u64) {
    let rigs = pair(seed);
    let drivers = [rigs[0].driver(), rigs[1].driver()];
    for driver in &drivers {
        driver.write(&[0; WRITERS as usize * 4096], 0).unwrap();
    }
    let done = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let backups = thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (drivers, done, written) = (&drivers, &done, &written);
            scope.spawn(move || {
                for number in 1u64.. {
                    let mut block = [0; 512];
                    block[..8].copy_from_slice(&number.to_le_bytes());
                    // The first device first: its image must never be behind that of the second.
                    drivers.iter().for_each(|driver| driver.write(&block, writer * 4096).unwrap());
                    written.fetch_add(1, Ordering::SeqCst);
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                }
            });
        }
        while written.load(Ordering::SeqCst) < 50 + seed * 7 {
            thread::yield_now();
        }
        let backups = [drivers[0].prepare(rigs[0].spec()).unwrap(), drivers[1].prepare(rigs[1].spec()).unwrap()];
        // The order in which the group is named has no meaning.
        let (first, second) = ((&*drivers[0], &backups[0]), (&*drivers[1], &backups[1]));
        let group = if seed.is_multiple_of(2) { [first, second] } else { [second, first] };
        cut_together(&group, PATIENCE).unwrap();
        backups.iter().for_each(finish);
        done.store(true, Ordering::Release);
        backups
    });
    let images = [0, 1].map(|device: usize| fs::read(rigs[device].image()).unwrap());
    for writer in 0..WRITERS {
        let (first, second) = (number_at(&images[0], writer), number_at(&images[1], writer));
        assert!(
            first == second || first == second + 1,
            "seed {seed}: writer {writer}: {first} in the first image, {second} in the second: no instant was like that"
        );
    }
    drop(backups);
}

#[test]
fn one_that_cannot_be_cut_cancels_all_and_holds_nobody() {
    let rigs = pair(1000);
    let slow = Arc::new(ThrottledStorage::new(rigs[1].storage.clone(), u64::MAX));
    let drivers = [rigs[0].driver(), Driver::new(slow.clone())];
    let backups = [drivers[0].prepare(rigs[0].spec()).unwrap(), drivers[1].prepare(rigs[1].spec()).unwrap()];
    slow.stall();
    thread::scope(|scope| {
        let hanging = scope.spawn(|| drivers[1].write(&[1; 512], 0));
        while drivers[1].hold(Duration::from_millis(1)).is_ok() {
            thread::yield_now();
        }
        let group = [(&*drivers[0], &backups[0]), (&*drivers[1], &backups[1])];
        let error = cut_together(&group, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        drivers[0].write(&[2; 512], 0).unwrap();
        slow.resume();
        hanging.join().unwrap().unwrap();
    });
    for (backup, rig) in backups.iter().zip(&rigs) {
        assert_eq!(backup.state(), State::Cancelled);
        assert!(!rig.image().exists());
    }
    drivers[1].write(&[3; 512], 0).unwrap();
}

#[test]
fn a_device_that_is_named_twice_is_refused() {
    let rigs = pair(2000);
    let driver = rigs[0].driver();
    let backup = driver.prepare(rigs[0].spec()).unwrap();
    let group = [(&*driver, &backup), (&*driver, &backup)];
    assert_eq!(cut_together(&group, PATIENCE).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(backup.state(), State::Cancelled);
    assert_eq!(driver.state(), "passing");
}
