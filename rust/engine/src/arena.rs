//! The flat memory of one backup: bitmaps, staging and buffers are regions of a single anonymous mapping.
//!
//! Pages are zero until touched and untouched pages cost nothing. What the bytes mean is the business of the owners.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::sync::{Arc, AtomicU64};

const PAGE: usize = 4096;

struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory without thread affinity; who may touch which bytes is settled by the regions.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access goes through atomics or through slots with one owner.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `regions`, and no region is left that points into
        // it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A page-aligned stretch of an arena, owned by exactly one part of the engine.
pub struct Region {
    mapping: Arc<Mapping>,
    offset: usize,
    length: usize,
}

/// Maps one arena and cuts it into regions of the given lengths in bytes, each page-aligned and zeroed.
///
/// # Errors
/// The kernel's error when the memory cannot be mapped.
pub fn regions(lengths: &[usize]) -> io::Result<Vec<Region>> {
    let total: usize = lengths.iter().map(|length| length.next_multiple_of(PAGE)).sum();
    let length = total.max(PAGE);
    // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
    let base = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )?
    };
    let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let mapping = Arc::new(Mapping { base, length });
    let mut offset = 0;
    let cut = |&length: &usize| {
        let region = Region { mapping: mapping.clone(), offset, length };
        offset += length.next_multiple_of(PAGE);
        region
    };
    Ok(lengths.iter().map(cut).collect())
}

impl Region {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// First byte of `offset..offset + length`, checked to lie inside.
    pub(crate) fn pointer(&self, offset: usize, length: usize) -> NonNull<u8> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "outside the region");
        // SAFETY: just checked to lie inside the region, which lies inside the mapping.
        unsafe { self.mapping.base.add(self.offset + offset) }
    }
}

/// A region read as atomic words.
pub struct Words(Region);

impl Words {
    /// Takes a region whose length is a multiple of 8 bytes.
    pub fn new(region: Region) -> Self {
        assert_eq!(region.len() % 8, 0, "whole words");
        Self(region)
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let base = self.0.pointer(0, self.0.len());
        // SAFETY: page-aligned, initialised (zero) memory of that length which lives as long as the region; it is only
        // ever seen as atomics, because `new` took the region.
        unsafe { std::slice::from_raw_parts(base.as_ptr().cast(), self.0.len() / 8) }
    }
}
