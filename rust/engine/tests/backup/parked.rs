//! Requests of a front-end without threads: a suspended write is parked, and the submitter goes on.

use std::fs;
use std::sync::mpsc::channel;

use blockcow_engine::driver::{ContainerPlace, Request};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::Zeroing;

use crate::rig::{Chance, PATIENCE, Rig, assert_same, finish, folder_in_memory};

const BLOCKS: u64 = 2048;

#[test]
fn one_thread_submits_more_than_fits_and_is_never_made_to_wait() {
    let mut chance = Chance::new(1);
    let rig = Rig::file(folder_in_memory(), BLOCKS * 4096, &mut chance);
    let driver = rig.driver();
    let (mut spec, throttle) = rig.stalled_spec();
    spec.container = ContainerPlace::Memory(16 * 4096);
    let before = rig.bytes();
    let backup = driver.prepare(spec).unwrap();
    driver.cut(&backup, PATIENCE).unwrap();

    let (sender, receiver) = channel();
    for block in (0..BLOCKS).rev() {
        let sender = sender.clone();
        let range = ByteRange { start: block * 4096, end: (block + 1) * 4096 };
        let request = match block % 3 {
            0 => Request::Zero(range, Zeroing::ANY),
            _ => Request::Write(vec![block as u8; 4096].into(), range.start),
        };
        // All of these return although the destination stands still and the container is full.
        driver.submit(request, Box::new(move |outcome| sender.send((block, outcome)).unwrap()));
    }
    assert!(backup.status().suspended_now > BLOCKS / 4, "{:?}", backup.status());
    throttle.resume();
    let mut completed = vec![0; BLOCKS as usize];
    for _ in 0..BLOCKS {
        let (block, outcome) = receiver.recv_timeout(PATIENCE).unwrap();
        outcome.unwrap();
        completed[block as usize] += 1;
    }
    assert!(completed.iter().all(|&times| times == 1), "each is completed once");
    finish(&backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
    let after = rig.bytes();
    for block in 0..BLOCKS {
        let expected = if block % 3 == 0 { 0 } else { block as u8 };
        assert!(after[(block * 4096) as usize..][..4096].iter().all(|&byte| byte == expected), "block {block}");
    }
}

#[test]
fn held_requests_are_parked_too() {
    let rig = Rig::file(folder_in_memory(), 1 << 20, &mut Chance::new(2));
    let driver = rig.driver();
    let (sender, receiver) = channel();
    let hold = driver.hold(PATIENCE).unwrap();
    let before = rig.bytes();
    driver.submit(Request::Write(vec![1; 512].into(), 0), Box::new(move |outcome| sender.send(outcome).unwrap()));
    assert!(receiver.try_recv().is_err(), "it waits");
    assert_same(&rig.bytes(), &before, "the device during the hold");
    hold.release();
    receiver.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(rig.bytes()[..512], [1; 512]);
}

#[test]
fn a_request_outside_the_device_fails_and_harms_nothing() {
    let rig = Rig::file(folder_in_memory(), 1 << 20, &mut Chance::new(3));
    let driver = rig.driver();
    let (sender, receiver) = channel();
    driver.submit(
        Request::Write(vec![1; 513].into(), (1 << 20) - 512),
        Box::new(move |outcome| sender.send(outcome).unwrap()),
    );
    let error = receiver.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.offset, Some((1 << 20) - 512));
}
