//! Publishing: all or nothing, and never an old manifest beside a new image.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::manifest::Manifest;
use blockcow_engine::storage::{Fault, FaultStorage, Operation};

use crate::backup::{Backup, MIB, SIZE, content, fill, geometry, names};
use crate::disks::{Loop, Mounted, can};

fn create(image: &Path, overwrite: bool) -> Result<Destination> {
    Destination::open(image, &manifest_path_for(image), SIZE, overwrite)
}

fn refused(image: &Path, manifest: &Path, overwrite: bool) -> Error {
    Destination::open(image, manifest, SIZE, overwrite).err().expect("this destination must be refused")
}

fn published(destination: &Destination, seed: u8) -> Result<()> {
    destination.publish(&fill(destination, geometry(), &content(seed))?)
}

#[test]
fn the_final_names_appear_with_the_whole_backup() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let destination = create(&image, false).unwrap();
    let sheet = fill(&destination, geometry(), &content(1)).unwrap();
    assert_eq!(names(folder.path()), ["image.partial".to_string()].into());
    destination.publish(&sheet).unwrap();
    assert_eq!(names(folder.path()), ["image".to_string(), "image.manifest".to_string()].into());
    assert_eq!(fs::read(&image).unwrap(), content(1));
    assert_eq!(Manifest::load(&manifest_path_for(&image)).unwrap().header(), sheet.header());
    assert!(!destination.replaced_leftover());
    assert_eq!(destination.written_bytes(), 3 * MIB + 512);
    assert_eq!(destination.zero_bytes(), 2 * MIB);
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 4 * MIB, "zeroes take no space");
}

#[test]
fn abandoned_or_dropped_it_leaves_nothing_and_can_be_settled_once() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    drop(create(&image, false).unwrap());
    assert!(names(folder.path()).is_empty());

    let destination = create(&image, false).unwrap();
    let sheet = fill(&destination, geometry(), &content(1)).unwrap();
    destination.abandon().unwrap();
    assert!(names(folder.path()).is_empty());
    assert_eq!(destination.publish(&sheet).unwrap_err().kind, ErrorKind::State);
    assert_eq!(destination.abandon().unwrap_err().kind, ErrorKind::State);

    let destination = create(&image, false).unwrap();
    published(&destination, 1).unwrap();
    assert_eq!(destination.abandon().unwrap_err().kind, ErrorKind::State);
    drop(destination);
    assert_eq!(fs::read(&image).unwrap(), content(1));
}

#[test]
fn what_exists_is_refused_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let nowhere = folder.path().join("nowhere");
    for (name, make) in [("image", true), ("image.manifest", true), ("image", false)] {
        let taken = folder.path().join(name);
        if make {
            fs::write(&taken, "precious").unwrap()
        } else {
            symlink(&nowhere, &taken).unwrap()
        }
        let error = create(&image, false).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Exists);
        assert!(error.operation.ends_with(name) && error.reason.contains("overwriting"), "{error}");
        assert_eq!(names(folder.path()), [name.to_string()].into());
        fs::remove_file(&taken).unwrap();
    }
}

#[test]
fn overwriting_happens_at_the_end_or_not_at_all() {
    let old = Backup::new();
    let before = fs::read(&old.manifest).unwrap();
    let destination = create(&old.image, true).unwrap();
    fill(&destination, geometry(), &content(2)).unwrap();
    assert_eq!(fs::read(&old.image).unwrap(), old.content);
    destination.abandon().unwrap();
    assert_eq!(fs::read(&old.image).unwrap(), old.content);
    assert_eq!(fs::read(&old.manifest).unwrap(), before);

    published(&create(&old.image, true).unwrap(), 2).unwrap();
    assert_eq!(fs::read(&old.image).unwrap(), content(2));
    assert_ne!(fs::read(&old.manifest).unwrap(), before);
    assert_eq!(names(old.folder.path()).len(), 2);
}

