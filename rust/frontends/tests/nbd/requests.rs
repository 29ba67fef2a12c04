//! Requests and their replies, one by one: data, durability, zeroes, status, errors.

use std::os::unix::fs::MetadataExt;

use blockcow_engine::storage::Operation;
use blockcow_frontends::nbd::protocol::{REQUEST_MAGIC, STATE_HOLE, STATE_ZERO, chunk, command, errno, flag};
use rustix::fs::SeekFrom;
use tempfile::TempDir;

use crate::client::Chunk;
use crate::rig::{Rig, SIZE, contents};

#[test]
fn any_range_is_read_and_written() {
    for folder in [crate::rig::folder_in_memory(), TempDir::new().unwrap()] {
        let rig = Rig::in_folder(folder);
        let mut client = rig.simple();
        let mut expected = contents();
        for (offset, length) in [(0, 1), (4095, 2), (511, 513), (4096, 4096), (8191, 300_001), (SIZE - 1, 1), (0, SIZE)]
        {
            let data: Vec<u8> = (0..length).map(|byte| (byte * 7 + offset) as u8).collect();
            client.write(offset, &data);
            expected[offset as usize..][..data.len()].copy_from_slice(&data);
            assert!(client.read(offset, length as u32) == data, "{length} bytes at {offset}");
            assert!(rig.bytes() == expected, "after {length} bytes at {offset}");
        }
        client.write(SIZE, &[]);
        assert!(client.read(SIZE, 0).is_empty());
        client.goodbye();
    }
}

#[test]
fn what_may_not_be_done_is_refused_and_the_connection_goes_on() {
    let rig = Rig::new();
    let huge = (32 << 20) + 1;
    // Command, flags, offset, length, error.
    let cases: &[(u16, u16, u64, u32, u32)] = &[
        (command::READ, 0, SIZE, 1, errno::EINVAL),
        (command::READ, 0, SIZE - 1, 2, errno::EINVAL),
        (command::READ, 0, u64::MAX, 2, errno::EINVAL),
        (command::READ, 0, 0, huge, errno::EINVAL),
        (command::READ, flag::DF, 0, 1, errno::EINVAL), // simple replies
        (command::READ, flag::NO_HOLE, 0, 1, errno::EINVAL),
        (command::WRITE, 0, SIZE, 1, errno::ENOSPC),
        (command::WRITE, 0, u64::MAX - 3, 4, errno::ENOSPC),
        (command::WRITE, flag::FAST_ZERO, 0, 4096, errno::EINVAL),
        (command::WRITE, 1 << 5, 0, 70_000, errno::EINVAL),
        (command::WRITE, 0, 0, huge, errno::EINVAL),
        (command::TRIM, 0, 1, SIZE as u32, errno::EINVAL),
        (command::TRIM, flag::REQ_ONE, 0, 1, errno::EINVAL),
        (command::CACHE, 0, SIZE, 1, errno::EINVAL),
        (command::WRITE_ZEROES, 0, SIZE - 1, 2, errno::ENOSPC),
        (command::WRITE_ZEROES, flag::DF, 0, 1, errno::EINVAL),
        (command::BLOCK_STATUS, 0, 0, 4096, errno::EINVAL), // not negotiated
        (command::FLUSH, 1 << 15, 0, 0, errno::EINVAL),
        (8, 0, 0, 0, errno::EINVAL),
        (u16::MAX, 0, 0, 0, errno::EINVAL),
    ];
    let mut client = rig.simple();
    for (index, &(command, flags, offset, length, error)) in cases.iter().enumerate() {
        let cookie = client.request(command, flags, offset, length);
        if command == command::WRITE {
            client.send(&vec![0xee; length as usize]);
        }
        assert_eq!(client.simple_reply(), (cookie, error), "case {index}");
    }
    assert!(rig.bytes() == contents(), "nothing was changed");
    client.goodbye();

    let mut client = rig.structured();
    for (command, flags, length) in [(command::READ, flag::REQ_ONE, 1), (command::BLOCK_STATUS, 0, 0), (9, 0, 0)] {
        let cookie = client.request(command, flags, 0, length);
        let refused = client.chunk();
        assert_eq!((refused.cookie, refused.flags, refused.kind), (cookie, chunk::DONE, chunk::ERROR));
        assert_eq!(refused.data[..4], errno::EINVAL.to_be_bytes());
        let length = u16::from_be_bytes(refused.data[4..6].try_into().unwrap());
        assert_eq!(std::str::from_utf8(&refused.data[6..]).unwrap().len(), length as usize);
    }
    client.goodbye();
}

