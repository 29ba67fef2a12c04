//! Restoring: the target holds the image, or nothing was done to it, or the error says that it is incomplete.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::restore::{RestoreOptions, RestorePhase, RestoreReport, restore};

use crate::backup::{Backup, MIB, SIZE, names};
use crate::disks::{Loop, Mounted, can};

const DAMAGED: RestoreOptions = RestoreOptions { force_damaged: true, force_mounted: false };

fn to(backup: &Backup, target: &Path) -> Result<RestoreReport> {
    with(backup, target, RestoreOptions::default())
}

fn with(backup: &Backup, target: &Path, options: RestoreOptions) -> Result<RestoreReport> {
    restore(&backup.image, &backup.manifest, target, options, &|_, _, _| ControlFlow::Continue(()))
}

fn refused(backup: &Backup, target: &Path) -> Error {
    to(backup, target).unwrap_err()
}

#[test]
fn a_new_file_is_the_image_and_as_sparse() {
    let backup = Backup::new();
    let target = backup.path("restored");
    let report = to(&backup, &target).unwrap();
    assert!(fs::read(&target).unwrap() == backup.content);
    assert!(report.created && report.verified.damaged.is_empty());
    assert_eq!(report.written_bytes + report.zero_bytes, SIZE);
    assert!(report.written_bytes < 3 * MIB, "zeroes inside an extent are not written: {report:?}");
    assert!(fs::metadata(&target).unwrap().blocks() * 512 < 3 * MIB);
    assert_eq!(names(backup.folder.path()).len(), 3);
}

#[test]
fn an_existing_file_keeps_what_lies_behind_the_image() {
    let backup = Backup::new();
    let target = backup.path("existing");
    fs::write(&target, vec![0xff; SIZE as usize + 1000]).unwrap();
    assert!(!to(&backup, &target).unwrap().created);
    let found = fs::read(&target).unwrap();
    assert!(found[..SIZE as usize] == backup.content);
    assert_eq!(found[SIZE as usize..], [0xff; 1000]);
}

#[test]
fn a_block_device_holds_the_image_again() {
    if !can("a_block_device_holds_the_image_again", &["losetup"]) {
        return;
    }
    let backup = Backup::new();
    let device = Loop::new(8 * MIB, &[]);
    File::options().write(true).open(&device.path).unwrap().write_all_at(&[0xff; 8 << 20], 0).unwrap();
    to(&backup, &device.path).unwrap();
    let found = fs::read(&device.path).unwrap();
    assert!(found[..SIZE as usize] == backup.content);
    assert!(found[SIZE as usize..].iter().all(|&byte| byte == 0xff));

    let smaller = Loop::new(4 * MIB, &[]);
    let error = refused(&backup, &smaller.path);
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.reason.contains("4194304") && error.reason.contains("5243392"), "{error}");
    let short = backup.path("short");
    fs::write(&short, "short").unwrap();
    assert_eq!(refused(&backup, &short).kind, ErrorKind::Invalid);
    assert_eq!(fs::read(&short).unwrap(), b"short");
}

#[test]
fn damage_is_found_before_anything_is_written_unless_forced() {
    let backup = Backup::new();
    backup.flip((3 * MIB + 77) * 8);
    backup.flip((MIB + 5) * 8);
    let existing = backup.path("existing");
    let before = vec![0xff; SIZE as usize];
    fs::write(&existing, &before).unwrap();
    for target in [&existing, &backup.path("new")] {
        let error = refused(&backup, target);
        assert_eq!((error.kind, error.offset), (ErrorKind::Mismatch, Some(MIB)));
        assert!(error.reason.contains("2 extents") && error.reason.contains("nothing was written"), "{error}");
    }
    assert!(fs::read(&existing).unwrap() == before);
    assert_eq!(names(backup.folder.path()).len(), 3, "no new file");

    let report = with(&backup, &existing, DAMAGED).unwrap();
    assert_eq!(report.verified.damaged, [MIB, 3 * MIB]);
    assert!(fs::read(&existing).unwrap() == fs::read(&backup.image).unwrap());
}