#[test]
fn no_old_manifest_stays_where_the_image_may_be_new() {
    let old = Backup::new();
    let destination = create(&old.image, true).unwrap();
    fs::remove_file(old.path("image.partial")).unwrap();
    let error = published(&destination, 2).unwrap_err();
    assert!(error.reason.contains("removed or replaced"), "{error}");
    assert_eq!(names(old.folder.path()), ["image".to_string()].into());
    assert_eq!(fs::read(&old.image).unwrap(), old.content);
}

#[test]
fn what_came_to_stand_there_meanwhile_is_not_replaced() {
    for name in ["image", "image.manifest"] {
        let folder = tempfile::tempdir().unwrap();
        let destination = create(&folder.path().join("image"), false).unwrap();
        let sheet = fill(&destination, geometry(), &content(1)).unwrap();
        fs::write(folder.path().join(name), "precious").unwrap();
        assert_eq!(destination.publish(&sheet).unwrap_err().kind, ErrorKind::Exists);
        assert_eq!(names(folder.path()), [name.to_string()].into());
        assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"precious");
    }
}

#[test]
fn a_partial_file_of_somebody_else_is_neither_published_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let partial = folder.path().join("image.partial");
    let destination = create(&folder.path().join("image"), false).unwrap();
    let sheet = fill(&destination, geometry(), &content(1)).unwrap();
    fs::remove_file(&partial).unwrap();
    fs::write(&partial, "precious").unwrap();
    assert_eq!(destination.publish(&sheet).unwrap_err().kind, ErrorKind::Destination);
    assert_eq!(names(folder.path()), ["image.partial".to_string()].into());
    assert_eq!(fs::read(&partial).unwrap(), b"precious");
}

#[test]
fn what_cannot_be_removed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let destination = create(&image, true).unwrap();
    let sheet = fill(&destination, geometry(), &content(1)).unwrap();
    let in_the_way = manifest_path_for(&image);
    fs::create_dir(&in_the_way).unwrap();
    let error = destination.publish(&sheet).unwrap_err();
    assert!(error.operation.contains("image.manifest") && error.errno.is_some(), "{error}");
    assert_eq!(names(folder.path()), ["image.manifest".to_string()].into());
}

#[test]
fn leftovers_of_an_interrupted_backup_are_replaced_and_a_backup_under_way_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    for name in ["image.partial", "image.manifest.partial"] {
        fs::write(folder.path().join(name), "half a backup").unwrap();
    }
    let destination = create(&image, false).unwrap();
    assert!(destination.replaced_leftover());
    let error = create(&image, false).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.operation.contains("image.partial"), "{error}");
    published(&destination, 1).unwrap();
    assert_eq!(fs::read(&image).unwrap(), content(1));
    assert_eq!(names(folder.path()).len(), 2);
}

#[test]
fn a_failing_disk_is_named_and_nothing_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    for (operation, after, offset) in [(Operation::Write, 2, Some(2 * MIB)), (Operation::Sync, 0, None)] {
        let fault = Fault { operation, errno: libc::EIO, range: None, after, times: Some(1) };
        let destination = create(&image, false).unwrap().decorate(|inner| {
            let faulty = FaultStorage::new(inner);
            faulty.inject(fault);
            Arc::new(faulty)
        });
        let error = published(&destination, 1).unwrap_err();
        assert_eq!((error.kind, error.errno, error.offset), (ErrorKind::Destination, Some(libc::EIO), offset));
        assert!(error.operation.ends_with(image.to_str().unwrap()), "{error}");
        drop(destination);
        assert!(names(folder.path()).is_empty());
    }
}

