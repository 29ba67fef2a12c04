//! Equal at the cut: eight threads write, discard and zero while the backup runs. The image must equal the copy that
//! the test made of the device at the cut, and the device afterwards what the writes make it. Hundreds of seeds.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use blockcow_engine::driver::{ContainerPlace, Driver};
use blockcow_engine::geometry::ByteRange;

use crate::disks::Loop;
use crate::rig::{
    Chance, PATIENCE, Rig, assert_same, can_use_loops, create, finish, folder_in_memory, open, spare_disk,
};

const WRITERS: u64 = 8;
const LONGEST_WRITE: u64 = 40 << 10;
/// Writers take turns within a stripe, so that the model knows who was last. Stripes end in the middle of blocks: two
/// writers do meet in one block, never in one byte.
const STRIPE: u64 = 70_001;

/// What the device must hold from `begin` on: the test's own record of every write.
struct Model {
    begin: u64,
    stripes: Vec<Mutex<Vec<u8>>>,
    /// Writes begin at and have a length of multiples of this.
    unit: u64,
}

impl Model {
    fn new(device: &[u8], begin: u64, unit: u64) -> Self {
        let stripe = STRIPE.next_multiple_of(unit) as usize;
        let pieces = device[begin as usize..].chunks(stripe);
        Self { begin, stripes: pieces.map(|piece| Mutex::new(piece.to_vec())).collect(), unit }
    }

    fn stripe(&self, index: usize) -> (u64, MutexGuard<'_, Vec<u8>>) {
        (self.begin + index as u64 * STRIPE.next_multiple_of(self.unit), self.stripes[index].lock().unwrap())
    }

    fn bytes(&self) -> Vec<u8> {
        self.stripes.iter().flat_map(|piece| piece.lock().unwrap().clone()).collect()
    }
}

/// One write of some kind somewhere in one stripe.
fn one_write(driver: &Driver, model: &Model, chance: &mut Chance) {
    let (origin, mut stripe) = model.stripe(chance.below(model.stripes.len() as u64) as usize);
    let unit = if chance.below(2) == 0 { 512.max(model.unit) } else { model.unit };
    let length = stripe.len() as u64;
    let start = chance.below(length) / unit * unit;
    let count = (1 + chance.below(LONGEST_WRITE)).next_multiple_of(unit).min(length - start);
    let place = &mut stripe[start as usize..(start + count) as usize];
    let range = ByteRange { start: origin + start, end: origin + start + count };
    match chance.below(8) {
        0 => {
            driver.zero(range.start, count).unwrap();
            place.fill(0);
        }
        1 => {
            // What a discarded range reads as is the device's affair: write after it, so that the model knows.
            driver.discard(range.start, count).unwrap();
            chance.fill(place);
            driver.write(place, range.start).unwrap();
        }
        _ => {
            chance.fill(place);
            driver.write(place, range.start).unwrap();
        }
    }
}

/// The places for a container, by seed.
fn container(
    rig: &Rig,
    chance: &mut Chance,
    disks: &mut Vec<Loop>,
    loops: bool,
) -> (ContainerPlace, u64, Vec<ByteRange>) {
    let bytes = (64 << 10) << chance.below(5);
    match chance.below(if loops { 4 } else { 3 }) {
        0 => (ContainerPlace::Memory(bytes), bytes, Vec::new()),
        1 => {
            let storage = create(&rig.folder.path().join("container"), bytes + 300);
            (ContainerPlace::Storage(storage), bytes, Vec::new())
        }
        2 => {
            let sections = sections(chance, bytes.min(rig.size / 4 / 4096 * 4096), rig.size / 2);
            (ContainerPlace::Sections(sections.clone()), sections.iter().map(|section| section.len()).sum(), sections)
        }
        _ => {
            let disk = spare_disk(bytes);
            let storage = open(&disk.path);
            disks.push(disk);
            (ContainerPlace::Storage(storage), bytes, Vec::new())
        }
    }
}

/// One to four sections of `bytes` together, whole blocks of 4 KiB, in any order.
fn sections(chance: &mut Chance, bytes: u64, below: u64) -> Vec<ByteRange> {
    let mut start = chance.below(below) / 4096 * 4096;
    let mut left = bytes;
    let mut sections = Vec::new();
    while left > 0 {
        let length = if sections.len() == 3 { left } else { left.min((1 + chance.below(left / 4096)) * 4096) };
        sections.push(ByteRange { start, end: start + length });
        start += length + chance.below(4) * 4096;
        left -= length;
    }
    let first = chance.below(sections.len() as u64) as usize;
    sections.rotate_left(first);
    sections
}