#[test]
fn damage_that_comes_after_the_verification_is_found_all_the_same() {
    let backup = Backup::new();
    for target in [backup.path("new"), backup.path("existing")] {
        let verified = Cell::new(false);
        let error = restore(&backup.image, &backup.manifest, &target, DAMAGED, &|phase, done, total| {
            if phase == RestorePhase::Verifying && done == total && !verified.replace(true) {
                backup.flip(5 * MIB * 8);
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
        assert_eq!((error.kind, error.offset), (ErrorKind::Mismatch, Some(5 * MIB)));
        assert_eq!(error.reason.contains("now incomplete"), target.ends_with("existing"), "{error}");
        assert!(!backup.path("new").exists() && !backup.path("new.partial").exists());
        backup.flip(5 * MIB * 8);
        fs::write(backup.path("existing"), vec![0xff; SIZE as usize]).unwrap();
    }
}

#[test]
fn cancelled_it_leaves_no_new_file() {
    let backup = Backup::new();
    for last in [RestorePhase::Verifying, RestorePhase::Writing] {
        let target = backup.path("new");
        let error = restore(&backup.image, &backup.manifest, &target, RestoreOptions::default(), &|phase, _, _| {
            assert!(!target.exists(), "it bears no name before it is whole");
            if phase == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
        assert_eq!(names(backup.folder.path()).len(), 2);
    }
}

#[test]
fn the_image_itself_and_impossible_targets_are_refused() {
    let backup = Backup::new();
    let (link, hard) = (backup.path("link"), backup.path("hard"));
    symlink(&backup.image, &link).unwrap();
    fs::hard_link(&backup.image, &hard).unwrap();
    for target in [&backup.image, &link, &hard] {
        let error = refused(&backup, target);
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.reason.contains("the image itself"), "{error}");
    }
    assert_eq!(refused(&backup, backup.folder.path()).kind, ErrorKind::Invalid);
    assert_eq!(refused(&backup, Path::new("/dev/null")).kind, ErrorKind::Invalid);
    assert_eq!(refused(&backup, Path::new("/dev/sdzz9")).kind, ErrorKind::Invalid);
    assert_eq!(refused(&backup, &backup.path("no/such/file")).kind, ErrorKind::NotFound);
    assert!(fs::read(&backup.image).unwrap() == backup.content);
}

#[test]
fn a_mounted_device_is_refused_unless_forced() {
    if !can("a_mounted_device_is_refused_unless_forced", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let backup = Backup::new();
    let mounted = Mounted::made("ext4", 8 * MIB);
    let error = refused(&backup, mounted.device());
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.reason.contains("mounted"), "{error}");
    with(&backup, mounted.device(), RestoreOptions { force_damaged: false, force_mounted: true }).unwrap();
    // The mounted file system may have written its superblock, in the first MiB, since.
    let found = fs::read(mounted.device()).unwrap();
    assert!(found[MIB as usize..SIZE as usize] == backup.content[MIB as usize..]);
}

#[test]
fn a_full_file_system_is_named_and_what_it_leaves_is_said() {
    if !can("a_full_file_system_is_named_and_what_it_leaves_is_said", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let backup = Backup::new();
    let small = Mounted::made("ext4", 4 * MIB);
    let existing = small.path("existing");
    File::create(&existing).unwrap().set_len(SIZE).unwrap();
    let mut filler = File::create(small.path("filler")).unwrap();
    while filler.write_all(&[1; 1 << 16]).is_ok() {}
    let before = names(small.path("").as_path());
    for target in [small.path("new"), existing] {
        let error = refused(&backup, &target);
        assert_eq!((error.kind, error.errno), (ErrorKind::Device, Some(libc::ENOSPC)));
        assert!(error.offset.is_some() && error.operation.contains(target.to_str().unwrap()), "{error}");
        assert_eq!(error.reason.contains("now incomplete"), target.ends_with("existing"), "{error}");
        assert_eq!(names(small.path("").as_path()), before);
    }
}
