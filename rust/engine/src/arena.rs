//! The flat memory of one backup: bitmaps, tables, staging and buffers are regions of a single mapping, anonymous or of a
//! memfd that outlives the process.
//!
//! Pages are zero until touched and untouched pages cost nothing. What the bytes mean is the business of the owners;
//! which regions there are, and in which order, is `arena/layout.rs`.

mod layout;

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

pub use layout::{Layout, Parts, SWEEPERS, words_for};

use crate::sync::{Arc, AtomicU32, AtomicU64};

const PAGE: usize = 4096;

struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// The file behind shared memory.
    file: Option<OwnedFd>,
}

// SAFETY: the mapping is plain memory without thread affinity; who may touch which bytes is settled by the regions.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access goes through atomics or through slots with one owner.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made by `map`, and no region is left that points into it.
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

/// Maps one anonymous arena and cuts it into regions of the given lengths in bytes, each page-aligned and zeroed.
///
/// # Errors
/// The kernel's error when the memory cannot be mapped.
pub fn regions(lengths: &[usize]) -> io::Result<Vec<Region>> {
    cut(lengths, map(total(lengths)?, None)?)
}

/// The same in a memfd, so that another process can go on with what is in it.
///
/// # Errors
/// The kernel's error when the memory cannot be had.
pub fn shared_regions(lengths: &[usize]) -> io::Result<Vec<Region>> {
    let total = total(lengths)?;
    let file = rustix::fs::memfd_create("blockcow-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, total as u64)?;
    // Nobody can cut off pages that we have mapped.
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    cut(lengths, map(total, Some(file))?)
}

/// Takes over the memfd of a process that is dead.
///
/// # Errors
/// The kernel's error, or `InvalidData` if it does not have the length of these regions.
pub fn adopted_regions(file: OwnedFd, lengths: &[usize]) -> io::Result<Vec<Region>> {
    let (found, total) = (rustix::fs::fstat(&file)?.st_size as u64, total(lengths)?);
    if found != total as u64 {
        let reason = format!("the arena has {found} bytes and not {total}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    cut(lengths, map(total, Some(file))?)
}

/// The lengths may come from a damaged note.
fn total(lengths: &[usize]) -> io::Result<usize> {
    let pages = |sum: usize, length: &usize| sum.checked_add(length.checked_next_multiple_of(PAGE)?);
    let total = lengths.iter().try_fold(0, pages);
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, "no memory is as large as the arena would be");
    Ok(total.ok_or_else(too_large)?.max(PAGE))
}

fn map(length: usize, file: Option<OwnedFd>) -> io::Result<Arc<Mapping>> {
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    let base = match &file {
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
        None => unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, rights, MapFlags::PRIVATE | MapFlags::NORESERVE)?
        },
        // SAFETY: at an address of the kernel's choice; the memfd is ours alone while this process lives, by the contract of
        // whoever hands it over, and cannot shrink.
        Some(file) => unsafe {
            mmap(std::ptr::null_mut(), length, rights, MapFlags::SHARED | MapFlags::NORESERVE, file, 0)?
        },
    };
    let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    Ok(Arc::new(Mapping { base, length, file }))
}

