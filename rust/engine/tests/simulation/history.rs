//! One history: devices, programs and a backup of them in virtual time, killed and taken up again as the plan says, and the
//! check of all that came of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::backup::{Backup, Status};
use blockcow_engine::destination::Destination;
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Remains, Spec, cut_together};
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_engine::storage::Storage;
use blockcow_simulation::{Chance, End, Instant, kill_after, simulate, thread};

use crate::load::{Program, Write};
use crate::model::{self, Begun, CELL, Listed, Model};
use crate::plan::{Part, Place, Plan};
use crate::storage::{Disk, Nature, SimulatedStorage};

/// One history under way.
pub struct History {
    pub plan: Plan,
    disk: Arc<Disk>,
    /// Where each device begins on the disk.
    bases: Vec<u64>,
    images: Vec<Arc<Disk>>,
    containers: Vec<Option<Arc<Disk>>>,
    manifests: Vec<PathBuf>,
    model: Mutex<Model>,
    facts: Mutex<Facts>,
}

/// What is known so far.
#[derive(Default)]
pub struct Facts {
    devices: Vec<Arc<SimulatedStorage>>,
    pub submitted: u64,
    pub trespassed: bool,
    /// Whether the backups are prepared, and so the sections of the devices are the containers'.
    pub prepared: bool,
    tag: u32,
    /// Cells that the container uses, until a program writes there.
    foreign: Vec<bool>,
    kept: Vec<Option<(OwnedFd, String)>>,
    /// How long writes were held at most.
    held: Duration,
    cut: Option<Result<(), Error>>,
    instants: Vec<Vec<u8>>,
    ends: Vec<Option<(State, Option<Error>)>>,
    statuses: Vec<Status>,
    refused: u64,
    timed_out: u64,
    resumed: bool,
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
                piece.chunks_mut(CELL).enumerate().for_each(|(at, cell)| model::put(tag, first + at, cell));
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
        let model = Mutex::new(Model::new(&model::tags(&bytes, 0)));
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
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().expect("nobody panics with it")
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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

    /// A write has ended, and is judged.
    pub fn end_write(&self, write: &Write, outcome: Result<(), Error>, since: Option<Instant>) {
        self.model().end(&write.begun, outcome.is_ok() && !write.discards);
        let device = self.device(write.part);
        let mut facts = self.facts();
        if outcome.is_ok() && !write.discards && write.sections_are_held {
            facts.foreign[self.cells(write.part, write.bytes)].fill(false);
        }
        if let Err(error) = &outcome {
            let of_device = error.kind == ErrorKind::Device && (device.failed() > 0 || write.fast);
            facts.refused += u64::from(!of_device);
            facts.timed_out += u64::from(error.kind == ErrorKind::Timeout);
            assert!(of_device || self.plan.fail_write, "a write failed without a reason: {error}");
        }
        if let Some(since) = since {
            let blocks = write.bytes.len().div_ceil(self.plan.parts[write.part].block) as u32;
            let bound = self.plan.timeout + facts.held + device.slowest() * (blocks + 4);
            let took = since.elapsed();
            assert!(took <= bound, "a write took {took:?}, and may take {bound:?}");
        }
    }

    /// What was acknowledged before a flush is durable after it.
    pub fn flush(&self, driver: &Driver, part: usize) {
        let cells = self.cells(part, ByteRange { start: 0, end: self.plan.parts[part].size });
        let before = self.model().look(cells.clone());
        let foreign = self.facts().foreign[cells.clone()].to_vec();
        if let Err(error) = driver.flush() {
            assert!(self.device(part).failed() > 0, "a flush failed on a sound device: {error}");
            return;
        }
        let durable = self.disk.durable();
        let mut found = model::tags(&durable[cells.start * CELL..cells.end * CELL], cells.start);
        // Cells of the container are not the model's.
        let possible = before.1.iter().map(|then| then[0]);
        found.iter_mut().zip(foreign).zip(possible).filter(|((_, foreign), _)| *foreign).for_each(
            |((found, _), then)| {
                *found = then;
            },
        );
        self.model().check_read(&found, cells.start, &before);
    }

