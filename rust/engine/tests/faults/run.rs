//! One backup under writers, with known contents: what is there before, the run itself, and what came of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::backup::Backup;
use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Spec};
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::state::State;
use blockcow_engine::storage::{Access, FileStorage, Storage};

use crate::kernel::PATIENCE;
use crate::rig::Chance;

pub const BLOCK: u64 = 512;
pub const EXTENT: u64 = 1 << 20;
pub const SIZE: u64 = 3 * EXTENT + BLOCK;
pub const PAGE: u64 = 4096;
/// Listed bytes of each whole extent, from its beginning.
const LISTED: u64 = 224 * PAGE;
/// Where the container lies if it lies on the device: not on the list.
pub const SECTION: ByteRange = ByteRange { start: 2 * EXTENT + LISTED, end: 3 * EXTENT };
const CAPACITY: u64 = 128 << 10;
/// So slow a sweep that writers must copy: an extent in 8 ms, unless there is a drain.
const RATE: u64 = 64 << 20;
const STAGING: u64 = CAPACITY / 4;
const WRITERS: u64 = 3;
/// With what the sweep writes, 2,000 operations however few copies there are.
const WRITES: u64 = 530;
const ONCE_ENOUGH: u64 = 10;

/// What kind of backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// The container lies on a section of the device instead of in a file of its own.
    pub inside: bool,
    pub target: Target,
    pub fail_write: bool,
    /// Everything goes by direct I/O, in whole sectors.
    pub direct: bool,
}

/// What is at the destination before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing.
    Fresh,
    /// An older backup that is to be overwritten.
    Older,
    /// Something that is written in place, as a block device is.
    InPlace,
    /// The same with an older backup on it, that is to be overwritten.
    InPlaceOlder,
}

/// A write of a program.
pub struct Write {
    pub range: ByteRange,
    pub data: Vec<u8>,
    pub outcome: Result<(), Error>,
}

/// What one writer did.
pub struct Writer {
    pub thread: u32,
    pub writes: Vec<Write>,
}

/// What came of it.
pub struct Outcome {
    /// `Err`: it did not come to the cut, for this reason.
    pub end: Result<(State, Option<Error>), Error>,
    pub writers: Vec<Writer>,
}

/// What the list covers.
pub fn listed() -> Vec<ByteRange> {
    let whole = (0..SIZE / EXTENT).map(|extent| ByteRange { start: extent * EXTENT, end: extent * EXTENT + LISTED });
    whole.chain([ByteRange { start: SIZE - BLOCK, end: SIZE }]).collect()
}

/// Every second page has data, on the list and a little beyond; the last block too.
pub fn contents(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let mut chance = Chance::new(seed);
    for extent in 0..SIZE / EXTENT {
        for page in (0..LISTED / PAGE + 4).step_by(2) {
            chance.fill(&mut bytes[(extent * EXTENT + page * PAGE) as usize..][..PAGE as usize]);
        }
    }
    chance.fill(&mut bytes[(SIZE - BLOCK) as usize..]);
    bytes
}

/// Writes a file whose pages of zeroes are holes.
pub fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (index, page) in bytes.chunks(PAGE as usize).enumerate() {
        if *page != [0; PAGE as usize][..page.len()] {
            file.write_all_at(page, index as u64 * PAGE).unwrap();
        }
    }
}

/// What the image of a device with these contents must be.
pub fn image_of(contents: &[u8]) -> Vec<u8> {
    let mut image = vec![0; contents.len()];
    for range in listed() {
        let bytes = range.start as usize..range.end as usize;
        image[bytes.clone()].copy_from_slice(&contents[bytes]);
    }
    image
}

pub fn device_in(folder: &Path) -> PathBuf {
    folder.join("device/disk")
}

pub fn image_in(folder: &Path) -> PathBuf {
    folder.join("destination/image")
}

/// Backs the device up while three writers do their writes, few of them once `enough` is said, and lets everything go.
pub fn backup(folder: &Path, scene: Scene, enough: &AtomicBool) -> Outcome {
    match prepared(folder, scene) {
        Err(error) => Outcome { end: Err(error), writers: Vec::new() },
        Ok((driver, backup)) => match armed(&driver, &backup) {
            Err(error) => Outcome { end: Err(error), writers: Vec::new() },
            Ok(held) => {
                let unit = if scene.direct { BLOCK } else { 1 };
                let enough = || enough.load(Ordering::Relaxed) || backup.state() == State::Broken;
                let writers = write_all(&driver, unit, &enough, &backup, held);
                assert!(backup.wait(Some(PATIENCE)), "hangs: {:?}", backup.status());
                Outcome { end: Ok((backup.state(), backup.cause())), writers }
            }
        },
    }
}