fn cut(lengths: &[usize], mapping: Arc<Mapping>) -> io::Result<Vec<Region>> {
    let mut offset = 0;
    let next = |&length: &usize| {
        let region = Region { mapping: mapping.clone(), offset, length };
        offset += length.next_multiple_of(PAGE);
        region
    };
    Ok(lengths.iter().map(next).collect())
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

    /// The memfd behind it, if it is shared memory.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file.as_ref().map(AsFd::as_fd)
    }

    /// Has the kernel find memory for all of it now, not when it is touched first. Changes no byte.
    ///
    /// # Errors
    /// The kernel's error when there is not enough.
    pub fn populate(&self) -> io::Result<()> {
        if self.length == 0 {
            return Ok(());
        }
        let (base, length) = (self.pointer(0, self.length), self.length.next_multiple_of(PAGE));
        // SAFETY: whole pages of this mapping, which are only given memory; no byte changes.
        match unsafe { madvise(base.as_ptr().cast(), length, Advice::LinuxPopulateWrite) } {
            // Before Linux 5.14: each page is found when it is touched.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The stretches that may hold something else than zeroes, without touching the others.
    fn touched(&self) -> io::Result<Vec<Range<usize>>> {
        let Some(file) = &self.mapping.file else { return Ok(std::iter::once(0..self.length).collect()) };
        let mut stretches = Vec::new();
        let (origin, end) = (self.offset as u64, (self.offset + self.length) as u64);
        let mut at = origin;
        while at < end {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < end => start,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            at = rustix::fs::seek(file, SeekFrom::Hole(start))?.clamp(start + 1, end);
            stretches.push((start - origin) as usize..(at - origin) as usize);
        }
        Ok(stretches)
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
        assert_eq!(size_of::<AtomicU64>(), 8, "a model checker's atomics do not lie in an arena");
        Self(region)
    }

    /// The memfd behind them, if they are shared memory.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.0.file()
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

/// A region read as atomic half words: one mark for each of many things.
pub struct Marks(Region);

impl Marks {
    /// Takes a region whose length is a multiple of 4 bytes.
    pub fn new(region: Region) -> Self {
        assert_eq!(region.len() % 4, 0, "whole marks");
        assert_eq!(size_of::<AtomicU32>(), 4, "a model checker's atomics do not lie in an arena");
        Self(region)
    }

    /// The stretches in which a mark may have been set since the arena was made.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn touched(&self) -> io::Result<Vec<Range<usize>>> {
        let stretches = self.0.touched()?;
        Ok(stretches.into_iter().map(|bytes| bytes.start / 4..bytes.end.div_ceil(4)).collect())
    }
}

impl Deref for Marks {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        let base = self.0.pointer(0, self.0.len());
        // SAFETY: as for `Words`.
        unsafe { std::slice::from_raw_parts(base.as_ptr().cast(), self.0.len() / 4) }
    }
}

/// A region read as bytes, by one owner.
pub struct Bytes(Region);

impl Bytes {
    /// Takes a region.
    pub fn new(region: Region) -> Self {
        Self(region)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialised memory that lives as long as the region, which `new` took: nobody else sees it.
        unsafe { std::slice::from_raw_parts(self.0.pointer(0, self.0.len()).as_ptr(), self.0.len()) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(0, self.0.len()).as_ptr(), self.0.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn populated_memory_is_there_and_the_rest_is_not() {
        for make in [regions, shared_regions] {
            let lengths = [PAGE, 8 * PAGE, 5, 0, 100 * PAGE];
            let made = make(&lengths).unwrap();
            let mut kept = Bytes::new(make(&[PAGE]).unwrap().remove(0));
            kept[7] = 7;
            kept.0.populate().unwrap();
            assert_eq!(kept[7], 7);
            for index in [1, 2, 3] {
                made[index].populate().unwrap();
            }
            assert_eq!(made.iter().map(resident).collect::<Vec<_>>(), [0, 8, 1, 0, 0]);
        }
    }

    /// How many pages of a region have memory.
    fn resident(region: &Region) -> usize {
        let pages = region.len().div_ceil(PAGE);
        let mut found = vec![0u8; pages];
        let base = region.pointer(0, region.len()).as_ptr();
        // SAFETY: the region is mapped, and the answer has a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(base.cast(), region.len(), found.as_mut_ptr()) }, 0);
        found.iter().filter(|&&page| page & 1 != 0).count()
    }

    #[test]
    fn another_mapping_of_the_same_file_sees_what_was_stored() {
        let lengths = [8, 0, 3 * PAGE, 5];
        let mut first = shared_regions(&lengths).unwrap();
        let file = first[0].file().unwrap().try_clone_to_owned().unwrap();
        let mut bytes = Bytes::new(first.remove(2));
        bytes[2 * PAGE + 1] = 7;
        Words::new(first.remove(0))[0].store(9, Ordering::Relaxed);
        drop((first, bytes));
        let again = file.try_clone().unwrap();
        let mut second = adopted_regions(file, &lengths).unwrap();
        let touched: Vec<_> = second[2].touched().unwrap().into_iter().flatten().collect();
        assert!(touched.into_iter().eq(2 * PAGE..3 * PAGE), "what was never touched is not looked at");
        assert_eq!(Bytes::new(second.remove(2))[2 * PAGE + 1], 7);
        assert_eq!(Words::new(second.remove(0))[0].load(Ordering::Relaxed), 9);
        assert!(adopted_regions(again, &[PAGE]).is_err(), "another layout");
    }
}
