//! The container against a model of it, and what it keeps in memory beside the blocks themselves.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::arena::{Marks, adopted_regions, regions, shared_regions};
use crate::error::ErrorKind;
use crate::storage::{FileStorage, MemoryStorage};

const BLOCK: usize = 4096;
const EXTENTS: u32 = 64;

fn container() -> (Container, Geometry) {
    let geometry = Geometry::new(u64::from(EXTENTS) << 20, Some(BLOCK as u64), 512).unwrap();
    let mut memory = regions(&[16 * BLOCK, 16 * 4]).unwrap();
    let (marks, staging) = (Marks::new(memory.remove(1)), memory.remove(0));
    let staging = Slab::new(staging, BLOCK, marks);
    (Container::new(geometry, staging, None), geometry)
}

fn store(container: &Container, block: u32, fill: u8) -> Room {
    let mut memory = container.stage(1).unwrap();
    memory.fill(fill);
    container.store(block, memory)
}

#[test]
fn blocks_that_were_taken_leave_nothing_in_the_queue() {
    let (container, geometry) = container();
    for extent in 0..EXTENTS {
        for block in geometry.blocks_of_extent(extent).blocks() {
            assert_eq!(store(&container, block, 1), Room::default());
            // The rest of the extent fits once the staging of these is free again; take them as the sweep would.
            if block % 16 == 15 {
                let taken = container.take(extent);
                assert_eq!(container.release(taken), Room { slots: 16, staging: 16 });
            }
        }
    }
    let queued = container.state.lock().index.queued();
    assert!(queued <= 1024, "{queued} entries for blocks that are gone");
}

#[test]
fn blocks_of_zeroes_take_no_memory() {
    let (container, geometry) = container();
    for block in geometry.all_blocks().blocks() {
        assert_eq!(store(&container, block, 0), Room { slots: 1, staging: 1 });
    }
    assert!((0..EXTENTS).all(|extent| container.holds_none_of(extent)));
    assert_eq!(container.take(0).blocks().count(), 0);
}

/// Places in staging, slots of the log, blocks of an extent, extents; the last block has 100 bytes.
const STAGING: usize = 8;
const SLOTS: usize = 24;
const LENGTHS: [usize; 3] = [STAGING * 4, SLOTS * 4, STAGING * BLOCK];
const PER_EXTENT: u32 = 8;
const SIZE: u64 = 5 * 8 * BLOCK as u64 - BLOCK as u64 + 100;

/// The container, and what it must hold: each block with the byte that fills it.
struct Pair {
    geometry: Geometry,
    memory: OwnedFd,
    storage: Arc<MemoryStorage>,
    with_log: bool,
    container: Container,
    model: BTreeMap<u32, u8>,
    /// Of the model's blocks those that lie in staging, oldest first.
    staged: Vec<u32>,
    /// Taken and never delivered: gone from the index, but not their places.
    lost: Vec<u32>,
    rng: TestRng,
}

impl Pair {
    fn new(with_log: bool, seed: u8) -> Self {
        let geometry = Geometry::recorded(SIZE, BLOCK as u64, u64::from(PER_EXTENT) * BLOCK as u64).unwrap();
        let made = shared_regions(&LENGTHS).unwrap();
        let memory = made[0].file().unwrap().try_clone_to_owned().unwrap();
        let storage = Arc::new(MemoryStorage::new((SLOTS * BLOCK) as u64));
        let container = over(geometry, made, with_log.then(|| storage.clone()));
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        let (model, staged, lost) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { geometry, memory, storage, with_log, container, model, staged, lost, rng }
    }

    fn free_staging(&self) -> usize {
        STAGING - self.staged.len() - self.lost.len()
    }

    /// Room is reserved before: there is a slot for each block that the container holds.
    fn store(&mut self) {
        let slots = if self.with_log { SLOTS } else { STAGING };
        let room = self.free_staging().min(slots - self.model.len() - self.lost.len());
        let first = self.rng.random_range(0..self.geometry.block_count());
        let absent = |block: &u32| *block < self.geometry.block_count() && !self.model.contains_key(block);
        let absent = |block: &u32| absent(block) && !self.lost.contains(block);
        let run = (first..first + 3).take_while(absent).count().min(room);
        if run == 0 {
            return;
        }
        let mut memory = self.container.stage(run as u32).unwrap();
        let (count, mut zeroes) = (memory.count(), 0);
        assert!((1..=run as u32).contains(&count));
        memory.fill(0);
        for block in first..first + count {
            let fill = self.rng.random_range(0..3u8);
            let length = self.length(block);
            let bytes = &mut memory[(block - first) as usize * BLOCK..][..BLOCK];
            // What lies behind the device's end counts for nothing.
            bytes[length..].fill(9);
            bytes[length - 1] = fill;
            if fill == 0 {
                zeroes += 1;
            } else {
                self.model.insert(block, fill);
                self.staged.push(block);
            }
        }
        assert_eq!(self.container.store(first, memory), Room { slots: zeroes, staging: zeroes });
    }

