//! What the tests share: a device of six blocks in memory, a backup of it, and writers that know what they wrote. A write is
//! wholly before the cut or wholly after it, so the image must show each writer's bytes as they were after some number of its
//! writes, and that number lies between what was done before the cut began and what had begun when it ended.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use blockcow_engine::Policy;
use blockcow_engine::backup::Backup;
use blockcow_engine::destination::Destination;
use blockcow_engine::driver::{ContainerPlace, Driver, Listing, Spec};
use blockcow_engine::error::Result;
use blockcow_engine::state::State;
use blockcow_engine::storage::{MemoryStorage, Storage};
use shuttle::thread;

pub const BLOCK: u64 = 512;
/// Three extents of two blocks, the last of them short.
pub const SIZE: u64 = 5 * BLOCK + 300;
pub const PATIENCE: Duration = Duration::from_secs(60);

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A device, and where a backup of it goes.
pub struct World {
    pub device: Arc<MemoryStorage>,
    pub image: Arc<MemoryStorage>,
    pub driver: Arc<Driver>,
    manifest: PathBuf,
    before: Vec<u8>,
}

impl World {
    /// A device whose second block is zero.
    pub fn new() -> Self {
        let device = Arc::new(MemoryStorage::new(SIZE));
        Self::through(device.clone(), device)
    }

    /// The same, where the engine sees the device through `door`.
    pub fn through(device: Arc<MemoryStorage>, door: Arc<dyn Storage>) -> Self {
        let before: Vec<u8> = (0..SIZE).map(|at| if at / BLOCK == 1 { 0 } else { 200 + (at / BLOCK) as u8 }).collect();
        device.write_at(&before, 0).unwrap();
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let manifest = format!("/dev/shm/blockcow-schedules-{}-{number}.manifest", std::process::id()).into();
        Self { device, image: Arc::new(MemoryStorage::new(SIZE)), driver: Driver::new(door), manifest, before }
    }

    /// A backup of everything with as many blocks of memory as the device has.
    pub fn spec(&self) -> Spec {
        let destination =
            Destination::storage(self.image.clone(), "the image".into(), &self.manifest, SIZE, false).unwrap();
        Spec {
            block_size: Some(BLOCK),
            logical_block: BLOCK,
            container: ContainerPlace::Memory(6 * BLOCK),
            staging_bytes: 2 * BLOCK,
            capacity_bytes: 6 * BLOCK,
            drain_bytes: BLOCK,
            destination,
            listing: Listing::Device,
            policy: Policy { cbw_timeout: PATIENCE, fail_write: false },
            limit_read: None,
            identity: BTreeMap::new(),
            keep: false,
        }
    }

    /// The same with room for one block.
    pub fn spec_of_one_slot(&self) -> Spec {
        Spec { container: ContainerPlace::Memory(BLOCK), ..self.spec() }
    }

    /// Starts writers. They are joined when the world's test joins them.
    pub fn start(&self, writers: &[Arc<Writer>]) -> Vec<thread::JoinHandle<()>> {
        writers
            .iter()
            .map(|writer| {
                let (driver, writer) = (self.driver.clone(), writer.clone());
                thread::spawn(move || writer.run(|bytes, offset| driver.write(bytes, offset)))
            })
            .collect()
    }

    /// Makes the cut while writers work. Returns what the image may show of each.
    pub fn cut(&self, backup: &Backup, writers: &[Arc<Writer>]) -> Vec<RangeInclusive<usize>> {
        let done: Vec<_> = writers.iter().map(|writer| writer.done()).collect();
        self.driver.cut(backup, PATIENCE).unwrap();
        done.into_iter().zip(writers).map(|(done, writer)| done..=writer.begun()).collect()
    }

    /// The backup is complete, and the image is the device at the cut.
    pub fn assert_image(&self, backup: &Backup, writers: &[Arc<Writer>], cut: &[RangeInclusive<usize>]) {
        assert!(backup.wait(None) && backup.at_rest());
        assert_eq!(backup.state(), State::Complete, "{:?}", backup.cause());
        assert!(self.manifest.exists());
        let image = self.image.snapshot();
        writers.iter().zip(cut).for_each(|(writer, cut)| writer.assert_shown(&image, &self.before, cut.clone()));
        self.assert_nobody_wrote(&image, writers);
    }

