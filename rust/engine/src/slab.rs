//! Slots of equal size: an allocator that hands out runs of slot numbers, and a slab that has memory behind them.
//!
//! A run belongs to one owner and returns to its allocator when dropped, so a slot cannot leak and is never shared. Each
//! slot has a mark, the number of the block that it holds, from which another process can tell what is where.

use std::io;
use std::ops::{Deref, DerefMut};

use crate::arena::{Marks, Region};
use crate::sync::{Arc, Mutex, Ordering};

/// Hands out runs of free slots, next-fit, so that consecutive requests get neighbouring slots as in a log.
pub struct SlotAllocator {
    state: Mutex<State>,
    /// For each slot the number of the block that it holds, plus one. Set after the bytes are there, cleared before the slot
    /// is free again.
    marks: Marks,
}

struct State {
    /// One bit a slot, set while the slot is taken; bits past the last slot are set for ever.
    taken: Vec<u64>,
    cursor: u32,
    slots: u32,
    free: u32,
}

impl SlotAllocator {
    /// An allocator of as many slots as there are marks, all free.
    pub fn new(marks: Marks) -> Arc<Self> {
        let slots = marks.len() as u32;
        let mut taken = vec![0u64; slots.div_ceil(64) as usize];
        if let (Some(last), used @ 1..) = (taken.last_mut(), slots % 64) {
            *last = !0 << used;
        }
        Arc::new(Self { state: Mutex::new(State { taken, cursor: 0, slots, free: slots }), marks })
    }

    /// Takes every slot that has a mark, as a dead process left it, with the number of the block that it holds. Only while
    /// all slots are free.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn take_marked(self: &Arc<Self>) -> io::Result<Vec<(u32, Slots)>> {
        let mut found = Vec::new();
        let mut state = self.state.lock();
        for slot in self.marks.touched()?.into_iter().flatten() {
            if let Some(block) = self.marks[slot].load(Ordering::Acquire).checked_sub(1) {
                state.mark(slot as u32);
                found.push((block, Slots { allocator: self.clone(), first: slot as u32, count: 1 }));
            }
        }
        Ok(found)
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
        for mark in &self.marks[first as usize..(first + count) as usize] {
            if mark.load(Ordering::Relaxed) != 0 {
                mark.store(0, Ordering::Release);
            }
        }
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

    /// Says that the one slot of this run holds the bytes of `block` now.
    pub fn mark(&self, block: u32) {
        debug_assert_eq!(self.count, 1, "a slot holds one block");
        self.allocator.marks[self.first as usize].store(block + 1, Ordering::Release);
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
    /// Cuts `region` into slots of `slot_bytes`, one for each mark.
    pub fn new(region: Region, slot_bytes: usize, marks: Marks) -> Arc<Self> {
        assert_eq!(region.len(), marks.len() * slot_bytes, "a mark for each slot");
        let allocator = SlotAllocator::new(marks);
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

    /// As [`SlotAllocator::take_marked`], with the memory.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn take_marked(self: &Arc<Self>) -> io::Result<Vec<(u32, Memory)>> {
        let found = self.allocator.take_marked()?;
        Ok(found.into_iter().map(|(block, slots)| (block, Memory { slots, slab: self.clone() })).collect())
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

    /// Says that this memory of one slot holds the bytes of `block` now.
    pub fn mark(&self, block: u32) {
        self.slots.mark(block);
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
    use crate::arena::{adopted_regions, regions, shared_regions};

    fn marks(slots: usize) -> Marks {
        Marks::new(regions(&[slots * 4]).unwrap().remove(0))
    }

    #[test]
    fn runs_are_neighbouring_and_come_back() {
        let allocator = SlotAllocator::new(marks(70));
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
        let allocator = SlotAllocator::new(marks(4));
        let mut all = allocator.take(4).unwrap();
        let front = all.split_off_front(1);
        drop(all);
        let rest = allocator.take(4).unwrap();
        assert_eq!((front.first(), rest.first(), rest.count()), (0, 1, 3));
    }

    #[test]
    fn memory_of_two_owners_is_apart() {
        let slab = Slab::new(regions(&[4096]).unwrap().remove(0), 512, marks(8));
        let (mut a, mut b) = (slab.take(4).unwrap(), slab.take(4).unwrap());
        a.fill(1);
        b.fill(2);
        assert!(a.iter().all(|&byte| byte == 1) && b.iter().all(|&byte| byte == 2));
        assert!(slab.take(1).is_none());
    }
    #[test]
    fn marked_slots_are_found_again_and_freed_ones_are_not() {
        let mut shared = shared_regions(&[70 * 4]).unwrap();
        let file = shared[0].file().unwrap().try_clone_to_owned().unwrap();
        let allocator = SlotAllocator::new(Marks::new(shared.remove(0)));
        let mut run = allocator.take(3).unwrap();
        let (first, second) = (run.split_off_front(1), run.split_off_front(1));
        [&first, &second, &run].iter().zip([7, 8, 0]).for_each(|(slot, block)| slot.mark(block));
        drop(second);
        let later = SlotAllocator::new(Marks::new(adopted_regions(file, &[70 * 4]).unwrap().remove(0)));
        let found: Vec<_> =
            later.take_marked().unwrap().into_iter().map(|(block, slots)| (block, slots.first())).collect();
        assert_eq!(found, [(7, 0), (0, 2)]);
    }
}
