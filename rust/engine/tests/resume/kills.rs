//! Killed at any moment, again and again: the image is one cut all the same.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::disks::Loop;
use crate::keeper::{Case, End};
use crate::rig::{Chance, PATIENCE, can_use_loops, folder_in_memory, spare_disk};
use crate::worker::{Orders, Place};

/// How often one backup is interrupted before it is left to come to its end.
const MOST_KILLS: u64 = 9;

/// A backup by seed: every kind of container, of every size from one block, on blocks from 512 bytes to 64 KiB.
fn orders(folder: PathBuf, seed: u64, chance: &mut Chance, disk: Option<&Loop>) -> Orders {
    let size: u64 = [(3 << 20) + 77, (5 << 20) + 512, (2 << 20) + 4096, 4 << 20, 1_300_001][chance.below(5) as usize];
    let block: u64 = [512, 4096, 4096, 16 << 10, 64 << 10][chance.below(5) as usize];
    let container = (64 << 10) << chance.below(5);
    let place = match chance.below(4) {
        0 => Place::Memory,
        1 => Place::File,
        2 if disk.is_some() => Place::Disk(disk.map(|disk| disk.path.clone()).unwrap_or_default()),
        _ => {
            let half = (container / 2).min(size / 8).next_multiple_of(block);
            let begin = |at: u64| size / 8 * at / block * block;
            Place::Sections(vec![(begin(5), begin(5) + half), (begin(1), begin(1) + half)])
        }
    };
    Orders {
        folder,
        seed,
        size,
        block,
        place,
        container,
        staging: (16 << 10) << chance.below(3),
        // Sometimes so little that writers wait for the drain all the time.
        capacity: container * (10 + chance.below(91)) / 100,
        rate: [2 << 20, 20 << 20, u64::MAX / 2][chance.below(3) as usize],
        overwrite: false,
        load: true,
        kept: Vec::new(),
    }
}

/// One backup with its kills. Returns how many there were, and whether it went on to its end.
fn run(seed: u64, loops: bool) -> (u64, bool) {
    let mut chance = Chance::new(seed);
    let folder = folder_in_memory();
    let disk = (loops && chance.below(4) == 0).then(|| spare_disk(256 << 10));
    let orders = orders(folder.path().to_owned(), seed, &mut chance, disk.as_ref());
    fs::write(folder.path().join("device"), chance.contents(orders.size)).unwrap();
    let mut case = Case::new(orders);
    let mercy = |chance: &mut Chance, killed: u64| match killed {
        MOST_KILLS.. => PATIENCE,
        // Around the cut, just after the start, and later on.
        _ => {
            let most = [300, 3_000, 30_000, 60_000][chance.below(4) as usize];
            Duration::from_micros(chance.below(most))
        }
    };
    let worker = case.begin(&[]);
    let mut end = case.watch(worker, mercy(&mut chance, 0));
    while matches!(end, End::Killed) {
        let worker = case.go_on(&[]);
        end = case.watch(worker, mercy(&mut chance, case.killed));
    }
    match end {
        End::Ended(figures) => {
            case.assert_complete(&figures);
            assert!(figures["worker_restarts"].as_u64().unwrap() <= case.killed);
            (case.killed, true)
        }
        End::Refused(reason) => {
            assert!(!case.armed, "seed {seed}: the cut had been made, and yet: {reason}");
            assert!(reason.contains("before the cut"), "seed {seed}: {reason}");
            case.assert_names(&[]);
            (case.killed, false)
        }
        End::Killed => unreachable!("killed workers are followed by others"),
    }
}

#[test]
fn at_random_moments_the_image_is_one_cut() {
    let loops = can_use_loops("kills::at_random_moments (containers on block devices)");
    let (mut kills, mut whole, mut before) = (0, 0, 0);
    for seed in 1..=60 {
        let (killed, went_on) = run(seed, loops);
        kills += killed;
        whole += u64::from(went_on);
        before += u64::from(!went_on);
    }
    println!("{kills} kills, {whole} backups that went on to their end, {before} killed before the cut");
    assert!(whole > 0);
}
