//! What one process does: it serves programs and makes a backup, or goes on with one that a killed process left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::backup::Backup;
use blockcow_engine::destination::Destination;
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Remains, Spec, cut_together};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::state::State;
use blockcow_engine::storage::Storage;
use blockcow_simulation::{Chance, kill_after, thread};

use crate::history::History;
use crate::load::Program;
use crate::plan::{Part, Place};
use crate::storage::{Nature, SimulatedStorage};

impl History {
    /// What one process does until its end.
    pub fn live(self: Arc<Self>, life: usize) {
        let drivers = self.drivers(life);
        // Programs are served only by a process that has taken up what the last one left.
        let taken_up = (life > 0).then(|| self.resume(&drivers, life));
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
        if !self.plan.kills.is_empty() {
            for (part, backup) in &backups {
                let kept = backup.kept().expect("it was prepared to be kept");
                let arena =
                    kept.descriptors.into_iter().find(|(name, _)| name == "arena").expect("there is an arena").1;
                self.facts().kept[*part] = Some((arena, kept.note));
            }
        }
        if self.plan.kills_before_cut {
            self.arm_kill(0);
        }
        thread::sleep(self.plan.before[1]);
        self.model().check(&self.disk.bytes(), &self.facts().foreign);
        let group: Vec<_> = backups.iter().map(|(part, backup)| (&*drivers[*part], &**backup)).collect();
        self.disk.watch();
        if !self.plan.kills_before_cut {
            self.arm_kill(0);
        }
        let cut = match group[..] {
            [(driver, backup)] => driver.cut(backup, self.plan.cut_timeout),
            _ => cut_together(&group, self.plan.cut_timeout),
        };
        let mut facts = self.facts();
        facts.instants = self.disk.instants();
        facts.cut = Some(cut.map(drop));
        drop(facts);
        if !self.judge_cut() {
            backups.iter().for_each(|(_, backup)| backup.cancel());
        }
        backups
    }

    /// Has this life end as the plan says.
    fn arm_kill(&self, life: usize) {
        if let Some(&points) = self.plan.kills.get(life) {
            kill_after(points);
        }
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
    fn resume(&self, drivers: &[Arc<Driver>], life: usize) -> Vec<(usize, Arc<Backup>)> {
        self.arm_kill(life);
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
}
