//! Which blocks the container holds, where, and which extents hold most. Memory only; its lock is the container's.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::geometry::Geometry;
use crate::slab::{Memory, Slots};
use crate::sync::Arc;

/// Staged bytes, shared by the index and the write-behind while it writes them.
pub(super) type Staged = Arc<Memory>;

/// Where a block is.
pub(super) enum Place {
    /// In staging.
    Staged(Staged),
    /// In one slot of the log.
    Stored(Slots),
}

pub(super) struct Index {
    geometry: Geometry,
    /// By extent and block. A block of zeroes is not here: it needs no place.
    extents: HashMap<u32, HashMap<u32, Place>>,
    /// Extents by the number of their blocks, for the drain.
    by_fullness: BTreeSet<(u32, u32)>,
    /// Staged blocks, oldest first; some may have been taken since.
    queue: VecDeque<u32>,
    staged: u32,
}

/// So many entries of the queue may be stale before they are removed.
const STALE: usize = 512;

impl Index {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, extents: HashMap::new(), by_fullness: BTreeSet::new(), queue: VecDeque::new(), staged: 0 }
    }

    /// Blocks in staging.
    pub(super) fn staged(&self) -> u32 {
        self.staged
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn insert(&mut self, block: u32, memory: Staged) {
        self.put(block, Place::Staged(memory));
        self.queue.push_back(block);
        self.staged += 1;
    }

    /// A block that lies in the log already. `false`: it was here.
    pub(super) fn insert_stored(&mut self, block: u32, slot: Slots) -> bool {
        let new = !self.holds(block);
        if new {
            self.put(block, Place::Stored(slot));
        }
        new
    }

    fn put(&mut self, block: u32, place: Place) {
        let extent = self.geometry.extent_of(block);
        let places = self.extents.entry(extent).or_default();
        self.by_fullness.remove(&(places.len() as u32, extent));
        let before = places.insert(block, place);
        debug_assert!(before.is_none(), "a block is copied once");
        self.by_fullness.insert((places.len() as u32, extent));
    }

    pub(super) fn holds(&self, block: u32) -> bool {
        self.extents.get(&self.geometry.extent_of(block)).is_some_and(|places| places.contains_key(&block))
    }

    pub(super) fn holds_none_of(&self, extent: u32) -> bool {
        !self.extents.contains_key(&extent)
    }

    pub(super) fn held(&self, extent: u32) -> u32 {
        self.extents.get(&extent).map_or(0, |places| places.len() as u32)
    }

    pub(super) fn fullest(&self, free: impl Fn(u32) -> bool) -> Option<u32> {
        self.by_fullness.iter().rev().map(|&(_, extent)| extent).find(|&extent| free(extent))
    }

    pub(super) fn take(&mut self, extent: u32) -> Vec<(u32, Place)> {
        let Some(places) = self.extents.remove(&extent) else { return Vec::new() };
        self.by_fullness.remove(&(places.len() as u32, extent));
        let mut places: Vec<_> = places.into_iter().collect();
        self.staged -= places.iter().filter(|(_, place)| matches!(place, Place::Staged(_))).count() as u32;
        places.sort_unstable_by_key(|&(block, _)| block);
        self.forget_stale();
        places
    }

    /// Keeps the queue from growing with the blocks that were ever staged, where no write-behind empties it.
    fn forget_stale(&mut self) {
        if self.queue.len() <= 2 * self.staged as usize + STALE {
            return;
        }
        let (geometry, extents) = (self.geometry, &self.extents);
        let place = |block: u32| extents.get(&geometry.extent_of(block))?.get(&block);
        self.queue.retain(|&block| matches!(place(block), Some(Place::Staged(_))));
    }

    /// The oldest staged blocks, at most `most`; they stay in the index and in the queue's order until `stored`.
    pub(super) fn oldest_staged(&mut self, most: usize) -> Vec<(u32, Staged)> {
        let mut batch = Vec::new();
        while batch.len() < most
            && let Some(block) = self.queue.pop_front()
        {
            if let Some(Place::Staged(memory)) = self.place(block) {
                batch.push((block, memory.clone()));
            }
        }
        batch
    }

    fn place(&mut self, block: u32) -> Option<&mut Place> {
        let extent = self.geometry.extent_of(block);
        self.extents.get_mut(&extent)?.get_mut(&block)
    }

    /// The staged bytes of a block are in `slot` now. If the sweep has taken the block meanwhile, the slot is dropped.
    pub(super) fn stored(&mut self, block: u32, memory: &Staged, slot: Slots) {
        if let Some(place) = self.place(block)
            && let Place::Staged(held) = place
            && Arc::ptr_eq(held, memory)
        {
            *place = Place::Stored(slot);
            self.staged -= 1;
        }
    }

    /// A block that `oldest_staged` handed out was not written; it will be handed out again.
    pub(super) fn keep_staged(&mut self, block: u32) {
        self.queue.push_front(block);
    }
}
