//! The suite that every storage passes: four threads change byte ranges that share sectors, and not one byte is lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockcow_engine::buffer::AlignedBuf;
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{
    Access, Alignment, FaultStorage, FileStorage, MemoryStorage, SectionStorage, Storage, ThrottledStorage, Zeroing,
};
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::disks::{Loop, Mounted, can};

const THREADS: usize = 4;
const STEPS: usize = 400;
/// The end of the storage that the threads work on; what lies before it must stay zero.
const WINDOW: u64 = 10 << 20;
const LONGEST: u64 = 2_500_000;

/// Bytes that one thread alone changes, and what they must be.
struct Stripe {
    start: u64,
    bytes: Vec<u8>,
}

fn seeded(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

/// Cuts the window into stripes of odd lengths and deals them out, so that neighbours belong to different threads.
fn deal(rng: &mut TestRng, size: u64) -> Vec<Vec<Stripe>> {
    let mut hands: Vec<Vec<Stripe>> = (0..THREADS).map(|_| Vec::new()).collect();
    let mut start = size.saturating_sub(WINDOW);
    for turn in 0.. {
        if start == size {
            break;
        }
        let length = if rng.random_ratio(1, 12) { rng.random_range(1..LONGEST) } else { rng.random_range(1..6000) };
        let length = length.min(size - start);
        hands[turn % THREADS].push(Stripe { start, bytes: vec![0; length as usize] });
        start += length;
    }
    hands.retain(|hand| !hand.is_empty());
    hands
}

/// A range within the stripe: all of it, whole pages of it, or anything.
fn choose(rng: &mut TestRng, stripe: &Stripe) -> ByteRange {
    let all = ByteRange { start: stripe.start, end: stripe.start + stripe.bytes.len() as u64 };
    let pages = all.shrink_to(4096);
    match rng.random_range(0..4) {
        0 => all,
        1 if !pages.is_empty() => pages,
        _ => {
            let start = rng.random_range(all.start..all.end);
            ByteRange { start, end: rng.random_range(start..=all.end) }
        }
    }
}

/// A buffer that starts on a page or beside one.
fn memory(rng: &mut TestRng, length: usize) -> (AlignedBuf, usize) {
    let shift = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..600) };
    (AlignedBuf::new(length + shift), shift)
}

fn read(rng: &mut TestRng, storage: &dyn Storage, range: ByteRange) -> Vec<u8> {
    let (mut buf, shift) = memory(rng, range.len() as usize);
    storage.read_at(&mut buf[shift..], range.start).unwrap();
    buf[shift..].to_vec()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|part| part == &[0; 4096][..part.len()])
}

fn step(rng: &mut TestRng, storage: &dyn Storage, stripe: &mut Stripe, noise: &[u8]) {
    let range = choose(rng, stripe);
    let expected = &mut stripe.bytes[(range.start - stripe.start) as usize..(range.end - stripe.start) as usize];
    match rng.random_range(0..20) {
        0..9 => {
            let (mut buf, shift) = memory(rng, expected.len());
            let from = rng.random_range(0..=noise.len() - expected.len());
            buf[shift..].copy_from_slice(&noise[from..][..expected.len()]);
            storage.write_at(&buf[shift..], range.start).unwrap();
            expected.copy_from_slice(&buf[shift..]);
        }
        9..13 => {
            storage.zero(range, Zeroing::ANY).unwrap();
            expected.fill(0);
        }
        13..15 => {
            storage.discard(range).unwrap();
            let found = read(rng, storage, range);
            let plausible = |(new, old): (&u8, &u8)| new == old || *new == 0;
            let pages = found.chunks(512).zip(expected.chunks(512));
            let mut odd = pages.filter(|(new, old)| new != old && !is_zero(new));
            assert!(
                odd.all(|(new, old)| new.iter().zip(old).all(plausible)),
                "after a discard at {range:?} there is neither the old data nor zeroes"
            );
            expected.copy_from_slice(&found);
        }
        15 => storage.sync().unwrap(),
        _ => assert!(read(rng, storage, range) == *expected, "{range:?} is not what was written"),
    }
}

/// Runs the suite on a storage of zeroes; returns what all of it must hold in the end.
fn conform(storage: &dyn Storage, seed: u64) -> Vec<u8> {
    refuses_what_lies_outside(storage);
    let size = storage.size();
    let mut rng = seeded(seed);
    let mut hands = deal(&mut rng, size);
    let mut noise = vec![0; 2 * LONGEST as usize];
    rng.fill(&mut noise[..]);
    let noise = &noise;
    thread::scope(|scope| {
        for (number, hand) in hands.iter_mut().enumerate() {
            let mut rng = seeded(seed * 1000 + number as u64);
            scope.spawn(move || {
                for _ in 0..STEPS {
                    let chosen = rng.random_range(0..hand.len());
                    step(&mut rng, storage, &mut hand[chosen], noise);
                }
            });
        }
    });
    let mut expected = vec![0; size as usize];
    for stripe in hands.into_iter().flatten() {
        expected[stripe.start as usize..][..stripe.bytes.len()].copy_from_slice(&stripe.bytes);
    }
    storage.sync().unwrap();
    holds(storage, &expected);
    expected
}