#[test]
fn a_read_only_export_is_not_changed() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.greet();
    client.go("still");
    assert_eq!(client.write_with(0, 0, &[1; 512]), errno::EPERM);
    assert_eq!(client.call(command::TRIM, 0, 0, 4096), errno::EPERM);
    assert_eq!(client.call(command::WRITE_ZEROES, flag::FUA, 0, 4096), errno::EPERM);
    assert_eq!(client.call(command::FLUSH, 0, 0, 0), 0);
    assert_eq!(client.call(command::CACHE, 0, 0, 4096), 0);
    assert_eq!(client.read(0, 512), contents()[..512]);
    client.goodbye();
    assert!(rig.bytes() == contents());
}

#[test]
fn fua_and_flush_reach_the_storage_before_the_reply() {
    let rig = Rig::new();
    let mut client = rig.simple();
    client.write(0, &[1; 512]);
    assert_eq!(rig.faults.calls(Operation::Sync), 0);
    let durable = [(command::WRITE, 512), (command::TRIM, 4096), (command::WRITE_ZEROES, 4096), (command::FLUSH, 0)];
    for (index, (command, length)) in durable.into_iter().enumerate() {
        let flags = if command == command::FLUSH { 0 } else { flag::FUA };
        let cookie = client.request(command, flags, 0, length);
        if command == command::WRITE {
            client.send(&vec![9; length as usize]);
        }
        assert_eq!(client.simple_reply(), (cookie, 0));
        assert_eq!(rig.faults.calls(Operation::Sync), index as u64 + 1);
    }
    rig.fail(Operation::Sync, libc::EIO);
    assert_eq!(client.write_with(flag::FUA, 0, &[1; 512]), errno::EIO);
    rig.fail(Operation::Sync, libc::ENOSPC);
    assert_eq!(client.call(command::FLUSH, 0, 0, 0), errno::ENOSPC);
    // It means nothing for a read, and is taken all the same.
    assert_eq!(client.call(command::READ, flag::FUA, 0, 4), 0);
    client.receive_bytes(4);
    assert_eq!(client.call(command::FLUSH, 0, 0, 0), 0);
    client.goodbye();
}

#[test]
fn the_devices_errors_keep_their_meaning() {
    let rig = Rig::new();
    let mut client = rig.simple();
    for (number, error) in [(libc::EIO, errno::EIO), (libc::ENOSPC, errno::ENOSPC), (libc::EDQUOT, errno::ENOSPC)] {
        rig.fail(Operation::Write, number);
        assert_eq!(client.write_with(0, 0, &[1; 4096]), error);
    }
    rig.fail(Operation::Read, libc::EUCLEAN);
    assert_eq!(client.call(command::READ, 0, 0, 4096), errno::EIO, "and no data follow");
    rig.fail(Operation::Discard, libc::EROFS);
    assert_eq!(client.call(command::TRIM, 0, 0, 4096), errno::EPERM);
    client.goodbye();

    let mut client = rig.structured();
    rig.fail(Operation::Read, libc::EIO);
    let cookie = client.request(command::READ, flag::DF, 4096, 4096);
    let Chunk { cookie: answered, kind, data, .. } = client.chunk();
    assert_eq!((answered, kind), (cookie, chunk::ERROR));
    let message = std::str::from_utf8(&data[6..]).unwrap();
    assert!(message.contains("offset 4096"), "{message}");
    client.goodbye();
    assert!(rig.bytes() == contents());
}

#[test]
fn zeroes_with_and_without_holes_and_only_if_fast() {
    let rig = Rig::new();
    let blocks = || rig.file().metadata().unwrap().blocks();
    let full = blocks();
    let mut client = rig.simple();
    let zero = |client: &mut crate::client::Client, flags, offset| {
        let error = client.call(command::WRITE_ZEROES, flags, offset, 1 << 20);
        assert!(client.read(offset, 1 << 20).iter().all(|&byte| byte == 0) == (error == 0));
        error
    };
    assert_eq!(zero(&mut client, flag::NO_HOLE, 0), 0);
    assert_eq!(blocks(), full, "the space is kept");
    assert_eq!(zero(&mut client, 0, 0), 0);
    assert_eq!(blocks(), full - (1 << 20) / 512, "the space is given back");
    assert_eq!(zero(&mut client, flag::FAST_ZERO, 1 << 20), 0);
    assert_eq!(client.call(command::TRIM, 0, 2 << 20, 1 << 20), 0);
    assert_eq!(blocks(), full - (3 << 20) / 512);

    rig.fail(Operation::Zero, libc::EOPNOTSUPP);
    assert_eq!(zero(&mut client, flag::FAST_ZERO, (3 << 20) + 1), errno::ENOTSUP);
    client.goodbye();
}

