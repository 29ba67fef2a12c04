//! A regular file or a block device: direct I/O where the kernel offers it, buffered I/O where it does not.
//!
//! Two descriptors of the same inode. Whole units below `edge` go through the direct one; everything from `edge` on, a
//! last part that direct I/O cannot reach, goes through the buffered one. A page is never written both ways. How they
//! come to be open is `file/open.rs`; what becomes of ranges without data is `file/hollow.rs`; how far ahead space is allocated
//! is `file/ahead.rs`.

mod ahead;
mod hollow;
mod open;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use self::ahead::Ahead;
use super::{Alignment, Storage, Zeroing, check_range, lock};
use crate::buffer::AlignedBuf;
use crate::geometry::ByteRange;
use crate::sync::{Mutex, RwLock};

/// The most bytes that one bounce buffer holds, and one write of zeroes covers.
const PIECE: u64 = 1 << 20;

/// What the holder may do with a file or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; others may read as well.
    ReadOnly,
    /// Reading and writing; nobody else may do either.
    ReadWrite,
    /// The same beside whatever the kernel has mounted there, which will not know of the changes. Other programs that
    /// lock it still keep us out.
    ReadWriteMounted,
}

/// A regular file or block device, held exclusively until it is dropped.
#[derive(Debug)]
pub struct FileStorage {
    /// Carries the lock, so it lives as long as the storage.
    buffered: OwnedFd,
    direct: Option<OwnedFd>,
    size: u64,
    /// Where direct I/O ends: `size` where that is a multiple of the unit, 0 without direct I/O.
    edge: u64,
    alignment: Alignment,
    /// What the file system zeroes and frees in whole.
    granule: u64,
    logical_block: u64,
    block_device: bool,
    /// Whether it lies on a block device or in memory, with only the kernel in between.
    local: bool,
    /// Whether it is a file in tmpfs.
    tmpfs: bool,
    /// Whoever reads a unit to write it back with some bytes changed holds this alone; all other changes share it.
    units: RwLock<()>,
    seek: Mutex<()>,
    ahead: Mutex<Ahead>,
}

impl FileStorage {
    /// Whether reads and writes bypass the page cache.
    pub fn direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether this is a block device rather than a regular file.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// The smallest piece, in bytes, that the device writes at once; for a file what direct I/O needs, or 512.
    pub fn logical_block(&self) -> u64 {
        self.logical_block
    }

