//! Power cuts: the system calls of whole backups are recorded, and from each beginning of the record the disks are made
//! that a power cut may leave there. On each, what bears a final name is whole, and `verify` is right about it.

mod device;
mod disk;
#[path = "../storage/disks.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the disks")]
mod disks;
mod judge;
#[path = "../kernel/mod.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the seat")]
mod kernel;
mod record;
#[path = "../backup/rig.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the rig")]
mod rig;
#[path = "../faults/run.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the runs")]
mod run;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use blockcow_engine::state::State;
use blockcow_proof::Tally;
use disk::{Disk, Survival};
use judge::{Judge, Stage, Whole};
use kernel::watched;
use record::{Op, Recorder};
use rig::{Chance, folder_in_memory};
use run::{Scene, Target, backup, contents, device_in, image_in, image_of, names, write_sparse};

const TARGETS: [Target; 4] = [Target::Fresh, Target::Older, Target::InPlace, Target::InPlaceOlder];
/// After one of so many disks, the next backup is made there.
const NEXT_AFTER: u64 = 1999;

#[test]
fn after_a_power_cut_at_some_steps_nothing_half_is_taken_for_whole() {
    let tally = Tally::new("power-loss", "after_a_power_cut_at_some_steps_nothing_half_is_taken_for_whole", 2_000);
    for target in TARGETS {
        try_record(&tally, target, 1, 1);
    }
}

#[test]
#[ignore = "run by make proof"]
fn after_any_power_cut_nothing_half_is_taken_for_whole() {
    let tally = Tally::new("power-loss", "after_any_power_cut_nothing_half_is_taken_for_whole", 150_000);
    thread::scope(|scope| {
        for half in 0..2 {
            let tally = &tally;
            scope.spawn(move || {
                for round in 0..3 {
                    for target in TARGETS.into_iter().skip(half).step_by(2) {
                        try_record(tally, target, 2 + round, 16);
                    }
                }
            });
        }
    });
}

/// Records one backup and cuts the power at every step, so many times by chance at each.
fn try_record(tally: &Tally, target: Target, seed: u64, chances: u64) {
    let record = Record::make(target, seed);
    let mut judge = Judge::new(target, record.older(), record.newer.clone(), record.beside.clone());
    let mut disk = Disk::new(record.before.clone(), false);
    let mut chance = Chance::new(seed);
    let mut cuts = 0;
    for step in 0..=record.ops.len() {
        if let Some(last) = step.checked_sub(1) {
            disk.take(&record.ops[last]);
        }
        let stage = record.stage(step);
        for survival in survivals(&disk, record.ops.get(step), chances, &mut chance) {
            let found = disk.cut(survival);
            let verdict = judge.judge(&found, stage);
            cuts += 1;
            let next = if cuts % NEXT_AFTER == 0 { judge.next_works(&found, &record.contents) } else { Ok(()) };
            if let Err(reason) = verdict.and(next) {
                tally.violated();
                panic!("{target:?} seed {seed}, {survival:?} after step {step}, {:?}: {reason}", record.around(step));
            }
        }
    }
    tally.executed(cuts);
    let lies = try_a_liar(&record, &mut judge, chances, &mut chance);
    tally.executed(lies.unwrap_or_else(|reason| panic!("{target:?} seed {seed}: {reason}")));
    println!("{target:?} {seed}: {} steps, {cuts} disks, {} verified", record.ops.len(), judge.verified);
}

/// The same on a disk that says that files are durable when they are not. That nothing half bears a final name there is not
/// promised; but whole is what `verify` says it is. Returns how many disks were tried.
fn try_a_liar(record: &Record, judge: &mut Judge, chances: u64, chance: &mut Chance) -> Result<u64, String> {
    let mut disk = Disk::new(record.before.clone(), true);
    let mut cuts = 0;
    for (step, op) in record.ops.iter().enumerate() {
        disk.take(op);
        let last = step + 1 == record.ops.len();
        let singles = if last { (0..disk.pending()).step_by(16 / chances as usize).collect() } else { Vec::new() };
        let some = if record.stage(step + 1) == Stage::Before { 0 } else { chances };
        let survivals =
            singles.into_iter().map(Survival::AllBut).chain((0..some).map(|_| Survival::Chance(chance.next())));
        for survival in survivals {
            judge.judge_a_liar(&disk.cut(survival)).map_err(|reason| format!("{survival:?} after {step}: {reason}"))?;
            cuts += 1;
        }
    }
    Ok(cuts)
}

