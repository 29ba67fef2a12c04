//! The suite that every storage passes: four threads change byte ranges that share sectors, and not one byte is lost.

use std::io;
use std::thread;

use blockcow_engine::buffer::AlignedBuf;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Storage, Zeroing};
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

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
pub fn conform(storage: &dyn Storage, seed: u64) -> Vec<u8> {
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
pub fn holds(storage: &dyn Storage, expected: &[u8]) {
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