    fn length(&self, block: u32) -> usize {
        self.geometry.bytes_of(BlockRange::at(block, 1)).len() as usize
    }

    fn take(&mut self) {
        let extent = self.rng.random_range(0..self.geometry.extent_count());
        let blocks = self.geometry.blocks_of_extent(extent);
        let expected: Vec<(u32, u8)> = self.model.range(blocks.blocks()).map(|(block, fill)| (*block, *fill)).collect();
        let taken = self.container.take(extent);
        assert!(taken.blocks().eq(expected.iter().map(|(block, _)| *block)));
        assert!(self.container.holds_none_of(extent));
        let mut buffer = vec![0xee; self.geometry.bytes_of_extent(extent).len() as usize];
        let mut whole = buffer.clone();
        for (block, fill) in &expected {
            let bytes = &mut whole[(block - blocks.start) as usize * BLOCK..][..self.length(*block)];
            bytes.fill(0);
            *bytes.last_mut().unwrap() = *fill;
        }
        self.container.read(&taken, blocks.start, &mut buffer).unwrap();
        assert!(buffer == whole, "extent {extent}");
        self.model.retain(|block, _| !blocks.blocks().contains(block));
        let before = self.staged.len();
        let gone: Vec<u32> = self.staged.extract_if(.., |block| blocks.blocks().contains(block)).collect();
        if self.lost.is_empty() && gone.len() == 1 && expected.len() == 1 && self.rng.random_bool(0.2) {
            self.lost = gone;
            drop(taken);
            return;
        }
        let room = Room { slots: expected.len() as u32, staging: (before - self.staged.len()) as u32 };
        assert_eq!(self.container.release(taken), room);
    }

    /// Only when it has something to do; it would wait otherwise.
    fn write_behind(&mut self) {
        if !self.with_log {
            assert!(self.container.write_behind().is_none());
        } else if self.staged.len() > STAGING / 2 {
            let (room, outcome) = self.container.write_behind().unwrap();
            outcome.unwrap();
            assert_eq!(room, Room { slots: 0, staging: self.staged.len() as u32 });
            self.staged.clear();
        }
    }

    /// The process dies, and another takes up what `keep` holds for.
    fn die(&mut self) {
        let kept = self.rng.random_range(0..4);
        let keep = |block: u32| block % 4 != kept;
        let made = adopted_regions(self.memory.try_clone().unwrap(), &LENGTHS).unwrap();
        let successor = over(self.geometry, made, self.with_log.then(|| self.storage.clone()));
        // A process that is killed frees nothing.
        std::mem::forget(std::mem::replace(&mut self.container, successor));
        let (lost, staged) = (std::mem::take(&mut self.lost), std::mem::take(&mut self.staged));
        // What was taken and not delivered has its mark still, and comes back.
        for block in lost.iter().filter(|block| keep(**block)) {
            self.model.insert(*block, 0);
        }
        self.model.retain(|block, _| keep(*block));
        self.staged = staged.into_iter().chain(lost.clone()).filter(|block| keep(*block)).collect();
        let room = self.container.take_up(keep).unwrap();
        assert_eq!(room, Room { slots: self.model.len() as u32, staging: self.staged.len() as u32 });
        for block in lost.iter().filter(|block| keep(**block)) {
            let extent = self.geometry.extent_of(*block);
            let taken = self.container.take(extent);
            assert!(taken.blocks().any(|other| other == *block));
            self.container.release(taken);
            let blocks = self.geometry.blocks_of_extent(extent).blocks();
            self.model.retain(|block, _| !blocks.contains(block));
            self.staged.retain(|block| !blocks.contains(block));
        }
    }

    fn compare(&self) {
        let held = |extent: u32| self.model.range(self.geometry.blocks_of_extent(extent).blocks()).count() as u32;
        let extents = self.geometry.extent_count();
        for extent in 0..extents {
            assert_eq!(self.container.held(extent..extent + 1), held(extent));
            assert_eq!(self.container.holds_none_of(extent), held(extent) == 0);
        }
        assert_eq!(self.container.held(0..extents), self.model.len() as u32);
        for odd in [0, 1] {
            let most = (0..extents).filter(|extent| extent % 2 == odd).map(held).max().unwrap();
            let found = self.container.fullest(|extent| extent % 2 == odd);
            assert_eq!(found.map(|extent| (extent % 2, held(extent))), (most > 0).then_some((odd, most)));
        }
        assert_eq!(self.container.storage().is_some(), self.with_log);
        assert_eq!(self.container.state.lock().index.staged(), self.staged.len() as u32);
    }
}

