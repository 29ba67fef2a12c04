//! Killed while it publishes, before each system call that changes a name or makes something durable: complete in truth,
//! or broken, never half.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use blockcow_engine::destination::manifest_path_for;
use blockcow_engine::manifest::Manifest;
use blockcow_engine::verify::verify;
use serde_json::Value;

use crate::disks;
use crate::keeper::{Case, End};
use crate::rig::{Chance, assert_same, folder_in_memory};
use crate::worker::{Act, Orders, Place};

const SIZE: u64 = 300_001;

/// Which of a kind of system calls of one thread the worker does not live to make. Only publishing makes them.
type Point = (&'static str, u32);

const SYNC_IMAGE: &str = "fdatasync";
const SYNC: &str = "fsync";
const RENAME: &str = "?rename,?renameat,renameat2";
const REMOVE: &str = "?unlink,unlinkat";

/// The image is synced; a manifest's remains are removed, it is written and synced; renames, with a synced folder each.
const POINTS: [Point; 7] = [(SYNC_IMAGE, 1), (REMOVE, 1), (SYNC, 1), (RENAME, 1), (SYNC, 2), (RENAME, 2), (SYNC, 3)];
/// The same where an old manifest is removed before the image is renamed.
const OVERWRITING: [Point; 9] =
    [(SYNC_IMAGE, 1), (REMOVE, 1), (SYNC, 1), (REMOVE, 2), (SYNC, 2), (RENAME, 1), (SYNC, 3), (RENAME, 2), (SYNC, 4)];

fn case(folder: &Path, seed: u64, overwrite: bool) -> Case {
    fs::write(folder.join("device"), Chance::new(seed).contents(SIZE)).unwrap();
    Case::new(Orders {
        folder: folder.to_owned(),
        seed,
        size: SIZE,
        block: 4096,
        place: Place::Memory,
        container: 64 << 10,
        staging: 64 << 10,
        capacity: 64 << 10,
        rate: u64::MAX / 2,
        overwrite,
        act: Act::Wait,
        load: false,
        kept: Vec::new(),
    })
}

/// A worker of this case that dies at the point, if it comes there; the first one, or one that goes on.
fn dying(case: &mut Case, (calls, when): Point, first: bool) -> End {
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:signal=KILL:when={when}"));
    let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let worker = if first { case.begin(&wrapper) } else { case.go_on(&wrapper) };
    case.watch(worker)
}

fn to_the_end(case: &mut Case) -> Value {
    let worker = case.go_on(&[]);
    match case.watch(worker) {
        End::Ended(figures) => figures,
        other => panic!("{other:?}"),
    }
}

/// What a manifest calls complete is complete, at every instant.
fn assert_never_half(case: &Case) {
    let (image, manifest) = (case.image(), manifest_path_for(&case.image()));
    if Manifest::load(&manifest).is_ok() {
        // The dead worker's lock is still there: read a copy.
        let copy = case.orders.folder.join("copy");
        fs::copy(&image, &copy).unwrap();
        let report = verify(&copy, &manifest, &|_, _| ControlFlow::Continue(())).unwrap();
        assert!(report.damaged.is_empty());
        fs::remove_file(copy).unwrap();
    }
}

#[test]
fn killed_before_each_step_and_again_it_is_complete_in_the_end() {
    if !disks::can("publish::killed_before_each_step_and_again_it_is_complete_in_the_end", &["strace"]) {
        return;
    }
    let (mut kills, mut seed) = (0, 0);
    for first in POINTS {
        for second in std::iter::once(None).chain(POINTS.map(Some)) {
            let folder = folder_in_memory();
            seed += 1;
            let mut case = case(folder.path(), seed, false);
            assert!(matches!(dying(&mut case, first, true), End::Killed), "{first:?}");
            assert_never_half(&case);
            let again = second.map(|point| dying(&mut case, point, false));
            assert_never_half(&case);
            let figures = match again {
                Some(End::Ended(figures)) => figures,
                _ => to_the_end(&mut case),
            };
            case.assert_complete(&figures);
            kills += case.killed;
        }
    }
    println!("{kills} kills during publishing");
}

#[test]
fn an_older_backup_is_there_until_its_successor_is() {
    if !disks::can("publish::an_older_backup_is_there_until_its_successor_is", &["strace"]) {
        return;
    }
    for (seed, point) in OVERWRITING.into_iter().enumerate() {
        let folder = folder_in_memory();
        let mut older = case(folder.path(), 100, false);
        let worker = older.begin(&[]);
        assert!(matches!(older.watch(worker), End::Ended(_)));
        drop(older);
        let mut newer = case(folder.path(), seed as u64, true);
        assert!(matches!(dying(&mut newer, point, true), End::Killed), "{point:?}");
        assert_never_half(&newer);
        let figures = to_the_end(&mut newer);
        newer.assert_complete(&figures);
    }
}

#[test]
fn what_was_changed_meanwhile_is_broken_and_not_complete() {
    if !disks::can("publish::what_was_changed_meanwhile_is_broken_and_not_complete", &["strace"]) {
        return;
    }
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[SIZE as usize - 1] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let partial = |case: &Case| case.orders.folder.join("image.partial");
    let manifest = |case: &Case| manifest_path_for(&case.image());
    type Meddling<'a> = (Point, &'a dyn Fn(&Case), &'a [&'a str], &'a str);
    let meddlings: [Meddling<'_>; 5] = [
        ((SYNC_IMAGE, 1), &|case| flip(&partial(case)), &[], "not what was written"),
        ((RENAME, 1), &|case| flip(&partial(case)), &[], "not what was written"),
        ((RENAME, 2), &|case| flip(&case.image()), &[], "not what was written"),
        ((RENAME, 1), &|case| fs::remove_file(partial(case)).unwrap(), &[], "somebody removed"),
        ((RENAME, 2), &|case| fs::write(manifest(case), "another's").unwrap(), &["image.manifest"], "not replaced"),
    ];
    for (index, (point, meddle, left, reason)) in meddlings.into_iter().enumerate() {
        let folder = folder_in_memory();
        let mut case = case(folder.path(), 200 + index as u64, false);
        assert!(matches!(dying(&mut case, point, true), End::Killed), "{point:?}");
        meddle(&case);
        let figures = to_the_end(&mut case);
        assert_eq!(figures["status"], "broken", "{index}: {figures}");
        let error = figures["error"].as_str().unwrap();
        assert!(error.contains(reason), "{index}: {error}");
        case.assert_names(left);
    }
}

