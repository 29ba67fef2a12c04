//! Verifying: all damage is found and named by the extent that has it, and nothing else is.

use std::cell::RefCell;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::thread;

use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::Geometry;
use blockcow_engine::manifest::Manifest;
use blockcow_engine::verify::verify;
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::backup::{Backup, MIB, SIZE, content, fill, geometry, on};
use crate::disks::{Loop, can};

const INTACT: [u64; 0] = [];

fn damage(backup: &Backup) -> Vec<u64> {
    verify(&backup.image, &backup.manifest, &on).unwrap().damaged
}

fn refusal(backup: &Backup) -> Error {
    verify(&backup.image, &backup.manifest, &on).unwrap_err()
}

#[test]
fn an_intact_image_is_found_intact_and_progress_is_told() {
    let backup = Backup::new();
    let (told, here) = (RefCell::new(Vec::new()), thread::current().id());
    let report = verify(&backup.image, &backup.manifest, &|done, total| {
        assert_eq!((thread::current().id(), total), (here, SIZE));
        told.borrow_mut().push(done);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((report.bytes, report.damaged), (SIZE, vec![]));
    assert_eq!(report.digest, Manifest::load(&backup.manifest).unwrap().header().digest);
    assert!(told.borrow().is_sorted() && told.borrow().last() == Some(&SIZE));
}

#[test]
fn each_of_a_thousand_flipped_bits_is_found_in_its_extent() {
    let (size, extent) = (MIB + 200_000, 64 << 10);
    let backup = Backup::with(Geometry::recorded(size, 4096, extent).unwrap());
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    for _ in 0..1000 {
        let bit = rng.random_range(0..size * 8);
        backup.flip(bit);
        assert_eq!(damage(&backup), [bit / 8 / extent * extent], "bit {bit}");
        backup.flip(bit);
    }
    assert_eq!(damage(&backup), INTACT);
}

#[test]
fn all_damaged_extents_are_named_in_order() {
    let backup = Backup::new();
    for extent in [5, 3, 0, 1] {
        backup.flip(extent * MIB * 8 + 9);
    }
    assert_eq!(damage(&backup), [0, MIB, 3 * MIB, 5 * MIB]);
}

#[test]
fn extents_larger_than_a_read_are_whole() {
    let backup = Backup::with(Geometry::recorded(SIZE, 4096, 4 * MIB).unwrap());
    assert_eq!(damage(&backup), INTACT);
    for (byte, extent) in [(4 * MIB - 1, 0), (MIB, 0), (4 * MIB, 4 * MIB), (SIZE - 1, 4 * MIB)] {
        backup.flip(byte * 8);
        assert_eq!(damage(&backup), [extent]);
        backup.flip(byte * 8);
    }
}

#[test]
fn zeroes_are_the_same_written_or_not() {
    let backup = Backup::new();
    let file = File::options().write(true).open(&backup.image).unwrap();
    file.write_all_at(&vec![0; MIB as usize], MIB).unwrap();
    assert_eq!(damage(&backup), INTACT);
    file.write_all_at(&vec![0; MIB as usize], 3 * MIB).unwrap();
    assert_eq!(damage(&backup), [3 * MIB], "zeroes in place of data");
}

#[test]
fn an_image_of_another_size_is_refused_with_both() {
    let backup = Backup::new();
    for size in [0, 512, SIZE - 1, SIZE + 1] {
        File::options().write(true).open(&backup.image).unwrap().set_len(size).unwrap();
        let error = refusal(&backup);
        assert_eq!(error.kind, ErrorKind::Mismatch);
        assert!(error.reason.contains(&format!("{size} bytes")) && error.reason.contains("5243392"), "{error}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let backup = Backup::new();
    let sheet = fs::read(&backup.manifest).unwrap();
    fs::remove_file(&backup.manifest).unwrap();
    let error = refusal(&backup);
    assert_eq!((error.kind, error.errno), (ErrorKind::NotFound, Some(libc::ENOENT)));
    assert!(error.operation.contains("image.manifest"), "{error}");

    fs::write(&backup.manifest, &sheet[..sheet.len() / 2]).unwrap();
    assert_eq!(refusal(&backup).kind, ErrorKind::Manifest);

    fs::rename(&backup.image, backup.path("image.partial")).unwrap();
    let error = refusal(&backup);
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.reason.contains("interrupted") && error.reason.contains("not complete"), "{error}");

    fs::remove_file(backup.path("image.partial")).unwrap();
    assert_eq!(refusal(&backup).kind, ErrorKind::NotFound);

    fs::create_dir(&backup.image).unwrap();
    assert_eq!(refusal(&backup).kind, ErrorKind::Invalid);
}

#[test]
fn an_image_that_is_still_held_for_writing_is_busy_and_readers_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let manifest = manifest_path_for(&image);
    let destination = Destination::file(&image, &manifest, SIZE, false).unwrap();
    destination.publish(&fill(&destination, geometry(), &content(1)).unwrap()).unwrap();
    assert_eq!(verify(&image, &manifest, &on).unwrap_err().kind, ErrorKind::Busy);
    drop(destination);
    let nested = |_, _| {
        assert!(verify(&image, &manifest, &on).unwrap().damaged.is_empty());
        ControlFlow::Continue(())
    };
    verify(&image, &manifest, &nested).unwrap();
}

#[test]
fn progress_can_break_off() {
    let backup = Backup::new();
    let error = verify(&backup.image, &backup.manifest, &|_, _| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
}

#[test]
fn an_image_on_a_block_device_may_be_followed_by_other_things() {
    if !can("an_image_on_a_block_device_may_be_followed_by_other_things", &["losetup"]) {
        return;
    }
    let backup = Backup::new();
    // A device for each look at it: opening it exclusively, closing it and opening it again can fail for a moment when
    // another test starts a program in between.
    let device = |size: u64, damage: &[u8]| {
        let device = Loop::new(size, &[]);
        let file = File::options().write(true).open(&device.path).unwrap();
        file.write_all_at(&vec![0xff; size as usize], 0).unwrap();
        file.write_all_at(&backup.content[..SIZE.min(size) as usize], 0).unwrap();
        file.write_all_at(damage, 2 * MIB - 1).unwrap();
        file.sync_all().unwrap();
        device
    };
    let found = |device: &Loop| verify(&device.path, &backup.manifest, &on);
    assert_eq!(found(&device(8 * MIB, &[])).unwrap().damaged, INTACT);
    assert_eq!(found(&device(8 * MIB, &[1])).unwrap().damaged, [MIB]);
    assert_eq!(found(&device(4 * MIB, &[])).unwrap_err().kind, ErrorKind::Mismatch);
}