fn over(geometry: Geometry, made: Vec<crate::arena::Region>, storage: Option<Arc<MemoryStorage>>) -> Container {
    let mut made = made.into_iter();
    let mut next = || made.next().unwrap();
    let (staging_marks, log_marks, staging) = (Marks::new(next()), Marks::new(next()), next());
    let log = storage.map(|storage| Log::new(storage, BLOCK, log_marks));
    Container::new(geometry, Slab::new(staging, BLOCK, staging_marks), log)
}

#[test]
fn the_oldest_are_handed_out_few_at_a_time_and_again_if_they_were_not_written() {
    let (container, _) = container();
    for block in [7, 3, 5] {
        store(&container, block, 1);
    }
    let index = &mut container.state.lock().index;
    let oldest =
        |index: &mut Index, most| index.oldest_staged(most).into_iter().map(|(block, _)| block).collect::<Vec<_>>();
    assert_eq!(oldest(index, 2), [7, 3]);
    index.keep_staged(3);
    index.keep_staged(7);
    assert_eq!(oldest(index, 9), [7, 3, 5]);
}

#[test]
fn a_log_has_one_slot_at_least_and_fewer_than_can_be_numbered() {
    let folder = tempfile::tempdir().unwrap();
    let slots = |name: &str, bytes, block| {
        let file = FileStorage::create(&folder.path().join(name), bytes, ErrorKind::Container).unwrap();
        Log::slots_of(&file, block).ok()
    };
    assert_eq!(slots("less than a block", 4095, 4096), None);
    assert_eq!(slots("two blocks and a bit", 8193, 4096), Some(2));
    let most = u64::from(u32::MAX);
    assert_eq!(slots("most", (most - 1) * 512, 512), Some(u32::MAX - 1));
    assert_eq!(slots("more", most * 512, 512), None);
    assert_eq!(slots("far more", most * 1024, 512), None);
}

#[test]
fn a_batch_of_the_log_fits_its_buffer() {
    for (block, blocks) in [(BLOCK, 256), (1 << 20, 1), (4 << 20, 1)] {
        let marks = Marks::new(regions(&[4]).unwrap().remove(0));
        assert_eq!(Log::new(Arc::new(MemoryStorage::new(8 << 20)), block, marks).batch_blocks(), blocks);
    }
}

#[test]
fn any_history_leaves_what_the_model_holds() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed % 4 > 0, seed);
        for _ in 0..400 {
            match pair.rng.random_range(0..16) {
                0..8 => pair.store(),
                8..11 => pair.take(),
                11..15 => pair.write_behind(),
                _ => pair.die(),
            }
            pair.compare();
        }
    }
}

#[test]
fn after_the_seal_nothing_reaches_the_log_and_what_is_staged_stays() {
    let mut pair = Pair::new(true, 1);
    while pair.staged.len() <= STAGING / 2 {
        pair.store();
    }
    pair.container.seal();
    let (room, outcome) = pair.container.write_behind().unwrap();
    assert_eq!((room, outcome.unwrap_err().kind), (Room::default(), crate::error::ErrorKind::Cancelled));
    pair.compare();
    assert!(pair.storage.snapshot().iter().all(|byte| *byte == 0));
    pair.container.close();
    assert!(pair.container.write_behind().is_none());
}

/// In some of the rounds at least, whoever writes behind waits before there is enough to do.
#[test]
fn whoever_writes_behind_is_woken_when_staging_is_more_than_half_full() {
    let pair = Pair::new(true, 1);
    let container = &pair.container;
    std::thread::scope(|scope| {
        let (sender, rounds) = crossbeam_channel::unbounded();
        scope.spawn(move || {
            while let Some((room, outcome)) = container.write_behind() {
                sender.send(outcome.map(|()| room)).unwrap();
            }
        });
        for _ in 0..300 {
            for block in 0..=STAGING as u32 / 2 {
                store(container, block, 1);
            }
            let room = rounds.recv_timeout(std::time::Duration::from_secs(60));
            if room.is_err() {
                // Or else the other thread would never end, and this test neither.
                container.close();
            }
            assert_eq!(room.unwrap().unwrap().slots, 0);
            container.release(container.take(0));
        }
        container.close();
    });
}
