//! What the tests of whole backups share: a device with known contents, a seeded source of chance, and a backup of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::backup::Backup;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Spec};
use blockcow_engine::error::ErrorKind;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Access, FileStorage, Storage, ThrottledStorage};
use tempfile::TempDir;

use crate::disks::{self, Loop};

/// Long enough for the slowest machine, short enough to see a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// xorshift64*: every run is made from its seed alone.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
    }

    /// Contents with stretches of zeroes in them.
    pub fn contents(&mut self, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        for piece in bytes.chunks_mut(48 << 10) {
            if self.below(4) > 0 {
                self.fill(piece);
            }
        }
        bytes
    }
}

/// A folder in memory, in which tests do not wait for a disk.
pub fn folder_in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// A device with random contents, and a folder beside it for containers and images.
pub struct Rig {
    pub folder: TempDir,
    pub path: PathBuf,
    pub size: u64,
    pub storage: Arc<FileStorage>,
    _disk: Option<Loop>,
}

impl Rig {
    /// A file of `size` bytes in `folder`.
    pub fn file(folder: TempDir, size: u64, chance: &mut Chance) -> Self {
        let path = folder.path().join("device");
        fs::write(&path, chance.contents(size)).unwrap();
        Self::over(folder, path, size, None)
    }

    /// A loop device of `size` bytes, a multiple of 512.
    pub fn disk(size: u64, chance: &mut Chance) -> Self {
        let disk = Loop::new(size, &[]);
        fs::write(&disk.path, chance.contents(size)).unwrap();
        fs::File::open(&disk.path).unwrap().sync_all().unwrap();
        Self::over(folder_in_memory(), disk.path.clone(), size, Some(disk))
    }

    fn over(folder: TempDir, path: PathBuf, size: u64, disk: Option<Loop>) -> Self {
        let storage = Arc::new(FileStorage::open(&path, Access::ReadWrite, ErrorKind::Device).unwrap());
        Self { folder, path, size, storage, _disk: disk }
    }

    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub fn destination(&self) -> Destination {
        Destination::file(&self.image(), &manifest_path_for(&self.image()), self.size, false).unwrap()
    }

    /// The device's bytes now, read by nobody's code under test.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = fs::read(&self.path).unwrap();
        assert_eq!(bytes.len() as u64, self.size, "the device keeps its size");
        bytes
    }

    /// A backup of everything through a container of 64 KiB in memory; change what the test is about.
    pub fn spec(&self) -> Spec {
        Spec {
            block_size: None,
            logical_block: self.storage.logical_block(),
            container: ContainerPlace::Memory(64 << 10),
            staging_bytes: 64 << 10,
            capacity_bytes: 64 << 10,
            drain_bytes: 16 << 10,
            destination: self.destination(),
            listing: Listing::Device,
            policy: Policy { cbw_timeout: PATIENCE, fail_write: false },
            limit_read: None,
            identity: BTreeMap::new(),
            keep: false,
        }
    }

    /// The same before a destination that stands still until it is resumed.
    pub fn stalled_spec(&self) -> (Spec, Arc<ThrottledStorage>) {
        let mut throttle = None;
        let mut spec = self.spec();
        spec.destination = spec.destination.decorate(|storage| {
            let stalled = Arc::new(ThrottledStorage::new(storage, u64::MAX));
            stalled.stall();
            throttle = Some(stalled.clone());
            stalled
        });
        (spec, throttle.expect("the destination was decorated"))
    }

    pub fn driver(&self) -> Arc<Driver> {
        Driver::new(self.storage.clone())
    }

    /// Nothing bears the final name, and no part of an image is left either.
    pub fn assert_nothing_at_destination(&self) {
        let left: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("image"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Another backup of the same device works and is right.
    pub fn assert_next_backup_works(&self, driver: &Driver) {
        let backup = driver.prepare(self.spec()).unwrap();
        let before = self.bytes();
        driver.cut(&backup, PATIENCE).unwrap();
        finish(&backup);
        assert_same(&fs::read(self.image()).unwrap(), &before, "the next image");
    }
}

/// A loop device for a container or destination.
pub fn spare_disk(size: u64) -> Loop {
    Loop::new(size, &[])
}

/// Waits for the end of a backup, which must be complete.
pub fn finish(backup: &Backup) {
    assert!(backup.wait(Some(PATIENCE)), "hangs: {:?}", backup.status());
    assert_eq!(backup.state(), State::Complete, "{:?}", backup.cause());
}

pub fn open(path: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, Access::ReadWrite, ErrorKind::Container).unwrap())
}

pub fn create(path: &Path, size: u64) -> Arc<dyn Storage> {
    Arc::new(FileStorage::create(path, size, ErrorKind::Container).unwrap())
}

/// Compares, and says where they differ first.
pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}: length");
    if left != right {
        let at = left.iter().zip(right).position(|(a, b)| a != b).unwrap();
        panic!("{what} differs first at offset {at} (block {})", at / 4096);
    }
}

/// Whether this test can use loop devices; says so where it cannot.
pub fn can_use_loops(test: &str) -> bool {
    disks::can(test, &["losetup"])
}