    /// The descriptors behind it: one for buffered I/O, which carries the lock, and one for direct I/O where there is one.
    /// Another process that is given both can stand in with [`FileStorage::adopt`].
    pub fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.buffered.as_fd(), self.direct.as_ref().map(AsFd::as_fd))
    }

    /// Allocates all of the file's space, so that writes cannot run out of it later.
    ///
    /// # Errors
    /// `io::ErrorKind::Unsupported` where the file system cannot; `StorageFull` where there is not enough space.
    pub fn allocate(&self) -> io::Result<()> {
        self.allocate_range(ByteRange { start: 0, end: self.size })
    }

    /// Whether this is a file in tmpfs that has no holes. tmpfs would look for them page by page, under the lock that writes
    /// to the file need: 20 milliseconds for each GiB.
    fn is_full_in_tmpfs(&self) -> io::Result<bool> {
        Ok(self.tmpfs && rustix::fs::fstat(&self.buffered)?.st_blocks as u64 * 512 >= self.size)
    }

    fn allocate_range(&self, range: ByteRange) -> io::Result<()> {
        let allocate = || rustix::fs::fallocate(&self.buffered, FallocateFlags::KEEP_SIZE, range.start, range.len());
        match retry_on_intr(allocate) {
            Err(Errno::OPNOTSUPP) => Err(io::Error::new(io::ErrorKind::Unsupported, Errno::OPNOTSUPP)),
            result => Ok(result?),
        }
    }

    /// The part of the range for the direct descriptor, and the part for the buffered one.
    fn split(&self, range: ByteRange) -> (ByteRange, ByteRange) {
        let edge = self.edge.clamp(range.start, range.end);
        (ByteRange { start: range.start, end: edge }, ByteRange { start: edge, end: range.end })
    }

    /// Whether the kernel takes the request as it is.
    fn fits(&self, range: ByteRange, memory: *const u8) -> bool {
        range.grow_to(self.alignment.offset) == range && memory.addr().is_multiple_of(self.alignment.memory as usize)
    }

    fn read_direct(&self, fd: &OwnedFd, buf: &mut [u8], range: ByteRange) -> io::Result<()> {
        if self.fits(range, buf.as_ptr()) {
            return read_full(fd, buf, range.start, self.alignment.offset);
        }
        let mut bounce = self.bounce(range);
        for piece in pieces(range) {
            let whole = piece.grow_to(self.alignment.offset);
            let units = &mut bounce[..whole.len() as usize];
            read_full(fd, units, whole.start, self.alignment.offset)?;
            let wanted = &units[(piece.start - whole.start) as usize..][..piece.len() as usize];
            buf[(piece.start - range.start) as usize..][..wanted.len()].copy_from_slice(wanted);
        }
        Ok(())
    }

    fn write_direct(&self, fd: &OwnedFd, buf: &[u8], range: ByteRange) -> io::Result<()> {
        if self.fits(range, buf.as_ptr()) {
            let _shared = self.units.read();
            return write_full(fd, buf, range.start, self.alignment.offset);
        }
        let mut bounce = self.bounce(range);
        for piece in pieces(range) {
            let bytes = &buf[(piece.start - range.start) as usize..][..piece.len() as usize];
            self.write_bounced(fd, bytes, piece, &mut bounce)?;
        }
        Ok(())
    }

    fn write_bounced(&self, fd: &OwnedFd, bytes: &[u8], piece: ByteRange, bounce: &mut AlignedBuf) -> io::Result<()> {
        let unit = self.alignment.offset;
        let whole = piece.grow_to(unit);
        let units = &mut bounce[..whole.len() as usize];
        let inside = (piece.start - whole.start) as usize..(piece.end - whole.start) as usize;
        if whole == piece {
            units.copy_from_slice(bytes);
            let _shared = self.units.read();
            return write_full(fd, units, whole.start, unit);
        }
        let _alone = self.units.write();
        if whole.start < piece.start {
            read_full(fd, &mut units[..unit as usize], whole.start, unit)?;
        }
        // A single unit with both ends partial has been read above.
        if piece.end < whole.end && (whole.len() > unit || whole.start == piece.start) {
            let last = units.len() - unit as usize;
            read_full(fd, &mut units[last..], whole.end - unit, unit)?;
        }
        units[inside].copy_from_slice(bytes);
        write_full(fd, units, whole.start, unit)
    }

    fn bounce(&self, range: ByteRange) -> AlignedBuf {
        let length = range.grow_to(self.alignment.offset).len().min(PIECE.max(self.alignment.offset));
        AlignedBuf::with_alignment(length as usize, self.alignment.memory as usize)
    }

    /// `None`: there is no such place up to the end of the file.
    fn seek(&self, to: SeekFrom) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.buffered, to) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Storage for FileStorage {
    fn size(&self) -> u64 {
        self.size
    }

    fn alignment(&self) -> Alignment {
        self.alignment
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (head, tail) = self.split(check_range(self.size, offset, buf.len() as u64)?);
        let (first, last) = buf.split_at_mut(head.len() as usize);
        if let Some(direct) = &self.direct
            && !head.is_empty()
        {
            self.read_direct(direct, first, head)?;
        }
        read_full(&self.buffered, last, tail.start, 1)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (head, tail) = self.split(check_range(self.size, offset, buf.len() as u64)?);
        let (first, last) = buf.split_at(head.len() as usize);
        if let Some(direct) = &self.direct
            && !head.is_empty()
        {
            self.write_direct(direct, first, head)?;
        }
        write_full(&self.buffered, last, tail.start, 1)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.zero_range(check_range(self.size, range.start, range.len())?, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.discard_range(check_range(self.size, range.start, range.len())?)
    }

    /// Both descriptors are of one inode, so one call covers what either wrote; it writes the metadata that reading
    /// needs, allocation included.
    fn sync(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.buffered))?)
    }

    fn will_write(&self, range: ByteRange) -> io::Result<()> {
        if self.block_device || !self.direct() || range.is_empty() {
            return Ok(());
        }
        let mut ahead = self.ahead.lock();
        let Some(window) = ahead.window_for(range, self.size) else { return Ok(()) };
        let allocated = self.allocate_range(window).or_else(|error| {
            if error.kind() != io::ErrorKind::StorageFull {
                return Err(error);
            }
            ahead.narrow(range);
            self.allocate_range(range)
        });
        match allocated {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn stays_zero(&self, range: ByteRange) -> io::Result<()> {
        let ahead = self.ahead.lock();
        ahead.within(range).try_for_each(|allocated| self.discard_range(allocated))
    }

    fn handles(&self) -> Vec<BorrowedFd<'_>> {
        let (buffered, direct) = self.descriptors();
        std::iter::once(buffered).chain(direct).collect()
    }

    fn ends_with_its_process(&self) -> bool {
        self.local
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        if from >= self.size {
            return Ok(None);
        }
        if self.block_device || self.is_full_in_tmpfs()? {
            return Ok(Some(ByteRange { start: from, end: self.size }));
        }
        let _position = self.seek.lock();
        let Some(start) = self.seek(SeekFrom::Data(from))? else { return Ok(None) };
        // A discard between the two calls may have left nothing here; a stretch is never empty all the same.
        let end = self.seek(SeekFrom::Hole(start))?.unwrap_or(self.size).max(start + self.granule);
        Ok((start < self.size).then(|| ByteRange { start, end: end.min(self.size) }))
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // If it cannot be unlocked, closing it does so a moment later.
        let _ = lock::release(self.as_fd());
    }
}

impl AsFd for FileStorage {
    /// The descriptor that carries the lock. Its file position is not to be relied on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }
}

/// The range in pieces that end at multiples of `PIECE`.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = (start - start % PIECE + PIECE).min(range.end);
        let piece = ByteRange { start, end };
        start = end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Reads all of `buf`. A transfer that ends within a unit ended at the end of the file: it was truncated under us.
fn read_full(fd: &OwnedFd, mut buf: &mut [u8], mut offset: u64, unit: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let count = retry_on_intr(|| rustix::io::pread(fd, &mut *buf, offset))?;
        let whole = count - count % unit as usize;
        if whole == 0 {
            let reason = format!("the file ends before offset {}: it was truncated", offset + buf.len() as u64);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        buf = &mut buf[whole..];
        offset += whole as u64;
    }
    Ok(())
}

/// Writes all of `buf`; a unit that was written in part is written again.
fn write_full(fd: &OwnedFd, mut buf: &[u8], mut offset: u64, unit: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let count = retry_on_intr(|| rustix::io::pwrite(fd, buf, offset))?;
        let whole = count - count % unit as usize;
        if whole == 0 {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel wrote nothing and gave no reason"));
        }
        buf = &buf[whole..];
        offset += whole as u64;
    }
    Ok(())
}
