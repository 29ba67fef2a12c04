//! Which faults are tried, and the runs themselves, side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use blockcow_engine::destination::manifest_path_for;
use blockcow_engine::state::State;
use blockcow_proof::Tally;
use rustix::thread::CpuSet;
use tempfile::TempDir;

use crate::fault::{Fault, Injector, Lasting, Place, What};
use crate::kernel::watched;
use crate::oracle::{Case, Whole, manifest_in};
use crate::rig::{Chance, folder_in_memory};
use crate::run::{Outcome, Scene, Target, backup, contents, device_in, image_in, image_of, write_sparse};

pub const ERRNOS: [i32; 3] = [libc::EIO, libc::ENOSPC, libc::ETIMEDOUT];

/// More than there are processors, because the sweep of each waits for its pace.
const AT_A_TIME: usize = 4;
/// After one of so many backups that broke, another is made in the same place.
const NEXT_AFTER: u64 = 16;
/// The last so many operations on the destination have to do with names and manifests.
const PUBLISHING: u64 = 40;
/// At one of so many operations, the place is gone for good as well.
const GONE_AFTER: u64 = 8;
/// After so many broken promises nothing more is tried.
const ENOUGH: usize = 20;

/// Faults to be tried.
pub struct Plan<'a> {
    tally: &'a Tally,
    grounds: Grounds,
    faults: Vec<(Scene, Fault)>,
}

/// What all runs begin with.
struct Grounds {
    contents: Vec<u8>,
    expected: Whole,
    older: Whole,
    _folder: TempDir,
    /// Where the older backup lies.
    folder: PathBuf,
}

impl<'a> Plan<'a> {
    pub fn new(tally: &'a Tally) -> Self {
        Self { tally, grounds: Grounds::new(), faults: Vec::new() }
    }

    /// These errors, once and for all of the same kind, at so many operations of each place at the most; here and there the
    /// first of them for all from then on.
    pub fn errors(&mut self, scene: Scene, errnos: &[i32], most: u64) {
        let calls = self.grounds.without_fault(scene).calls();
        for (place, calls) in Place::ALL.into_iter().zip(calls) {
            for nth in some_of(calls, most) {
                for &errno in errnos {
                    let what = What::Errno(errno);
                    for lasting in [Lasting::Once, Lasting::Kind] {
                        self.faults.push((scene, Fault { place, nth, what, lasting }));
                    }
                }
                if nth % GONE_AFTER == 1 {
                    let (what, lasting) = (What::Errno(errnos[0]), Lasting::All);
                    self.faults.push((scene, Fault { place, nth, what, lasting }));
                }
            }
        }
    }

    /// This error once, at each of the operations that publish.
    pub fn publishing(&mut self, scene: Scene, errno: i32) {
        let [.., calls] = self.grounds.without_fault(scene).calls();
        let place = Place::Destination;
        self.faults.extend(
            (calls - PUBLISHING..=calls)
                .map(|nth| (scene, Fault { place, nth, what: What::Errno(errno), lasting: Lasting::Once })),
        );
    }

    /// Short transfers, one and all from then on of its kind, beginning at so many of each place at the most.
    pub fn shorts(&mut self, scene: Scene, most: u64) {
        let transfers = self.grounds.without_fault(scene).transfers;
        for (place, transfers) in Place::ALL.into_iter().zip(transfers) {
            for nth in some_of(transfers, most) {
                for lasting in [Lasting::Once, Lasting::Kind] {
                    self.faults.push((scene, Fault { place, nth, what: What::Short, lasting }));
                }
            }
        }
    }

