//! Slots of equal size: an allocator that hands out runs of slot numbers, and a slab that has memory behind them.
//!
//! A run belongs to one owner and returns to its allocator when dropped, so a slot cannot leak and is never shared.

use std::ops::{Deref, DerefMut};

use crate::arena::Region;
use crate::sync::{Arc, Mutex};

/// Hands out runs of free slots, next-fit, so that consecutive requests get neighbouring slots as in a log.
pub struct SlotAllocator {
    state: Mutex<State>,
}

struct State {
    /// One bit a slot, set while the slot is taken; bits past the last slot are set for ever.
    taken: Vec<u64>,
    cursor: u32,
    slots: u32,
    free: u32,
}

impl SlotAllocator {
    /// An allocator of `slots` free slots.
    pub fn new(slots: u32) -> Arc<Self> {
        let mut taken = vec![0u64; slots.div_ceil(64) as usize];
        if let (Some(last), used @ 1..) = (taken.last_mut(), slots % 64) {
            *last = !0 << used;
        }
        Arc::new(Self { state: Mutex::new(State { taken, cursor: 0, slots, free: slots }) })
    }

    /// Number of slots, taken or free.
    pub fn slots(&self) -> u32 {
        self.state.lock().slots
    }

    /// Takes a run of 1 to `most` neighbouring slots; `None` if no slot is free.
    pub fn take(self: &Arc<Self>, most: u32) -> Option<Slots> {
        let mut state = self.state.lock();
        let first = state.next_free()?;
        let mut count = 1;
        state.mark(first);
        while count < most && first + count < state.slots && !state.is_taken(first + count) {
            state.mark(first + count);
            count += 1;
        }
        state.cursor = (first + count) % state.slots;
        Some(Slots { allocator: self.clone(), first, count })
    }

    fn give_back(&self, first: u32, count: u32) {
        let mut state = self.state.lock();
        for slot in first..first + count {
            state.taken[(slot / 64) as usize] &= !(1 << (slot % 64));
        }
        state.free += count;
    }
}

impl State {
    fn is_taken(&self, slot: u32) -> bool {
        self.taken[(slot / 64) as usize] & (1 << (slot % 64)) != 0
    }

    fn mark(&mut self, slot: u32) {
        self.taken[(slot / 64) as usize] |= 1 << (slot % 64);
        self.free -= 1;
    }

    /// The first free slot at or after the cursor, wrapping around once.
    fn next_free(&self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let words = self.taken.len();
        let start = (self.cursor / 64) as usize;
        let below_cursor = (1u64 << (self.cursor % 64)) - 1;
        for step in 0..=words {
            let word = (start + step) % words;
            let masked = if step == 0 { self.taken[word] | below_cursor } else { self.taken[word] };
            if masked != !0 {
                return Some(word as u32 * 64 + masked.trailing_ones());
            }
        }
        None
    }
}

/// A run of slots with one owner; dropping it gives them back.
pub struct Slots {
    allocator: Arc<SlotAllocator>,
    first: u32,
    count: u32,
}

impl Slots {
    /// First slot number.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Number of slots.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Cuts the first `count` slots off into a run of their own.
    pub fn split_off_front(&mut self, count: u32) -> Self {
        assert!(count < self.count, "something must remain");
        let front = Self { allocator: self.allocator.clone(), first: self.first, count };
        self.first += count;
        self.count -= count;
        front
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.allocator.give_back(self.first, self.count);
    }
}

/// Slots with memory behind them, all of the same size in bytes.
pub struct Slab {
    region: Region,
    slot_bytes: usize,
    allocator: Arc<SlotAllocator>,
}

impl Slab {
    /// Cuts `region` into slots of `slot_bytes`.
    pub fn new(region: Region, slot_bytes: usize) -> Arc<Self> {
        let allocator = SlotAllocator::new((region.len() / slot_bytes) as u32);
        Arc::new(Self { region, slot_bytes, allocator })
    }

    /// Number of slots, taken or free.
    pub fn slots(&self) -> u32 {
        self.allocator.slots()
    }

    /// Takes 1 to `most` neighbouring slots; `None` if no slot is free. The bytes are whatever was there before.
    pub fn take(self: &Arc<Self>, most: u32) -> Option<Memory> {
        Some(Memory { slots: self.allocator.take(most)?, slab: self.clone() })
    }
}

/// The bytes of a run of slots, with one owner.
pub struct Memory {
    slots: Slots,
    slab: Arc<Slab>,
}

impl Memory {
    /// Number of slots.
    pub fn count(&self) -> u32 {
        self.slots.count()
    }

    /// Cuts the first `count` slots off into a piece of their own.
    pub fn split_off_front(&mut self, count: u32) -> Self {
        Self { slots: self.slots.split_off_front(count), slab: self.slab.clone() }
    }

    fn place(&self) -> (usize, usize) {
        (self.slots.first() as usize * self.slab.slot_bytes, self.slots.count() as usize * self.slab.slot_bytes)
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (offset, length) = self.place();
        // SAFETY: the allocator gave these slots to this owner alone; the slab took the region, so nobody else sees it.
        unsafe { std::slice::from_raw_parts(self.slab.region.pointer(offset, length).as_ptr(), length) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (offset, length) = self.place();
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.slab.region.pointer(offset, length).as_ptr(), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::regions;

    #[test]
    fn runs_are_neighbouring_and_come_back() {
        let allocator = SlotAllocator::new(70);
        let a = allocator.take(3).unwrap();
        let b = allocator.take(100).unwrap();
        assert_eq!((a.first(), a.count(), b.first(), b.count()), (0, 3, 3, 67));
        assert!(allocator.take(1).is_none());
        drop(a);
        let c = allocator.take(9).unwrap();
        assert_eq!((c.first(), c.count()), (0, 3));
    }

    #[test]
    fn split_pieces_are_freed_apart() {
        let allocator = SlotAllocator::new(4);
        let mut all = allocator.take(4).unwrap();
        let front = all.split_off_front(1);
        drop(all);
        let rest = allocator.take(4).unwrap();
        assert_eq!((front.first(), rest.first(), rest.count()), (0, 1, 3));
    }

    #[test]
    fn memory_of_two_owners_is_apart() {
        let slab = Slab::new(regions(&[4096]).unwrap().remove(0), 512);
        let (mut a, mut b) = (slab.take(4).unwrap(), slab.take(4).unwrap());
        a.fill(1);
        b.fill(2);
        assert!(a.iter().all(|&byte| byte == 1) && b.iter().all(|&byte| byte == 2));
        assert!(slab.take(1).is_none());
    }
}