    /// What one process does until its end.
    fn live(self: Arc<Self>, life: usize) {
        let drivers = self.drivers(life);
        // Programs are served only by a process that has taken up what the last one left.
        let taken_up = (life > 0).then(|| self.resume(&drivers));
        let programs = self.start_programs(&drivers, life);
        let backups = taken_up.unwrap_or_else(|| self.begin_backups(&drivers));
        let canceller = self.start_canceller(&backups);
        for (part, backup) in &backups {
            self.follow(*part, backup);
        }
        canceller.into_iter().chain(programs).for_each(|thread| thread.join().expect("it does not panic"));
        drop(backups);
        for driver in &drivers {
            driver.settle();
            assert_eq!(driver.state(), "passing");
        }
        self.model().check(&self.disk.bytes(), &self.facts().foreign);
    }

    fn drivers(&self, life: usize) -> Vec<Arc<Driver>> {
        let view = |part: usize| {
            let Part { device, size, .. } = &self.plan.parts[part];
            let base = self.bases[part] as usize;
            let seed = device.seed + life as u64;
            SimulatedStorage::new(self.disk.clone(), base..base + *size as usize, Nature { seed, ..device.clone() })
        };
        let views: Vec<_> = (0..self.plan.parts.len()).map(view).collect();
        self.facts().devices = views.clone();
        // The engine takes holds in the order of addresses, which must be that of the parts in every run.
        let mut drivers: Vec<_> = views.iter().map(|view| Driver::new(view.clone())).collect();
        let mut spare = Vec::new();
        while let [first, second] = &drivers[..]
            && Arc::as_ptr(first) > Arc::as_ptr(second)
        {
            // One of the two goes to where the other was, or beyond.
            spare.push(std::mem::replace(&mut drivers[spare.len() % 2], Driver::new(views[spare.len() % 2].clone())));
        }
        drivers
    }

    fn start_programs(self: &Arc<Self>, drivers: &[Arc<Driver>], life: usize) -> Vec<thread::JoinHandle<()>> {
        let start = |number: u64| {
            let chance = Chance::new(self.plan.seed ^ number << 48 ^ (life as u64) << 40);
            let program = Program { history: self.clone(), drivers: drivers.to_vec(), chance };
            let builder = thread::Builder::new().name(format!("program {number}"));
            let work = move || if number == 0 { program.submit() } else { program.run() };
            builder.spawn(work).expect("threads can be had")
        };
        (0..=self.plan.writers).map(start).collect()
    }