fn refuses_what_lies_outside(storage: &dyn Storage) {
    let size = storage.size();
    let outside = ByteRange { start: size - 1, end: size + 1 };
    let results = [
        storage.read_at(&mut [0; 2], size - 1),
        storage.write_at(&[0; 2], size - 1),
        storage.write_at(&[0; 2], u64::MAX),
        storage.zero(outside, Zeroing::ANY),
        storage.discard(outside),
    ];
    for result in results {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    let nothing = ByteRange { start: size, end: size };
    storage.read_at(&mut [], size).unwrap();
    storage.write_at(&[], size).unwrap();
    storage.zero(nothing, Zeroing::ANY).unwrap();
    storage.discard(nothing).unwrap();
    assert_eq!(storage.next_data(size).unwrap(), None);
}

/// The storage holds exactly these bytes, and what it calls a hole reads as zeroes.
fn holds(storage: &dyn Storage, expected: &[u8]) {
    assert_eq!(storage.size(), expected.len() as u64);
    let mut found = vec![0; expected.len()];
    for (number, part) in found.chunks_mut(1_000_003).enumerate() {
        storage.read_at(part, number as u64 * 1_000_003).unwrap();
    }
    if found != expected {
        let at = found.iter().zip(expected).position(|(found, expected)| found != expected).unwrap();
        panic!("byte {at} is {} and must be {}", found[at], expected[at]);
    }
    let mut at = 0;
    while let Some(data) = storage.next_data(at as u64).unwrap() {
        assert!(data.start >= at as u64 && !data.is_empty() && data.end <= storage.size(), "{data:?} after {at}");
        assert!(is_zero(&expected[at..data.start as usize]), "data before {data:?}");
        at = data.end as usize;
    }
    assert!(is_zero(&expected[at..]), "data after {at}");
}

/// Runs the suite on a new file of each awkward size, and looks again after the file was closed.
fn conform_file(folder: &Mounted, direct: bool) {
    for (seed, size) in [(1, (64 << 20) + 512), (2, (64 << 20) + 77), (3, 300_007), (4, 77), (5, 64 << 20)] {
        let path = folder.path(&format!("image-{size}"));
        let storage = FileStorage::create(&path, size, ErrorKind::Container).unwrap();
        assert_eq!(storage.direct(), direct);
        assert!(!storage.is_block_device());
        let expected = conform(&storage, seed);
        drop(storage);
        assert_eq!(path.metadata().unwrap().len(), size);
        holds(&FileStorage::open(&path, Access::ReadOnly, ErrorKind::Device).unwrap(), &expected);
        let plain = std::fs::read(&path).unwrap();
        assert!(plain == expected, "other programs see something else");
        std::fs::remove_file(&path).unwrap();
    }
}

fn conform_device(sectors: u64, options: &[&str], logical_block: u64) {
    let device = Loop::new(sectors * 512, options);
    let storage = FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Device).unwrap();
    assert!(storage.direct() && storage.is_block_device());
    assert_eq!((storage.logical_block(), storage.size()), (logical_block, sectors * 512));
    let expected = conform(&storage, 6);
    drop(storage);
    holds(&FileStorage::open(&device.path, Access::ReadOnly, ErrorKind::Device).unwrap(), &expected);
}

#[test]
fn memory_conforms() {
    for (seed, size) in [(7, 1), (8, 300_007), (9, (2 << 20) + 77)] {
        let storage = MemoryStorage::new(size);
        let expected = conform(&storage, seed);
        assert!(storage.snapshot() == expected);
    }
}

#[test]
fn section_of_memory_conforms_and_stays_inside() {
    let whole = Arc::new(MemoryStorage::new(1 << 20));
    whole.write_at(&[7; 1 << 20], 0).unwrap();
    let range = ByteRange { start: 1001, end: 900_002 };
    let section = SectionStorage::new(whole.clone(), &[range]).unwrap();
    section.zero(ByteRange { start: 0, end: section.size() }, Zeroing::ANY).unwrap();
    conform(&section, 10);
    let bytes = whole.snapshot();
    let outside = [&bytes[..range.start as usize], &bytes[range.end as usize..]].concat();
    assert!(outside.iter().all(|byte| *byte == 7));
}