/// One whole backup under load.
fn run(rig: &Rig, seed: u64, loops: bool, unit: u64) {
    let mut chance = Chance::new(seed);
    let mut disks = Vec::new();
    let driver = rig.driver();
    let (place, bytes, sections) = container(rig, &mut chance, &mut disks, loops);
    let mut spec = rig.spec();
    spec.container = place;
    spec.staging_bytes = 16 << 10 << chance.below(3);
    // In memory that dies with the process, and in memory that another can take over.
    spec.keep = seed % 2 == 1;
    spec.capacity_bytes = bytes * (50 + chance.below(51)) / 100;
    spec.drain_bytes = bytes / 4;
    let smallest = rig.storage.logical_block();
    let block = [smallest, 4096, 8192, 16384, 1 << 20][chance.below(5) as usize];
    // The model begins where the sections end, and only whole blocks of them are left out.
    let fits = block <= bytes && (sections.is_empty() || block <= 4096);
    spec.block_size = Some(if fits { block } else { 4096 });

    // Nobody may write to the container's sections: the model begins behind them.
    let begin = sections.iter().map(|section| section.end).max().unwrap_or(0);
    let model = Model::new(&rig.bytes(), begin, unit);
    let done = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    let (expected, backup) = thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (driver, model, done, writes) = (&driver, &model, &done, &writes);
            let mut chance = Chance::new(seed * 100 + writer + 1);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    one_write(driver, model, &mut chance);
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let stop = StopOnDrop(&done);
        let backup = driver.prepare(spec).unwrap();
        while writes.load(Ordering::Relaxed) < WRITERS * 2 {
            thread::yield_now();
        }
        let hold = driver.hold(PATIENCE).unwrap();
        let mut expected = rig.bytes();
        hold.arm(&backup).unwrap();
        backup.start(hold.release()).unwrap();
        finish(&backup);
        drop(stop);
        for section in &sections {
            expected[section.start as usize..section.end as usize].fill(0);
        }
        (expected, backup)
    });
    assert_same(&fs::read(rig.image()).unwrap(), &expected, &format!("seed {seed}: the image"));
    assert_same(&rig.bytes()[begin as usize..], &model.bytes(), &format!("seed {seed}: the device"));
    assert!(backup.status().container_peak_bytes <= bytes, "seed {seed}: the container keeps its size");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn seeds(name: &str, first: u64, count: u64, mut one: impl FnMut(u64)) {
    for seed in first..first + count {
        one(seed);
    }
    println!("equal at the cut, {name}: {count} runs, seeds {first} to {}", first + count - 1);
}

#[test]
fn files_in_memory() {
    let loops = can_use_loops("equal::files_in_memory (containers on block devices)");
    seeds("files in memory", 1_000, 330, |seed| {
        let mut chance = Chance::new(!seed);
        let sizes = [(3 << 20) + 77, (5 << 20) + 512, (2 << 20) + 4096, 4 << 20, 1_300_001];
        let rig = Rig::file(folder_in_memory(), sizes[chance.below(5) as usize], &mut chance);
        run(&rig, seed, loops, 1);
    });
}

#[test]
fn files_on_disk() {
    let loops = can_use_loops("equal::files_on_disk (containers on block devices)");
    seeds("files on disk, O_DIRECT where it is to be had", 2_000, 120, |seed| {
        let mut chance = Chance::new(!seed);
        let sizes = [(3 << 20) + 77, (5 << 20) + 512, 4 << 20];
        let rig = Rig::file(tempfile::tempdir().unwrap(), sizes[chance.below(3) as usize], &mut chance);
        run(&rig, seed, loops, 1);
    });
}

#[test]
fn a_file_of_64_mib_and_a_sector() {
    seeds("64 MiB + 512 bytes", 3_000, 12, |seed| {
        let mut chance = Chance::new(!seed);
        let folder = if seed % 2 == 0 { folder_in_memory() } else { tempfile::tempdir().unwrap() };
        let rig = Rig::file(folder, (64 << 20) + 512, &mut chance);
        run(&rig, seed, false, 1);
    });
}

#[test]
fn loop_devices() {
    if !can_use_loops("equal::loop_devices") {
        return;
    }
    seeds("loop devices, 100,003 sectors among them", 4_000, 60, |seed| {
        let mut chance = Chance::new(!seed);
        let sectors = if seed % 6 == 0 { 100_003 } else { 5_003 + chance.below(5_000) };
        let rig = Rig::disk(sectors * 512, &mut chance);
        run(&rig, seed, true, if seed % 3 == 0 { 1 } else { 512 });
    });
}
