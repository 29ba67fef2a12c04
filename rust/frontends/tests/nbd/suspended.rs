//! While a backup suspends writes: they are parked, reads go on, and nobody else notices.

use std::fs;
use std::thread;
use std::time::Duration;

use blockcow_engine::backup::Backup;
use blockcow_engine::state::State;
use blockcow_frontends::nbd::protocol::{chunk, command, flag};

use crate::harm::wait_for_departure;
use crate::rig::{PATIENCE, Rig, SIZE, contents};

const BLOCKS: u64 = SIZE / 4096;

#[test]
fn reads_go_on_while_every_writer_waits() {
    let rig = Rig::new();
    let (spec, throttle) = rig.stalled_backup();
    let backup = rig.driver.prepare(spec).unwrap();
    rig.driver.cut(&backup, PATIENCE).unwrap();
    let mut client = rig.structured();
    let mut changes = Vec::new();
    for block in (0..BLOCKS).rev() {
        changes.push(match block % 4 {
            0 => client.request(command::WRITE_ZEROES, flag::FUA, block * 4096, 4096),
            1 => client.request(command::TRIM, 0, block * 4096, 4096),
            _ => {
                let flags = if block % 4 == 2 { flag::FUA } else { 0 };
                let cookie = client.request(command::WRITE, flags, block * 4096, 4096);
                client.send(&[block as u8; 4096]);
                cookie
            }
        });
    }
    // The replies to those that did not have to wait come before, between and after; the read's comes in any case.
    let mut answered = Vec::new();
    for block in [0, 5, 9] {
        let cookie = client.request(command::READ, 0, block * 4096, 4096);
        while let Some(other) = reply_or_read(&mut client, cookie, block) {
            answered.push(other);
        }
    }
    assert!(answered.len() < changes.len() / 2, "{} of {} were answered", answered.len(), changes.len());
    assert!(backup.status().suspended_now > 0);
    rig.assert_well_for_readers();

    throttle.resume();
    while answered.len() < changes.len() {
        answered.push(client.any_reply().0);
    }
    answered.sort_unstable();
    assert_eq!(answered, changes, "each is answered once");
    finish(&backup);
    assert!(fs::read(rig.image()).unwrap() == contents(), "the image is the device at the cut");
    let bytes = rig.bytes();
    for block in 0..BLOCKS {
        let byte = if block % 4 < 2 { 0 } else { block as u8 };
        assert!(bytes[(block * 4096) as usize..][..4096].iter().all(|&other| other == byte), "block {block}");
    }
    client.goodbye();
}

#[test]
fn a_client_that_leaves_while_its_writes_are_parked_still_has_them_done() {
    let rig = Rig::new();
    let (spec, throttle) = rig.stalled_backup();
    let backup = rig.driver.prepare(spec).unwrap();
    rig.driver.cut(&backup, PATIENCE).unwrap();
    let mut client = rig.simple();
    for block in (0..BLOCKS).rev() {
        client.request(command::WRITE, if block % 2 == 0 { flag::FUA } else { 0 }, block * 4096, 4096);
        client.send(&[block as u8; 4096]);
    }
    client.request(command::DISC, 0, 0, 0);
    drop(client);
    rig.assert_well_for_readers();
    throttle.resume();
    finish(&backup);
    wait_for_departure(&rig.server);
    assert!(fs::read(rig.image()).unwrap() == contents());
    let bytes = rig.bytes();
    assert!((0..BLOCKS as usize).all(|block| bytes[block * 4096..][..4096] == [block as u8; 4096]));
}

#[test]
fn more_than_may_be_parked_stays_in_the_socket_until_there_is_room() {
    let rig = Rig::new();
    let (spec, throttle) = rig.stalled_backup();
    let backup = rig.driver.prepare(spec).unwrap();
    rig.driver.cut(&backup, PATIENCE).unwrap();
    let mut client = rig.simple();
    let mut sender = crate::client::Client::new(client.stream.try_clone().unwrap());
    const WRITES: u64 = 120;
    thread::scope(|scope| {
        scope.spawn(move || {
            let data = vec![7; 1 << 20];
            for write in 0..WRITES {
                sender.request(command::WRITE, 0, (4 + write % 8) << 20, 1 << 20);
                sender.send(&data);
            }
        });
        while backup.status().suspended_now < 8 {
            thread::sleep(Duration::from_millis(1));
        }
        rig.assert_well_for_readers();
        throttle.resume();
        for _ in 0..WRITES {
            assert_eq!(client.simple_reply().1, 0);
        }
    });
    finish(&backup);
    assert!(fs::read(rig.image()).unwrap() == contents());
    client.goodbye();
}

#[test]
fn closing_the_server_does_not_wait_for_a_backup() {
    let rig = Rig::new();
    let (spec, throttle) = rig.stalled_backup();
    let backup = rig.driver.prepare(spec).unwrap();
    rig.driver.cut(&backup, PATIENCE).unwrap();
    let mut client = rig.simple();
    for block in (0..BLOCKS).rev() {
        client.request(command::WRITE, 0, block * 4096, 4096);
        client.send(&[1; 4096]);
    }
    while backup.status().suspended_now == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    rig.server.close(Duration::ZERO);
    throttle.resume();
    finish(&backup);
    assert!(fs::read(rig.image()).unwrap() == contents());
}

/// `None`: it was the read, with the right data; else the cookie of another request that is done.
fn reply_or_read(client: &mut crate::client::Client, read: u64, block: u64) -> Option<u64> {
    match client.any_reply() {
        (cookie, None) => Some(cookie),
        (cookie, Some(next)) => {
            assert_eq!((cookie, next.kind), (read, chunk::OFFSET_DATA));
            let before = &contents()[(block * 4096) as usize..][..4096];
            let after = if block % 4 < 2 { [0; 4096] } else { [block as u8; 4096] };
            assert!(next.data[8..] == *before || next.data[8..] == after);
            None
        }
    }
}

fn finish(backup: &Backup) {
    assert!(backup.wait(Some(PATIENCE)), "hangs: {:?}", backup.status());
    assert_eq!(backup.state(), State::Complete, "{:?}", backup.cause());
}
