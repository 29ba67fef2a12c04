//! Zeroing and discarding: ranges of a file or block device that need no data sent.
//!
//! The kernel gets the inner part that its own units fill; the edges are written, or, for a discard, left alone.

use std::io;

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};

use super::{FileStorage, PIECE, pieces};
use crate::buffer::AlignedBuf;
use crate::geometry::ByteRange;
use crate::storage::{Storage, Zeroing};

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);

impl FileStorage {
    pub(super) fn zero_range(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let inner = range.shrink_to(self.granule);
        if inner.is_empty() || !self.zero_units(inner, how)? {
            // Less than a unit is written in no time.
            return if how.fast && !inner.is_empty() {
                Err(io::ErrorKind::Unsupported.into())
            } else {
                self.write_zeroes(range)
            };
        }
        self.write_zeroes(ByteRange { start: range.start, end: inner.start })?;
        self.write_zeroes(ByteRange { start: inner.end, end: range.end })
    }

    pub(super) fn discard_range(&self, range: ByteRange) -> io::Result<()> {
        let inner = range.shrink_to(self.granule);
        if inner.is_empty() {
            return Ok(());
        }
        if !self.block_device {
            return self.allocate_as(PUNCH, inner).map(drop);
        }
        let _shared = self.units.read();
        match retry_on_intr(|| blkdiscard(&self.buffered, inner)) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Whether whole units could be made zero without data sent. The kernel zeroes a block device that keeps its space by
    /// writing, if it must, and does not say so: that is not fast.
    fn zero_units(&self, units: ByteRange, how: Zeroing) -> io::Result<bool> {
        if !how.keep_space && self.allocate_as(PUNCH, units)? {
            return Ok(true);
        }
        if how.fast && self.block_device {
            return Ok(false);
        }
        self.allocate_as(ZERO, units)
    }

    /// Whether the file system or device knows how to; `false` leaves the range as it was.
    fn allocate_as(&self, how: FallocateFlags, range: ByteRange) -> io::Result<bool> {
        let _shared = self.units.read();
        match retry_on_intr(|| rustix::fs::fallocate(&self.buffered, how, range.start, range.len())) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        let zeroes = AlignedBuf::new(range.len().min(PIECE) as usize);
        pieces(range).try_for_each(|piece| self.write_at(&zeroes[..piece.len() as usize], piece.start))
    }
}

fn blkdiscard(fd: &std::os::fd::OwnedFd, range: ByteRange) -> rustix::io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64 from the pointer, start and length, and writes nothing.
    unsafe { rustix::ioctl::ioctl(fd, rustix::ioctl::Setter::<BLKDISCARD, [u64; 2]>::new([range.start, range.len()])) }
}