#[test]
fn a_full_file_system_is_named_and_nothing_stays() {
    if !can("a_full_file_system_is_named_and_nothing_stays", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let small = Mounted::made("ext4", 4 * MIB);
    let before = names(small.path("").as_path());
    let destination = create(&small.path("image"), false).unwrap();
    let data = vec![7; MIB as usize];
    let error = (0..5).find_map(|extent| destination.write(&data, extent * MIB).err()).expect("it has no 5 MiB");
    assert_eq!((error.kind, error.errno), (ErrorKind::Destination, Some(libc::ENOSPC)));
    assert!(error.offset.is_some() && error.reason.contains("free space there"), "{error}");
    destination.abandon().unwrap();
    assert_eq!(names(small.path("").as_path()), before);
}

#[test]
fn a_manifest_for_which_there_is_no_space_takes_the_image_with_it() {
    if !can("a_manifest_for_which_there_is_no_space_takes_the_image_with_it", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let small = Mounted::made("ext4", 4 * MIB);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let destination = Destination::file(&image, &small.path("sheet"), SIZE, false).unwrap();
    let sheet = fill(&destination, geometry(), &content(1)).unwrap();
    let mut filler = File::create(small.path("filler")).unwrap();
    for piece in [1 << 16, 1 << 10, 1] {
        while filler.write_all(&vec![1; piece]).is_ok() {}
    }
    filler.sync_all().unwrap();
    let before = names(small.path("").as_path());
    let error = destination.publish(&sheet).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Destination, Some(libc::ENOSPC)));
    assert!(error.operation.contains("sheet"), "{error}");
    assert!(names(folder.path()).is_empty());
    assert_eq!(names(small.path("").as_path()), before);
}

#[test]
fn names_that_cannot_be_are_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let (here, image) = (folder.path(), folder.path().join("image"));
    let sheet = here.join("sheet");
    let missing = here.join("no/such/folder");
    let cases = [
        (here, &sheet, ErrorKind::Invalid, "regular file"),
        (Path::new("/dev/null"), &sheet, ErrorKind::Invalid, "regular file"),
        (Path::new("/dev/sdzz9"), &sheet, ErrorKind::Invalid, "no such device"),
        (&image, &image, ErrorKind::Invalid, "same name"),
        (&image, &here.to_path_buf(), ErrorKind::Invalid, "no regular file"),
        (&image, &Path::new("/dev/sdzz9.manifest").to_path_buf(), ErrorKind::Invalid, "next boot"),
        (&image, &missing.join("sheet"), ErrorKind::NotFound, "must be a folder"),
        (&missing.join("image"), &sheet, ErrorKind::NotFound, "No such file"),
    ];
    for (path, manifest, kind, words) in cases {
        for overwrite in [false, true] {
            let error = refused(path, manifest, overwrite);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.reason.contains(words), "{error}");
        }
    }
    assert!(names(here).is_empty());
    assert_eq!(Destination::block_device(&image, &sheet, SIZE, false).err().unwrap().kind, ErrorKind::NotFound);
}

#[test]
fn a_block_device_is_written_in_place_and_its_manifest_makes_it_complete() {
    if !can("a_block_device_is_written_in_place_and_its_manifest_makes_it_complete", &["losetup"]) {
        return;
    }
    let device = Loop::new(8 * MIB, &[]);
    File::options().write(true).open(&device.path).unwrap().write_all_at(&[0xff; 8 << 20], 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet");

    let destination = Destination::open(&device.path, &sheet, SIZE, false).unwrap();
    assert_eq!(refused(&device.path, &folder.path().join("other"), false).kind, ErrorKind::Busy);
    published(&destination, 1).unwrap();
    drop(destination);
    let found = fs::read(&device.path).unwrap();
    assert!(found[..SIZE as usize] == content(1), "the image is on the device");
    assert!(found[SIZE as usize..].iter().all(|&byte| byte == 0xff), "what lies behind it is not touched");
    assert_eq!(names(folder.path()), ["sheet".to_string()].into());

    assert_eq!(refused(&device.path, &sheet, false).kind, ErrorKind::Exists);
    assert!(sheet.exists());
    let other = Loop::new(8 * MIB, &[]);
    let again = Destination::open(&other.path, &sheet, SIZE, true).unwrap();
    assert!(!sheet.exists(), "the first write would make a liar of it");
    again.abandon().unwrap();
    assert!(names(folder.path()).is_empty());

    let small = Loop::new(8 * MIB, &[]);
    let error = Destination::open(&small.path, &sheet, 8 * MIB + 512, false).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.reason.contains("8388608") && error.reason.contains("8389120"), "{error}");
}
