//! The cut under live writers, without stopping them: the image is the device at one instant.
//!
//! Every write carries its writer's number and count, and the test notes when it began and ended. From the image
//! alone the test reads how many writes of each writer are in it, and checks that this is one instant.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::rig::{Chance, PATIENCE, Rig, finish, folder_in_memory};

const WRITERS: usize = 6;
const BLOCK: usize = 4096;
/// Each writer's region: few enough blocks that the image shows its newest writes.
const REGION: usize = 16;
const LOG: usize = 200_000;

/// When a write began and ended, on one clock of the test.
#[derive(Clone, Copy)]
struct Flight {
    began: u64,
    ended: u64,
}

#[test]
fn the_image_is_one_instant() {
    for seed in 0..100 {
        one_cut(seed);
    }
    println!("the cut under live writers: 100 runs");
}

fn one_cut(seed: u64) {
    let mut chance = Chance::new(seed + 77);
    let size = (WRITERS * REGION * BLOCK) as u64 + chance.below(3) * (1 << 20);
    let rig = Rig::file(folder_in_memory(), size, &mut chance);
    for writer in 0..WRITERS {
        rig.driver().write(&[0; REGION * BLOCK], (writer * REGION * BLOCK) as u64).unwrap();
    }
    let driver = rig.driver();
    let (clock, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let begun: [AtomicBool; WRITERS] = Default::default();
    let logs: Vec<Vec<Flight>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (driver, clock, done, begun) = (&driver, &clock, &done, &begun[writer]);
                scope.spawn(move || {
                    let mut log: Vec<Flight> = Vec::new();
                    while !done.load(Ordering::Acquire) && log.len() < LOG {
                        let count = log.len() as u64 + 1;
                        let mut block = [0; BLOCK];
                        block.chunks_mut(8).for_each(|word| word.copy_from_slice(&count.to_le_bytes()));
                        // Round robin: the image must hold the last REGION counts, each at its place.
                        let at = (writer * REGION + log.len() % REGION) * BLOCK;
                        let began = clock.fetch_add(1, Ordering::SeqCst);
                        driver.write(&block, at as u64).unwrap();
                        log.push(Flight { began, ended: clock.fetch_add(1, Ordering::SeqCst) });
                        begun.store(true, Ordering::Release);
                    }
                    log
                })
            })
            .collect();
        let all_begun = || begun.iter().all(|begun| begun.load(Ordering::Acquire));
        while clock.load(Ordering::Relaxed) < 500 + seed * 37 || !all_begun() {
            thread::yield_now();
        }
        let backup = driver.prepare(rig.spec()).unwrap();
        let before = clock.fetch_add(1, Ordering::SeqCst);
        driver.cut(&backup, PATIENCE).unwrap();
        let after = clock.fetch_add(1, Ordering::SeqCst);
        finish(&backup);
        done.store(true, Ordering::Release);
        let logs: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        check(&fs::read(rig.image()).unwrap(), &logs, before, after, seed);
        logs
    });
    assert!(logs.iter().all(|log| !log.is_empty()));
}

fn check(image: &[u8], logs: &[Vec<Flight>], before: u64, after: u64, seed: u64) {
    let mut latest_start_in_image = 0;
    let mut earliest_end_not_in_image = u64::MAX;
    for (writer, log) in logs.iter().enumerate() {
        let count = writes_in_image(image, writer);
        if let Some(last) = count.checked_sub(1).map(|last| log[last]) {
            assert!(last.began < after, "seed {seed}: writer {writer}: a write from after the cut is in the image");
            latest_start_in_image = latest_start_in_image.max(last.began);
        }
        if let Some(next) = log.get(count) {
            assert!(
                next.ended > before,
                "seed {seed}: writer {writer}: an acknowledged write from before the cut is missing"
            );
            earliest_end_not_in_image = earliest_end_not_in_image.min(next.ended);
        }
    }
    assert!(
        latest_start_in_image < earliest_end_not_in_image,
        "seed {seed}: the image holds a write that began after one had ended which it does not hold"
    );
}

/// How many writes of a writer the image holds; checks that each block is whole and none is stale.
fn writes_in_image(image: &[u8], writer: usize) -> usize {
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let base = writer * REGION * BLOCK;
    let counts: Vec<usize> = (0..REGION).map(|place| word(base + place * BLOCK)).collect();
    let newest = *counts.iter().max().unwrap();
    for (place, &count) in counts.iter().enumerate() {
        let block = base + place * BLOCK;
        assert!((0..BLOCK / 8).all(|n| word(block + n * 8) == count), "a block holds parts of two writes");
        let expected = (0..newest).rev().take(REGION).find(|n| n % REGION == place).map_or(0, |n| n + 1);
        assert_eq!(count, expected, "writer {writer}, place {place}: stale, the newest is {newest}");
    }
    newest
}
