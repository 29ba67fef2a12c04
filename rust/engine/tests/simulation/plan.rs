//! What one history is made from: sizes, places, faults, policy and load, all drawn from its seed.

use std::time::Duration;

use blockcow_engine::geometry::ByteRange;
use blockcow_simulation::{Chance, Habits};

use crate::cells::CELL;
use crate::storage::{Fault, Kind, Nature};

/// Where the container is.
#[derive(Debug, Clone)]
pub enum Place {
    Memory(u64),
    Storage { size: u64, nature: Nature },
    Sections(Vec<ByteRange>),
}

/// One device of a group, and its backup.
#[derive(Debug, Clone)]
pub struct Part {
    pub size: u64,
    pub block: u64,
    pub device: Nature,
    pub image: Nature,
    pub place: Place,
    pub staging: u64,
    pub capacity: u64,
    pub drain: u64,
    /// What is listed; `None` is the whole device.
    pub ranges: Option<Vec<ByteRange>>,
    pub limit_read: Option<u64>,
}

/// See the file's first lines.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub parts: Vec<Part>,
    pub timeout: Duration,
    pub fail_write: bool,
    pub cut_timeout: Duration,
    pub writers: u64,
    pub operations: u64,
    /// Between two operations of a writer, more or less.
    pub rest: Duration,
    pub largest: u64,
    /// Before the backup is prepared, and between that and the cut.
    pub before: [Duration; 2],
    pub cancel_after: Option<Duration>,
    pub trespass: bool,
    /// After so many scheduling points of a life it is killed, and the next goes on.
    pub kills: Vec<u64>,
    /// The points count from the preparation on, else from the cut or the resumption on.
    pub kills_before_cut: bool,
    calm: u64,
    favourites: bool,
}

fn micros(chance: &mut Chance, most: u64) -> Duration {
    Duration::from_micros(chance.below(most))
}

/// Early points as often as late ones.
fn kill_point(chance: &mut Chance) -> u64 {
    let most = 1 << chance.below(13);
    1 + chance.below(most)
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let chance = &mut chance;
        let kills = if chance.one_in(4) { 1 + u64::from(chance.one_in(4)) } else { 0 };
        let count = 1 + usize::from(chance.one_in(6));
        let faulty = chance.one_in(3);
        let parts: Vec<_> = (0..count).map(|_| Part::of(chance, faulty && kills == 0, kills > 0)).collect();
        let sections = parts.iter().any(|part| matches!(part.place, Place::Sections(_)));
        Self {
            seed,
            timeout: chance.pick(&[2_000, 50_000, 3_600_000_000, 3_600_000_000].map(Duration::from_micros)),
            fail_write: chance.one_in(3),
            cut_timeout: chance.pick(&[3_000, 30_000_000, 30_000_000].map(Duration::from_micros)),
            writers: 1 + chance.below(4),
            operations: 4 + chance.below(28),
            rest: chance.pick(&[0, 50, 1000, 20_000].map(Duration::from_micros)),
            largest: chance.pick(&[1024, 4096, 16 << 10]),
            before: [micros(chance, 3000), micros(chance, 3000)],
            cancel_after: chance.one_in(8).then(|| micros(chance, 60_000)),
            trespass: sections && chance.one_in(4),
            kills: (0..kills).map(|_| kill_point(chance)).collect(),
            kills_before_cut: chance.one_in(4),
            calm: chance.pick(&[2, 8, 40, 300]),
            favourites: chance.one_in(2),
            parts,
        }
    }

    pub fn habits(&self, life: usize) -> Habits {
        let seed = self.seed.wrapping_mul(31).wrapping_add(life as u64);
        Habits { seed, calm: self.calm, favourites: self.favourites, most_points: 3_000_000 }
    }

    /// Whether nothing stands in the way of a complete backup.
    pub fn is_calm(&self) -> bool {
        let sound = |nature: &Nature| nature.fault.is_none();
        let parts = self.parts.iter().all(|part| {
            let container = if let Place::Storage { nature, .. } = &part.place { sound(nature) } else { true };
            sound(&part.device) && sound(&part.image) && container
        });
        let patient = self.timeout > Duration::from_secs(60) && self.cut_timeout > Duration::from_secs(20);
        parts && patient && !self.trespass && self.cancel_after.is_none()
    }
}