/// Makes the cut, and does not start the sweep yet. Returns for how long writes were held.
fn armed(driver: &Driver, backup: &Backup) -> Result<Duration, Error> {
    let hold = driver.hold(PATIENCE)?;
    hold.arm(backup)?;
    Ok(hold.release())
}

fn prepared(folder: &Path, scene: Scene) -> Result<(Arc<Driver>, Backup), Error> {
    let device = FileStorage::open(&device_in(folder), Access::ReadWrite, ErrorKind::Device)?;
    let container = match scene.inside {
        true => ContainerPlace::Sections(vec![SECTION]),
        false => {
            let path = folder.join("container/log");
            ContainerPlace::Storage(Arc::new(FileStorage::create_unnamed(&path, CAPACITY, ErrorKind::Container)?))
        }
    };
    let image = image_in(folder);
    let destination = match scene.target {
        Target::Fresh => Destination::file(&image, &manifest_path_for(&image), SIZE, false)?,
        Target::Older => Destination::file(&image, &manifest_path_for(&image), SIZE, true)?,
        Target::InPlace | Target::InPlaceOlder => {
            let storage: Arc<dyn Storage> =
                Arc::new(FileStorage::open(&image, Access::ReadWrite, ErrorKind::Destination)?);
            let name = image.display().to_string();
            Destination::storage(storage, name, &manifest_path_for(&image), SIZE, scene.target == Target::InPlaceOlder)?
        }
    };
    let driver = Driver::new(Arc::new(device));
    let backup = driver.prepare(Spec {
        block_size: Some(BLOCK),
        logical_block: BLOCK,
        container,
        staging_bytes: STAGING,
        capacity_bytes: CAPACITY,
        drain_bytes: CAPACITY / 4,
        destination,
        listing: Listing::Ranges(listed()),
        policy: Policy { cbw_timeout: PATIENCE, fail_write: scene.fail_write },
        limit_read: Some(RATE),
        identity: BTreeMap::new(),
        keep: false,
    })?;
    Ok((driver, backup))
}

/// All writers, to their ends. The sweep starts when staging is full, so that the container is used on any machine.
fn write_all(
    driver: &Driver,
    unit: u64,
    enough: &(dyn Fn() -> bool + Sync),
    backup: &Backup,
    held: Duration,
) -> Vec<Writer> {
    thread::scope(|scope| {
        let begin = |writer| scope.spawn(move || write_some(driver, unit, enough, writer));
        let writers: Vec<_> = (0..WRITERS).map(begin).collect();
        while backup.status().container_used_bytes < STAGING && !writers.iter().all(|writer| writer.is_finished()) {
            thread::yield_now();
        }
        backup.start(held).unwrap();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    })
}

/// Writes to every third page of what is listed, from the end, where the sweep comes last; whole units.
fn write_some(driver: &Driver, unit: u64, enough: &dyn Fn() -> bool, writer: u64) -> Writer {
    let mut chance = Chance::new(writer + 1);
    let pages = SIZE / EXTENT * LISTED / PAGE;
    let write = |index: u64| {
        let from_the_end = (index * WRITERS + writer) % pages;
        let (extent, page) = ((pages - 1 - from_the_end) * PAGE / LISTED, (pages - 1 - from_the_end) % (LISTED / PAGE));
        let start = extent * EXTENT + page * PAGE + chance.below(PAGE - 2000);
        let range = ByteRange { start, end: start + 1 + chance.below(2000) }.grow_to(unit);
        let mut data = vec![0; range.len() as usize];
        if index % 8 == 7 {
            let outcome = driver.zero(range.start, range.len());
            return Write { range, data, outcome };
        }
        chance.fill(&mut data);
        let outcome = driver.write(&data, range.start);
        Write { range, data, outcome }
    };
    let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    let mut more = ONCE_ENOUGH;
    let goes_on = |_: &u64| {
        more -= u64::from(enough());
        more > 0
    };
    Writer { thread, writes: (0..WRITES).take_while(goes_on).map(write).collect() }
}

/// The bytes of the device if it did exactly what it acknowledged.
pub fn model(contents: &[u8], writers: &[Writer]) -> Vec<u8> {
    let mut bytes = contents.to_vec();
    for write in writers.iter().flat_map(|writer| &writer.writes).filter(|write| write.outcome.is_ok()) {
        bytes[write.range.start as usize..write.range.end as usize].copy_from_slice(&write.data);
    }
    bytes
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