    /// Tries them all.
    ///
    /// # Panics
    /// If a promise did not hold.
    pub fn run(mut self) {
        // What is found is found early.
        let mut chance = Chance::new(1);
        self.faults.sort_by_cached_key(|_| chance.next());
        let (next, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for worker in 0..AT_A_TIME {
                let (next, found, this) = (&next, &found, &self);
                scope.spawn(move || {
                    stay_on(worker);
                    while found.load(Ordering::Relaxed) < ENOUGH
                        && let Some(&(scene, fault)) = this.faults.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        match this.grounds.attempt(scene, fault) {
                            Ok(struck) => this.tally.executed(u64::from(struck)),
                            Err(reason) => {
                                println!("{scene:?} {fault:?}: {reason}");
                                this.tally.violated();
                                found.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(found.into_inner(), 0, "promises that did not hold");
    }
}

/// Numbers from 1 on, evenly.
fn some_of(count: u64, most: u64) -> impl Iterator<Item = u64> {
    (1..=count).step_by(count.div_ceil(most).max(1) as usize)
}

/// Runs on one processor from now on, with all threads that it starts: calls are handed over several times faster where no
/// other processor must wake.
fn stay_on(worker: usize) {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect();
    let mut only = CpuSet::new();
    only.set(processors[worker % processors.len()]);
    rustix::thread::sched_setaffinity(None, &only).unwrap();
}

impl Grounds {
    fn new() -> Self {
        let old = contents(1);
        let whole = folder_in_memory();
        let folder = whole.path().to_owned();
        for place in Place::ALL {
            fs::create_dir(folder.join(place.folder())).unwrap();
        }
        write_sparse(&device_in(&folder), &old);
        let scene = Scene { inside: false, target: Target::Fresh, fail_write: false, direct: false };
        let outcome = backup(&folder, scene, &AtomicBool::new(false));
        assert!(is_complete(&outcome), "{:?}", outcome.end);
        let older = Whole { image: image_of(&old), manifest: Some(fs::read(manifest_in(&folder)).unwrap()) };
        let contents = contents(2);
        let expected = Whole { image: image_of(&contents), manifest: None };
        Self { contents, expected, older, _folder: whole, folder }
    }

    /// A folder in which a run of this scene can begin.
    fn lay(&self, scene: Scene) -> TempDir {
        let folder = folder_in_memory();
        for place in Place::ALL {
            fs::create_dir(folder.path().join(place.folder())).unwrap();
        }
        write_sparse(&device_in(folder.path()), &self.contents);
        let beside = folder.path().join("destination/earlier");
        self.link(&beside);
        match scene.target {
            Target::Fresh => {}
            Target::Older => self.link(&image_in(folder.path())),
            // What is not overwritten with the image would be seen in it.
            Target::InPlace => write_sparse(&image_in(folder.path()), &self.contents),
            Target::InPlaceOlder => {
                write_sparse(&image_in(folder.path()), &self.older.image);
                fs::write(manifest_in(folder.path()), self.older.manifest.as_ref().unwrap()).unwrap();
            }
        }
        folder
    }

    fn link(&self, image: &Path) {
        fs::hard_link(image_in(&self.folder), image).unwrap();
        fs::hard_link(manifest_in(&self.folder), manifest_path_for(image)).unwrap();
    }

    fn without_fault(&self, scene: Scene) -> Injector {
        let folder = self.lay(scene);
        let (outcome, seen) = watched_backup(folder.path(), scene, None).unwrap();
        assert!(is_complete(&outcome), "{:?}", outcome.end);
        let calls = seen.calls();
        assert!(calls.iter().sum::<u64>() >= 2000, "{calls:?} are not 2,000 operations");
        seen
    }

    /// One run. Whether the fault struck; it does not if the run had fewer operations than the one that was counted.
    fn attempt(&self, scene: Scene, fault: Fault) -> Result<bool, String> {
        let folder = self.lay(scene);
        let (outcome, seen) = watched_backup(folder.path(), scene, Some(fault))?;
        let (contents, expected, older) = (&self.contents[..], &self.expected, &self.older);
        let case = Case { folder: folder.path(), scene, fault, contents, expected, older };
        case.judge(&outcome, &seen)?;
        if fault.lasting == Lasting::Once && fault.nth.is_multiple_of(NEXT_AFTER) && !is_complete(&outcome) {
            next_works(folder.path(), scene)?;
        }
        Ok(!seen.struck.is_empty())
    }
}

fn watched_backup(folder: &Path, scene: Scene, fault: Option<Fault>) -> Result<(Outcome, Injector), String> {
    let (injector, path) = (Injector::new(folder, scene.direct, fault), folder.to_owned());
    let hit = injector.hit.clone();
    watched(injector, move || backup(&path, scene, &hit))
}

fn is_complete(outcome: &Outcome) -> bool {
    matches!(outcome.end, Ok((State::Complete, _)))
}

/// Whatever broke the last backup, the next one of the same device to the same place is complete.
fn next_works(folder: &Path, scene: Scene) -> Result<(), String> {
    let expected = image_of(&fs::read(device_in(folder)).unwrap());
    let outcome = backup(folder, scene, &AtomicBool::new(true));
    match fs::read(image_in(folder)) {
        Ok(image) if is_complete(&outcome) && image == expected => Ok(()),
        _ => Err(format!("the next backup: {:?}", outcome.end)),
    }
}