impl Part {
    fn of(chance: &mut Chance, faulty: bool, near: bool) -> Self {
        let block = chance.pick(&[512, 1024, 1024, 2048, 4096]);
        let size = match chance.below(4) {
            0 => block * (1 + chance.below(8)),
            _ => (8 << 10) + chance.below(64 << 10),
        };
        let size = (size + chance.below(2) * chance.below(block)).next_multiple_of(CELL as u64);
        let blocks = size / block;
        // The last request that is named first has the fault.
        let sick = if faulty { chance.below(4) } else { 4 };
        let slow = chance.one_in(3);
        let device = Nature { sparse: chance.one_in(4), ..nature(chance, sick == 0, &[20, 200, 1000], false) };
        let paces: &[u64] = if slow { &[5000, 30_000] } else { &[20, 200, 2000] };
        let far = !near && chance.one_in(3);
        let image = nature(chance, sick == 1 || sick == 3, paces, far);
        let place = match chance.below(4) {
            0 => Place::Memory(block * few(chance, blocks)),
            1 if blocks > 3 => Place::Sections(sections(chance, blocks, block)),
            _ => {
                let far = !near && chance.one_in(3);
                let size = block * few(chance, blocks) + chance.below(block);
                Place::Storage { size, nature: nature(chance, sick == 2, &[20, 200, 4000], far) }
            }
        };
        let range = |chance: &mut Chance| {
            let start = chance.below(size);
            ByteRange { start, end: start + 1 + chance.below(size - start) }
        };
        Self {
            size,
            block,
            device,
            image,
            place,
            staging: block * few(chance, blocks),
            capacity: block * few(chance, blocks),
            drain: block * few(chance, blocks),
            ranges: chance.one_in(6).then(|| (0..chance.below(4)).map(|_| range(chance)).collect()),
            limit_read: chance.one_in(6).then(|| chance.pick(&[64 << 10, 1 << 20])),
        }
    }
}

/// From one to all of them, rather few.
fn few(chance: &mut Chance, all: u64) -> u64 {
    let most = chance.pick(&[1, 4, 16, all.max(1)]);
    1 + chance.below(most)
}

fn nature(chance: &mut Chance, sick: bool, paces: &[u64], far: bool) -> Nature {
    let fault = sick.then(|| Fault {
        kind: chance.pick(&[Kind::Read, Kind::Write, Kind::Write, Kind::Sync]),
        errno: if far && chance.one_in(2) {
            None
        } else {
            Some(chance.pick(&[libc::EIO, libc::ENOSPC, libc::ETIMEDOUT]))
        },
        after: chance.below(30),
        times: chance.pick(&[1, 3, u64::MAX]),
    });
    let (pace, hiccup) = (Duration::from_micros(chance.pick(paces)), chance.pick(&[0, 20, 100]));
    Nature { seed: chance.draw(), pace, hiccup, fault, far, sparse: false }
}

/// One or two sections that do not overlap, not all at block borders, each with a whole block in it.
fn sections(chance: &mut Chance, blocks: u64, block: u64) -> Vec<ByteRange> {
    let half = blocks / 2;
    let mut one = |from: u64, blocks: u64| {
        let (start, count) = (from + chance.below(blocks), 1 + chance.below(4));
        let end = (start + count).min(from + blocks);
        let lead = if start > from { chance.below(2) * CELL as u64 } else { 0 };
        ByteRange { start: start * block - lead, end: end * block }
    };
    let mut sections = vec![one(0, half), one(half, blocks - half)];
    sections.rotate_left(chance.below(2) as usize);
    sections.truncate(1 + chance.below(2) as usize);
    sections
}