    /// The backup has ended without success, and nothing says otherwise.
    pub fn assert_no_backup(&self, backup: &Backup, state: State) {
        assert!(backup.wait(None) && backup.at_rest());
        assert_eq!(backup.state(), state, "{:?}", backup.cause());
        assert!(!self.manifest.exists());
    }

    /// All that was written is on the device.
    pub fn assert_device(&self, writers: &[Arc<Writer>]) {
        let device = self.device.snapshot();
        for writer in writers {
            let done = writer.done();
            assert_eq!(done, writer.begun());
            writer.assert_shown(&device, &self.before, done..=done);
        }
        self.assert_nobody_wrote(&device, writers);
        assert_eq!(self.driver.state(), "passing");
    }

    fn assert_nobody_wrote(&self, bytes: &[u8], writers: &[Arc<Writer>]) {
        for (at, (&now, &before)) in bytes.iter().zip(&self.before).enumerate() {
            assert!(now == before || writers.iter().any(|writer| writer.bytes.contains(&at)), "byte {at}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.manifest);
    }
}

/// Somebody who writes its own bytes, one write after the other; the nth write fills its range with n.
pub struct Writer {
    bytes: Range<usize>,
    script: Vec<Range<usize>>,
    begun: AtomicUsize,
    /// For each write whether it was done; `None`: it has not ended.
    ended: std::sync::Mutex<Vec<bool>>,
}

impl Writer {
    fn new(bytes: Range<usize>, script: &[Range<usize>]) -> Arc<Self> {
        assert!(script.iter().all(|range| range.start >= bytes.start && range.end <= bytes.end));
        let ended = std::sync::Mutex::new(Vec::new());
        Arc::new(Self { bytes, script: script.to_vec(), begun: AtomicUsize::new(0), ended })
    }

    /// Writes to a block that is zero, then over it and its neighbours, which may have to be copied in two runs.
    pub fn first() -> Arc<Self> {
        Self::new(256..1280, &[600..700, 256..1280, 1000..1100, 300..400])
    }

    /// Shares its first block with the first one, and an extent with the third.
    pub fn second() -> Arc<Self> {
        Self::new(1280..2304, &[1280..1400, 1500..2304, 2000..2100])
    }

    /// Writes into the short last block.
    pub fn third() -> Arc<Self> {
        Self::new(2304..SIZE as usize, &[2500..SIZE as usize, 2304..2400])
    }

    /// Does all of its writes.
    pub fn run(&self, mut write: impl FnMut(&[u8], u64) -> Result<()>) {
        for number in 1..=self.script.len() {
            self.begin();
            let outcome = write(&self.data(number), self.script[number - 1].start as u64);
            self.end(outcome.is_ok());
        }
    }

    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self, well: bool) {
        self.ended.lock().unwrap().push(well);
    }

    /// The bytes of a write.
    pub fn data(&self, number: usize) -> Vec<u8> {
        vec![number as u8; self.script[number - 1].len()]
    }

    /// Where it goes.
    pub fn offset(&self, number: usize) -> u64 {
        self.script[number - 1].start as u64
    }

    pub fn writes(&self) -> usize {
        self.script.len()
    }

    pub fn done(&self) -> usize {
        self.ended.lock().unwrap().len()
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// How many of its writes failed.
    pub fn failed(&self) -> usize {
        self.ended.lock().unwrap().iter().filter(|&&well| !well).count()
    }

    /// `bytes` show this writer's as they were after one of so many writes, those that failed left out.
    fn assert_shown(&self, bytes: &[u8], before: &[u8], after: RangeInclusive<usize>) {
        let shown = &bytes[self.bytes.clone()];
        let found = after.clone().any(|count| shown == &self.after(count, before)[self.bytes.clone()]);
        let runs: Vec<_> = shown.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
        assert!(found, "the bytes {:?} are not those after {after:?} writes: {runs:?}", self.bytes);
    }

    fn after(&self, count: usize, before: &[u8]) -> Vec<u8> {
        let ended = self.ended.lock().unwrap();
        let mut bytes = before.to_vec();
        for (index, range) in self.script[..count].iter().enumerate() {
            if ended.get(index) != Some(&false) {
                bytes[range.clone()].fill(index as u8 + 1);
            }
        }
        bytes
    }
}

/// Waits for threads, which must not have panicked.
pub fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
