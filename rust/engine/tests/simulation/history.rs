//! One history: devices, programs and a backup of them in virtual time, killed and taken up again as the plan says, and the
//! check of all that came of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockcow_engine::backup::Status;
use blockcow_engine::error::Error;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_simulation::{Chance, End, simulate};

use crate::cells::{CELL, put, tags};
use crate::disk::Disk;
use crate::model::{Begun, Model};
use crate::plan::{Part, Place, Plan};
use crate::storage::SimulatedStorage;

/// One history under way.
pub struct History {
    pub plan: Plan,
    pub disk: Arc<Disk>,
    /// Where each device begins on the disk.
    pub bases: Vec<u64>,
    pub images: Vec<Arc<Disk>>,
    pub containers: Vec<Option<Arc<Disk>>>,
    pub manifests: Vec<PathBuf>,
    pub model: Mutex<Model>,
    pub facts: Mutex<Facts>,
}

/// What is known so far.
#[derive(Default)]
pub struct Facts {
    pub devices: Vec<Arc<SimulatedStorage>>,
    pub submitted: u64,
    pub trespassed: bool,
    /// Whether the backups are prepared, and so the sections of the devices are the containers'.
    pub prepared: bool,
    pub tag: u32,
    /// Cells that the container uses, until a program writes there.
    pub foreign: Vec<bool>,
    pub kept: Vec<Option<(OwnedFd, String)>>,
    pub cut: Option<Result<(), Error>>,
    pub instants: Vec<Vec<u8>>,
    pub ends: Vec<Option<(State, Option<Error>)>>,
    pub statuses: Vec<Status>,
    pub refused: u64,
    pub timed_out: u64,
    pub resumed: bool,
}

/// What a history came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// A hash of the schedule and of all requests to storages.
    pub trace: u64,
    /// What happened in it, by name, for the coverage.
    pub happened: BTreeMap<&'static str, bool>,
}

/// Runs the history of a seed. Panics if a promise was broken.
pub fn run(seed: u64, folder: &Path) -> Outcome {
    let history = Arc::new(History::new(Plan::of(seed), folder));
    let mut trace = 0u64;
    for life in 0.. {
        let living = history.clone();
        let report = simulate(history.plan.habits(life), move || living.live(life));
        trace = trace.rotate_left(7) ^ report.trace;
        match report.end {
            End::Finished => break,
            End::Killed => history.kill(),
            End::Stuck(text) | End::Panicked(text) => panic!("life {life}, at {:?}: {text}", report.elapsed),
        }
    }
    history.judge();
    Outcome { trace, happened: history.happened() }
}

impl History {
    fn new(plan: Plan, folder: &Path) -> Self {
        let mut chance = Chance::new(!plan.seed);
        let mut bases = Vec::new();
        let mut end = 0;
        for part in &plan.parts {
            bases.push(end);
            end = (end + part.size).next_multiple_of(4096);
        }
        let mut bytes = vec![0; end as usize];
        let mut tag = 0;
        for (part, &base) in plan.parts.iter().zip(&bases) {
            for (index, piece) in bytes[base as usize..][..part.size as usize].chunks_mut(6 * CELL).enumerate() {
                if chance.one_in(3) {
                    continue;
                }
                tag += 1;
                let first = base as usize / CELL + index * 6;
                piece.chunks_mut(CELL).enumerate().for_each(|(at, cell)| put(tag, first + at, cell));
            }
        }
        let images = plan.parts.iter().map(|part| Disk::new(vec![0xff; part.size as usize], chance.draw()));
        let images = images.collect();
        let mut container = |part: &Part| match &part.place {
            Place::Storage { size, .. } => Some(Disk::new(vec![0xee; *size as usize], chance.draw())),
            Place::Memory(_) | Place::Sections(_) => None,
        };
        let containers = plan.parts.iter().map(&mut container).collect();
        let manifests: Vec<_> = (0..plan.parts.len()).map(|part| folder.join(format!("manifest{part}"))).collect();
        manifests.iter().for_each(|path| {
            let _ = std::fs::remove_file(path);
        });
        let model = Mutex::new(Model::new(&tags(&bytes, 0)));
        let none = |_: &Part| None;
        let facts = Facts {
            tag,
            foreign: vec![false; bytes.len() / CELL],
            ends: plan.parts.iter().map(|_| None).collect(),
            kept: plan.parts.iter().map(none).collect(),
            ..Facts::default()
        };
        let disk = Disk::new(bytes, chance.draw());
        let history = Self { plan, disk, bases, images, containers, manifests, model, facts: Mutex::new(facts) };
        for part in 0..history.plan.parts.len() {
            for reserved in history.reserved(part) {
                history.facts().foreign[history.cells(part, reserved)].fill(true);
            }
        }
        history
    }

    /// Never across a scheduling point, where its holder may vanish.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().expect("nobody panics with it")
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts());
    }

    pub fn device(&self, part: usize) -> Arc<SimulatedStorage> {
        self.facts().devices[part].clone()
    }

    /// The model's cells of some bytes of a device.
    pub fn cells(&self, part: usize, bytes: ByteRange) -> Range<usize> {
        let base = self.bases[part];
        ((base + bytes.start) / CELL as u64) as usize..((base + bytes.end) / CELL as u64) as usize
    }

    /// The whole blocks of the container's sections.
    pub fn reserved(&self, part: usize) -> Vec<ByteRange> {
        let Part { place, block, .. } = &self.plan.parts[part];
        let sections: &[ByteRange] = if let Place::Sections(sections) = place { sections } else { &[] };
        let whole = |section: &ByteRange| ByteRange {
            start: section.start.next_multiple_of(*block),
            end: section.end / block * block,
        };
        sections.iter().map(whole).collect()
    }

    pub fn begin(&self, cells: Range<usize>, zeroes: bool) -> Begun {
        let tag = if zeroes {
            0
        } else {
            let mut facts = self.facts();
            facts.tag += 1;
            facts.tag
        };
        self.model().begin(cells, tag)
    }

    /// The process is gone.
    fn kill(&self) {
        self.disk.kill();
        self.images.iter().chain(self.containers.iter().flatten()).for_each(|disk| disk.kill());
        self.model().kill();
        let mut facts = self.facts();
        facts.submitted = 0;
        facts.instants.extend(self.disk.instants());
    }
}