#[test]
fn what_was_published_is_found_complete() {
    // Published, and dead before anybody heard of it: complete, and not published again.
    let folder = folder_in_memory();
    let mut whole = case(folder.path(), 300, false);
    let worker = whole.begin(&[]);
    assert!(matches!(whole.watch(worker), End::Ended(_)));
    let before = fs::read(manifest_path_for(&whole.image())).unwrap();
    let figures = to_the_end(&mut whole);
    whole.assert_complete(&figures);
    assert_same(&fs::read(manifest_path_for(&whole.image())).unwrap(), &before, "the manifest");
}

/// A larger case that is not done before what the worker does.
fn acting(folder: &Path, act: Act) -> Case {
    let size = 4 << 20;
    let mut case = case(folder, 400, false);
    fs::write(folder.join("device"), Chance::new(400).contents(size)).unwrap();
    let place = Place::Sections(vec![(1 << 20, (1 << 20) + (64 << 10))]);
    case.orders = Orders { size, act, place, rate: 8 << 20, ..case.orders };
    case
}

fn assert_refused(case: &mut Case, reason: &str) {
    let worker = case.go_on(&[]);
    match case.watch(worker) {
        End::Refused(said) => assert!(said.contains(reason), "{said}"),
        other => panic!("{other:?}"),
    }
    case.assert_names(&[]);
}

#[test]
fn what_had_ended_does_not_go_on_and_its_remains_are_removed() {
    if !disks::can("publish::what_had_ended_does_not_go_on_and_its_remains_are_removed", &["strace"]) {
        return;
    }
    // Writes went without a copy, and what it made is still there.
    let folder = folder_in_memory();
    let mut cancelled = acting(folder.path(), Act::Cancel);
    assert!(matches!(dying(&mut cancelled, (REMOVE, 1), true), End::Killed));
    cancelled.assert_names(&["image.partial"]);
    assert_refused(&mut cancelled, "cancelled before");

    let folder = folder_in_memory();
    let mut trespassed = acting(folder.path(), Act::Trespass);
    let worker = trespassed.begin(&[]);
    assert!(matches!(trespassed.watch(worker), End::Killed));
    assert_refused(&mut trespassed, "broken before its process died: copy before write at offset 1048576");
}