#[test]
fn sections_one_behind_the_other_conform_and_stay_inside() {
    let whole = Arc::new(MemoryStorage::new(1 << 20));
    whole.write_at(&[7; 1 << 20], 0).unwrap();
    // In no order, one of a byte, one empty, and two that touch.
    let ranges = [(700_000, 900_002), (1001, 300_000), (5, 6), (400, 400), (300_000, 300_512)];
    let ranges = ranges.map(|(start, end)| ByteRange { start, end });
    let sections = SectionStorage::new(whole.clone(), &ranges).unwrap();
    assert_eq!(sections.size(), ranges.iter().map(|range| range.len()).sum::<u64>());
    sections.zero(ByteRange { start: 0, end: sections.size() }, Zeroing::ANY).unwrap();
    let expected = conform(&sections, 15);
    let mut bytes = whole.snapshot();
    let joined: Vec<u8> =
        ranges.iter().flat_map(|range| bytes[range.start as usize..range.end as usize].to_vec()).collect();
    assert!(joined == expected, "each byte lies where its section says");
    for range in ranges {
        bytes[range.start as usize..range.end as usize].fill(7);
    }
    assert!(bytes.iter().all(|byte| *byte == 7), "nothing else was written");
}

#[test]
fn decorators_conform() {
    let memory = || Arc::new(MemoryStorage::new(300_007));
    conform(&FaultStorage::new(memory()), 11);
    conform(&ThrottledStorage::new(memory(), u64::MAX), 12);
}

#[test]
fn file_on_tmpfs_conforms() {
    if can("file_on_tmpfs_conforms", &["mount"]) {
        conform_file(&Mounted::memory("tmpfs"), false);
    }
}

#[test]
fn file_that_no_fallocate_serves_conforms() {
    if can("file_that_no_fallocate_serves_conforms", &["mount"]) {
        conform_file(&Mounted::memory("ramfs"), false);
    }
}

#[test]
fn file_on_ext4_conforms() {
    if can("file_on_ext4_conforms", &["losetup", "mkfs.ext4"]) {
        conform_file(&Mounted::made("ext4", 256 << 20), true);
    }
}

#[test]
fn file_on_ext2_conforms() {
    if can("file_on_ext2_conforms", &["losetup", "mkfs.ext2"]) {
        conform_file(&Mounted::made("ext2", 256 << 20), true);
    }
}

#[test]
fn section_between_sectors_of_a_file_conforms() {
    if !can("section_between_sectors_of_a_file_conforms", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let folder = Mounted::made("ext4", 64 << 20);
    let file = FileStorage::create(&folder.path("image"), (16 << 20) + 77, ErrorKind::Container).unwrap();
    let size = file.size();
    let whole: Arc<dyn Storage> = Arc::new(file);
    for (seed, start) in [(13, 1001), (14, 1 << 20)] {
        let section = SectionStorage::new(whole.clone(), &[ByteRange { start, end: size - 33 }]).unwrap();
        section.zero(ByteRange { start: 0, end: section.size() }, Zeroing::ANY).unwrap();
        assert_eq!(section.alignment() == Alignment::NONE, start == 1001);
        conform(&section, seed);
    }
}

#[test]
fn loop_device_conforms() {
    if can("loop_device_conforms", &["losetup"]) {
        conform_device(100_003, &[], 512);
    }
}

#[test]
fn loop_device_with_large_sectors_conforms() {
    if can("loop_device_with_large_sectors_conforms", &["losetup"]) {
        conform_device(100_000, &["--sector-size", "4096"], 4096);
    }
}

/// A write of one byte reads and writes back its sector; what comes to the rest of the sector meanwhile must stay.
#[test]
fn a_byte_written_meanwhile_takes_nothing_else_back() {
    if !can("a_byte_written_meanwhile_takes_nothing_else_back", &["losetup"]) {
        return;
    }
    let device = Loop::new(1 << 20, &[]);
    let storage = FileStorage::open(&device.path, Access::ReadWrite, ErrorKind::Device).unwrap();
    let sector = ByteRange { start: 512, end: 1024 };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                storage.write_at(&[255], sector.start).unwrap();
            }
        });
        let mut buf = AlignedBuf::new(512);
        let kept = (1..500).all(|round| {
            let value = if round % 2 == 0 { 0 } else { (round % 200) as u8 };
            buf.fill(value);
            if value == 0 { storage.zero(sector, Zeroing::ANY) } else { storage.write_at(&buf, sector.start) }.unwrap();
            storage.read_at(&mut buf, sector.start).unwrap();
            buf[1..].iter().all(|byte| *byte == value)
        });
        done.store(true, Ordering::Relaxed);
        assert!(kept, "a sector was written back as it had been before");
    });
}