/// What may be left of the changes that are not durable: all if they are few, else each lost and each alone before a step
/// that counts, and some of them by chance.
fn survivals(disk: &Disk, next: Option<&Op>, chances: u64, chance: &mut Chance) -> BTreeSet<Survival> {
    let (pending, names) = (disk.pending(), disk.pending_names());
    if pending <= 5 {
        let mut few: BTreeSet<_> = (0..1 << pending).map(Survival::Bits).collect();
        if pending > names {
            few.extend((0..chances).map(|_| Survival::Chance(chance.next())));
        }
        return few;
    }
    let mut some = BTreeSet::new();
    for of_names in 0..1u64 << names.min(4) {
        some.extend([Survival::Bits(of_names), Survival::Bits(u64::MAX << names.min(63) | of_names)]);
    }
    let counts = !matches!(next, Some(Op::Data { .. } | Op::Zero { .. }));
    let singles = if counts { 0..pending } else { pending - 3..pending };
    some.extend(singles.flat_map(|single| [Survival::AllBut(single), Survival::Only(single)]));
    some.extend((0..chances).map(|_| Survival::Chance(chance.next())));
    some
}

/// What a backup did to the destination.
struct Record {
    contents: Vec<u8>,
    before: Vec<(String, Arc<Vec<u8>>)>,
    ops: Vec<Op>,
    newer: Whole,
    beside: Whole,
}

impl Record {
    fn make(target: Target, seed: u64) -> Self {
        let folder = folder_in_memory();
        let path = folder.path().to_owned();
        for place in ["device", "container", "destination"] {
            fs::create_dir(path.join(place)).unwrap();
        }
        earlier_backup(&path, "earlier", seed + 100);
        match target {
            Target::Fresh => {}
            Target::Older | Target::InPlaceOlder => earlier_backup(&path, "image", seed + 200),
            Target::InPlace => write_sparse(&image_in(&path), &contents(seed + 300)),
        }
        let destination = path.join("destination");
        let names = names(&destination);
        let read = |name: &String| (name.clone(), Arc::new(fs::read(destination.join(name)).unwrap()));
        let before: Vec<_> = names.iter().map(read).collect();
        let contents = contents(seed);
        write_sparse(&device_in(&path), &contents);
        let scene = Scene { inside: seed % 2 == 1, target, fail_write: false, direct: false };
        let recorder = Recorder::new(&destination, &names);
        let (outcome, seen) = watched(recorder, move || backup(&path, scene, &AtomicBool::new(false))).unwrap();
        assert!(matches!(outcome.end, Ok((State::Complete, _))), "{:?}", outcome.end);
        assert!(seen.unknown.is_empty(), "calls that cannot be followed: {:?}", seen.unknown);
        let image = Arc::new(image_of(&contents));
        assert!(fs::read(destination.join("image")).unwrap() == **image, "the image is the device at the cut");
        let newer = Whole { image, manifest: read(&"image.manifest".into()).1 };
        let of = |name: &str| before.iter().find(|(found, _)| found == name).unwrap().1.clone();
        let beside = Whole { image: of("earlier"), manifest: of("earlier.manifest") };
        Self { contents, before, ops: seen.ops, newer, beside }
    }

    fn older(&self) -> Option<Whole> {
        let of = |name: &str| self.before.iter().find(|(found, _)| found == name).map(|(_, bytes)| bytes.clone());
        Some(Whole { image: of("image")?, manifest: of("image.manifest")? })
    }

    fn stage(&self, step: usize) -> Stage {
        let names_changed = |op: &Op| match op {
            Op::Remove { name } => name == "image.manifest",
            op => matches!(op, Op::Rename { .. }),
        };
        match self.ops[..step].iter().any(names_changed) {
            _ if step == self.ops.len() => Stage::Reported,
            true => Stage::Publishing,
            false => Stage::Before,
        }
    }

    /// The steps before and after, for people.
    fn around(&self, step: usize) -> Vec<String> {
        let steps = self.ops[step.saturating_sub(4)..(step + 1).min(self.ops.len())].iter();
        steps.map(|op| format!("{op:?}").chars().take(80).collect()).collect()
    }
}

/// A complete backup of other contents.
fn earlier_backup(folder: &Path, name: &str, seed: u64) {
    write_sparse(&device_in(folder), &contents(seed));
    let made = backup(
        folder,
        Scene { inside: false, target: Target::Fresh, fail_write: false, direct: false },
        &AtomicBool::new(true),
    );
    assert!(matches!(made.end, Ok((State::Complete, _))), "{:?}", made.end);
    for (from, to) in [("image", name.to_owned()), ("image.manifest", format!("{name}.manifest"))] {
        fs::rename(folder.join("destination").join(from), folder.join("destination").join(to)).unwrap();
    }
}
