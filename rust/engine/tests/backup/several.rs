//! More than one backup of a device: whatever happens to the others, the one that was cut keeps its gate.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use blockcow_engine::backup::Backup;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{Driver, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Alignment, Storage, ThrottledStorage, Zeroing};

use crate::rig::{Chance, PATIENCE, Rig, assert_same, finish, folder_in_memory};

const SIZE: u64 = 4 << 20;

/// A spec whose image has another name than the rig's.
fn elsewhere(rig: &Rig, name: &str) -> (Spec, PathBuf) {
    let image = rig.folder.path().join(name);
    let destination = Destination::file(&image, &manifest_path_for(&image), rig.size, false).unwrap();
    (Spec { destination, ..rig.spec() }, image)
}

/// Makes the cut but lets the sweep begin only after `meanwhile`, and checks the image.
fn backed_up_right(rig: &Rig, driver: &Driver, backup: &Backup, meanwhile: impl FnOnce()) {
    let before = rig.bytes();
    let hold = driver.hold(PATIENCE).unwrap();
    hold.arm(backup).unwrap();
    let held = hold.release();
    meanwhile();
    driver.write(&[7; 8192], 40_960).unwrap();
    backup.start(held).unwrap();
    finish(backup);
    assert_same(&fs::read(rig.image()).unwrap(), &before, "the image");
}

#[test]
fn one_that_was_prepared_and_dropped_does_not_disarm_another() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(1));
    let driver = rig.driver();
    let (spec, _) = elsewhere(&rig, "other");
    let other = driver.prepare(spec).unwrap();
    let backup = driver.prepare(rig.spec()).unwrap();
    backed_up_right(&rig, &driver, &backup, || {
        assert_eq!(driver.cut(&other, PATIENCE).unwrap_err().kind, ErrorKind::State, "one backup at a time");
        drop(other);
        assert_eq!(driver.state(), "backing-up");
    });
}

#[test]
fn a_second_cut_of_the_same_backup_is_refused_and_harms_nothing() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(2));
    let driver = rig.driver();
    let backup = driver.prepare(rig.spec()).unwrap();
    backed_up_right(&rig, &driver, &backup, || {
        let cut_at = backup.status().cut_at;
        assert_eq!(driver.cut(&backup, PATIENCE).unwrap_err().kind, ErrorKind::State);
        assert_eq!((driver.state(), backup.status().cut_at), ("backing-up", cut_at));
    });
}

/// A device that says it has a hole, and counts how often it was asked.
struct Sparse {
    inner: Arc<dyn Storage>,
    asked: AtomicU64,
}

impl Storage for Sparse {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, offset)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.inner.zero(range, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.inner.discard(range)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok((from < SIZE / 2).then_some(ByteRange { start: from, end: SIZE / 2 }))
    }
}

#[test]
fn of_two_prepared_at_once_on_a_sparse_device_only_one_records() {
    let rig = Rig::file(folder_in_memory(), SIZE, &mut Chance::new(3));
    let slow = Arc::new(ThrottledStorage::new(rig.storage.clone(), u64::MAX));
    let sparse = Arc::new(Sparse { inner: slow.clone(), asked: AtomicU64::new(0) });
    let driver = Driver::new(sparse.clone());
    let (first, second) = (elsewhere(&rig, "first").0, elsewhere(&rig, "second").0);
    slow.stall();
    let prepared: Vec<_> = thread::scope(|scope| {
        let driver = &driver;
        // A write in flight keeps both from the hold in which the recording begins.
        scope.spawn(move || driver.write(&[1; 512], 0).unwrap());
        let preparing = [first, second].map(|spec| scope.spawn(move || driver.prepare(spec)));
        while sparse.asked.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        slow.resume();
        preparing.into_iter().map(|prepare| prepare.join().unwrap()).collect()
    });
    let refused: Vec<_> = prepared.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "the list of the other one would miss what is written from now on");
    assert_eq!(refused[0].kind, ErrorKind::State);
    let kept = prepared.iter().find_map(|outcome| outcome.as_ref().ok()).unwrap();
    assert_eq!(kept.state(), State::Created);
    driver.write(&[9; 4096], SIZE - 4096).unwrap();
    assert_eq!(kept.status().blocks_listed, SIZE / 2 / 4096 + 1, "the write into the hole is recorded");
}