    fn begin_backups(&self, drivers: &[Arc<Driver>]) -> Vec<(usize, Arc<Backup>)> {
        thread::sleep(self.plan.before[0]);
        let mut backups = Vec::new();
        for (part, driver) in drivers.iter().enumerate() {
            match driver.prepare(self.spec(part)) {
                Ok(backup) => backups.push((part, Arc::new(backup))),
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Timeout, "not prepared: {error}");
                    return Vec::new();
                }
            }
        }
        self.facts().prepared = true;
        if let Some(&points) = self.plan.kills.first() {
            for (part, backup) in &backups {
                let kept = backup.kept().expect("it was prepared to be kept");
                let arena =
                    kept.descriptors.into_iter().find(|(name, _)| name == "arena").expect("there is an arena").1;
                self.facts().kept[*part] = Some((arena, kept.note));
            }
            kill_after(points);
        }
        thread::sleep(self.plan.before[1]);
        self.model().check(&self.disk.bytes(), &self.facts().foreign);
        let group: Vec<_> = backups.iter().map(|(part, backup)| (&*drivers[*part], &**backup)).collect();
        self.disk.watch();
        let since = Instant::now();
        let cut = match group[..] {
            [(driver, backup)] => driver.cut(backup, self.plan.cut_timeout),
            _ => cut_together(&group, self.plan.cut_timeout),
        };
        let mut facts = self.facts();
        facts.held = since.elapsed();
        facts.instants = self.disk.instants();
        facts.cut = Some(cut.map(drop));
        drop(facts);
        if !self.judge_cut() {
            backups.iter().for_each(|(_, backup)| backup.cancel());
        }
        backups
    }

    /// Whether the cut was made; if not, there must be a reason.
    fn judge_cut(&self) -> bool {
        let facts = self.facts();
        let Some(Err(error)) = &facts.cut else { return true };
        match error.kind {
            ErrorKind::Timeout => {
                let slowest = facts.devices.iter().map(|device| device.slowest()).sum::<Duration>();
                assert!(slowest * 2 >= self.plan.cut_timeout, "the cut took too long for {slowest:?}: {error}");
            }
            _ => assert!(facts.trespassed, "no cut: {error}"),
        }
        false
    }

    fn spec(&self, part: usize) -> Spec {
        let plan = &self.plan.parts[part];
        let image: Arc<dyn Storage> = self.image(part);
        let name = format!("image {part}");
        let destination = Destination::storage(image, name, &self.manifests[part], plan.size, false);
        Spec {
            block_size: Some(plan.block),
            logical_block: 512,
            container: match &plan.place {
                Place::Memory(size) => ContainerPlace::Memory(*size),
                Place::Sections(sections) => ContainerPlace::Sections(sections.clone()),
                Place::Storage { .. } => ContainerPlace::Storage(self.container(part).expect("it is on a storage")),
            },
            staging_bytes: plan.staging,
            capacity_bytes: plan.capacity,
            drain_bytes: plan.drain,
            destination: destination.expect("nothing is in the way of the image"),
            listing: plan.ranges.clone().map_or(Listing::Device, Listing::Ranges),
            policy: Policy { cbw_timeout: self.plan.timeout, fail_write: self.plan.fail_write },
            limit_read: plan.limit_read,
            identity: BTreeMap::new(),
            keep: !self.plan.kills.is_empty(),
        }
    }

    fn image(&self, part: usize) -> Arc<SimulatedStorage> {
        let plan = &self.plan.parts[part];
        SimulatedStorage::new(self.images[part].clone(), 0..plan.size as usize, plan.image.clone())
    }

    fn container(&self, part: usize) -> Option<Arc<dyn Storage>> {
        let Place::Storage { size, nature } = &self.plan.parts[part].place else { return None };
        let disk = self.containers[part].clone()?;
        Some(SimulatedStorage::new(disk, 0..*size as usize, nature.clone()))
    }

    /// The next process goes on with what a killed one left.
    fn resume(&self, drivers: &[Arc<Driver>]) -> Vec<(usize, Arc<Backup>)> {
        let mut backups = Vec::new();
        for (part, driver) in drivers.iter().enumerate() {
            let facts = self.facts();
            let Some((arena, note)) = facts.kept[part].as_ref().filter(|_| facts.ends[part].is_none()) else {
                continue;
            };
            let arena = arena.try_clone().expect("descriptors can be had");
            let note = note.clone();
            drop(facts);
            let remains = Remains { arena, note, image: self.image(part), container: self.container(part) };
            match driver.resume(remains) {
                Ok(backup) => {
                    self.facts().resumed = true;
                    backups.push((part, Arc::new(backup)));
                }
                Err(error) => {
                    let mut facts = self.facts();
                    let made = matches!(facts.cut, Some(Ok(())));
                    assert!(!made || !self.plan.is_calm(), "not taken up: {error}");
                    facts.refused += 1;
                    facts.ends[part] = Some((State::Broken, Some(error)));
                }
            }
        }
        backups
    }

    fn start_canceller(&self, backups: &[(usize, Arc<Backup>)]) -> Option<thread::JoinHandle<()>> {
        let after = self.plan.cancel_after?;
        let backups = backups.to_vec();
        Some(thread::spawn(move || {
            thread::sleep(after);
            backups.iter().for_each(|(_, backup)| backup.cancel());
        }))
    }

    /// Waits for the end of a backup, and looks at it meanwhile.
    fn follow(&self, part: usize, backup: &Backup) {
        let mut naps = Chance::new(self.plan.seed ^ 0xf0);
        for _ in 0..3 {
            self.judge_status(part, &backup.status());
            if backup.wait(Some(Duration::from_micros(naps.below(20_000)))) {
                break;
            }
        }
        backup.wait(None);
        let status = backup.status();
        self.judge_status(part, &status);
        let end = (backup.state(), backup.cause());
        let mut facts = self.facts();
        facts.ends[part] = Some(end);
        facts.statuses.push(status);
    }

    fn judge_status(&self, part: usize, status: &Status) {
        let plan = &self.plan.parts[part];
        let selected = (plan.capacity / plan.block * plan.block).max(plan.block);
        let Status { container_used_bytes: used, container_peak_bytes: peak, .. } = *status;
        assert!(used <= peak && peak <= selected, "the container holds {used} and held {peak} of {selected} bytes");
    }

    /// The process is gone.
    fn kill(&self) {
        self.disk.kill();
        self.images.iter().chain(self.containers.iter().flatten()).for_each(|disk| disk.kill());
        self.model().kill();
        let mut facts = self.facts();
        facts.submitted = 0;
        if facts.cut.is_none() {
            facts.instants = self.disk.instants();
        }
    }

    /// After the end.
    fn judge(&self) {
        let facts = self.facts();
        assert_eq!(facts.submitted, 0, "requests that were never completed");
        self.model().check(&self.disk.bytes(), &facts.foreign);
        let mut images = vec![0; facts.foreign.len() * CELL];
        let mut listed = vec![Listed::Void; facts.foreign.len()];
        for (part, end) in facts.ends.iter().enumerate() {
            let manifest = &self.manifests[part];
            let partial = manifest.with_extension("partial");
            let Some((State::Complete, _)) = end else {
                assert!(!manifest.exists() && !partial.exists(), "a manifest is left of what is not complete");
                let calm = self.plan.is_calm() && matches!(facts.cut, Some(Ok(())));
                assert!(!calm, "not complete, and nothing stood in the way: {end:?}");
                continue;
            };
            self.judge_image(part, &mut images, &mut listed);
        }
        if listed.iter().any(|listed| *listed != Listed::Void) {
            model::check_images(&images, &listed, &facts.instants);
        }
    }

    fn judge_image(&self, part: usize, images: &mut [u8], listed: &mut [Listed]) {
        let Part { size, block, ranges, .. } = &self.plan.parts[part];
        let durable = self.images[part].durable();
        assert!(durable == self.images[part].bytes(), "an image is complete that is not durable");
        let text = std::fs::read_to_string(&self.manifests[part]).expect("a complete backup has a manifest");
        let header: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("it is JSON");
        let extent = header["extent_size"].as_u64().expect("a number") as usize;
        assert_eq!((&header["status"], header["size"].as_u64()), (&"complete".into(), Some(*size)));
        assert_eq!(header["digest"], model::digest(&durable, extent), "the digest");
        let whole = self.cells(part, ByteRange { start: 0, end: *size });
        images[whole.start * CELL..whole.end * CELL].copy_from_slice(&durable);
        let all = vec![ByteRange { start: 0, end: *size }];
        listed[whole].fill(Listed::No);
        for range in ranges.as_ref().unwrap_or(&all) {
            let touched =
                ByteRange { start: range.start / block * block, end: range.end.next_multiple_of(*block).min(*size) };
            listed[self.cells(part, touched)].fill(Listed::Yes);
        }
        for reserved in self.reserved(part) {
            listed[self.cells(part, reserved)].fill(Listed::No);
        }
    }

    fn happened(&self) -> BTreeMap<&'static str, bool> {
        let facts = self.facts();
        let state = |state: State| facts.ends.iter().flatten().any(|(end, _)| *end == state);
        let cause = |kind: ErrorKind| {
            facts.ends.iter().flatten().any(|(_, cause)| cause.as_ref().is_some_and(|cause| cause.kind == kind))
        };
        let drained = facts.statuses.iter().any(|status| status.drains > 0);
        let suspended = facts.statuses.iter().any(|status| status.suspended_writes > 0);
        BTreeMap::from([
            ("complete", state(State::Complete)),
            ("broken", state(State::Broken)),
            ("cancelled", state(State::Cancelled)),
            ("resumed", facts.resumed && state(State::Complete)),
            ("suspended", suspended),
            ("drained", drained),
            ("refused", facts.refused > 0),
            ("timed out", facts.timed_out > 0 || cause(ErrorKind::Timeout)),
            ("trespassed", cause(ErrorKind::Trespass)),
        ])
    }
}