#[test]
fn a_structured_read_is_one_chunk() {
    let rig = Rig::new();
    let mut client = rig.structured();
    for (flags, offset, length) in [(0, 0, 4096), (flag::DF, 7, 300_000), (0, SIZE - 1, 1)] {
        let cookie = client.request(command::READ, flags, offset, length);
        let data = [&offset.to_be_bytes()[..], &contents()[offset as usize..][..length as usize]].concat();
        assert!(client.chunk() == Chunk { cookie, flags: chunk::DONE, kind: chunk::OFFSET_DATA, data });
    }
    let cookie = client.request(command::READ, 0, 0, 0);
    assert_eq!(client.chunk(), Chunk { cookie, flags: chunk::DONE, kind: chunk::NONE, data: vec![] });
    client.goodbye();
}

#[test]
fn block_status_is_what_the_file_system_says() {
    let rig = Rig::new();
    let mut client = rig.structured();
    for unit in [0_u64, 1, 2, 5, 9, 10, 11, 63, 64, 200, 201, 900] {
        let cookie = client.request(command::TRIM, 0, unit * 4096, 4096);
        assert_eq!(client.simple_reply(), (cookie, 0));
    }
    let whole = client.status(0, 0, SIZE as u32);
    assert_eq!(whole, extents_by_seeking(&rig.file(), 0, SIZE));
    assert_eq!(whole.len(), 12, "holes and data in turn");
    for (offset, length) in [(0, 4096), (3, 5000), (4096 * 9 + 1, 4096 * 3), (SIZE - 10, 10), (4096 * 199, 4096 * 4)] {
        let extents = extents_by_seeking(&rig.file(), offset, offset + length);
        assert_eq!(client.status(0, offset, length as u32), extents, "{length} bytes at {offset}");
        assert_eq!(client.status(flag::REQ_ONE, offset, length as u32), extents[..1], "one at {offset}");
    }
    client.goodbye();
}

/// Length and state of each extent from `start` to `end`.
fn extents_by_seeking(file: &std::fs::File, start: u64, end: u64) -> Vec<(u64, u32)> {
    let mut extents = Vec::new();
    let mut at = start;
    while at < end {
        let data = rustix::fs::seek(file, SeekFrom::Data(at)).unwrap_or(end).min(end);
        let (next, state) = if data > at {
            (data, STATE_HOLE | STATE_ZERO)
        } else {
            (rustix::fs::seek(file, SeekFrom::Hole(at)).unwrap().min(end), 0)
        };
        extents.push((next - at, state));
        at = next;
    }
    extents
}

#[test]
fn many_requests_in_flight_are_each_answered_once() {
    for folder in [crate::rig::folder_in_memory(), TempDir::new().unwrap()] {
        let rig = Rig::in_folder(folder);
        let mut client = rig.simple();
        let mut expected = contents();
        let mut cookies = Vec::new();
        for round in 0..2000_u64 {
            let offset = round * 2048;
            let cookie = client.request(command::WRITE, if round % 100 == 7 { flag::FUA } else { 0 }, offset, 1000);
            let data = [round as u8; 1000];
            client.send(&data);
            expected[offset as usize..][..1000].copy_from_slice(&data);
            cookies.push(cookie);
        }
        let mut answered: Vec<u64> = (0..cookies.len())
            .map(|_| {
                let (cookie, error) = client.simple_reply();
                assert_eq!(error, 0);
                cookie
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, cookies);
        assert!(rig.bytes() == expected);
        client.goodbye();
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let rig = Rig::new();
    let mut client = rig.simple();
    let mut request = [&REQUEST_MAGIC.to_be_bytes()[..], &[0, 0], &command::WRITE.to_be_bytes()].concat();
    request.extend([7; 8]);
    request.extend(5_u64.to_be_bytes());
    request.extend(3_u32.to_be_bytes());
    request.extend(b"abc");
    for byte in &request {
        client.send(&[*byte]);
    }
    assert_eq!(client.simple_reply(), (u64::from_be_bytes([7; 8]), 0));
    assert_eq!(client.read(5, 3), b"abc");
    client.goodbye();
}
