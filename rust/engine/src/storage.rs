//! What the engine needs of a place that holds bytes: device, container and destination are all a `Storage`.
//!
//! Implementations live in `storage/`, one file each. A storage knows nothing of blocks, backups or claims.

mod fault;
mod file;
mod lock;
mod memory;
mod section;
mod throttle;

use std::io;
use std::os::fd::BorrowedFd;

pub use fault::{Fault, FaultStorage, Operation};
pub use file::{Access, FileStorage};
pub use memory::MemoryStorage;
pub use section::SectionStorage;
pub use throttle::ThrottledStorage;

use crate::geometry::ByteRange;

/// The shape of requests that a storage serves without a bounce buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Offsets and lengths are multiples of this many bytes.
    pub offset: u64,
    /// Buffers start at multiples of this many bytes.
    pub memory: u64,
}

impl Alignment {
    /// Any offset, any length, any buffer.
    pub const NONE: Self = Self { offset: 1, memory: 1 };
}

/// How a range may come to read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zeroing {
    /// Its space stays allocated, so that later writes cannot run out of it; else it may be given back.
    pub keep_space: bool,
    /// Only if that is quicker than writing zeroes; else `io::ErrorKind::Unsupported`, and the range is as it was.
    pub fast: bool,
}

impl Zeroing {
    /// However it comes about.
    pub const ANY: Self = Self { keep_space: false, fast: false };
}

/// A place of fixed size that holds bytes. Safe to use from many threads; transfers are whole or an error.
///
/// Every method accepts every range inside the storage; ranges that fit `alignment` are served without a copy.
pub trait Storage: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// The alignment that avoids bounce buffers.
    fn alignment(&self) -> Alignment;

    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the range read as zeroes.
    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()>;

    /// Tells the storage that the contents of the range are not needed; what it reads as afterwards is its own affair.
    fn discard(&self, range: ByteRange) -> io::Result<()>;

    /// Makes everything that was written durable.
    fn sync(&self) -> io::Result<()>;

    /// Says that the range will be written next, as a whole. Direct writes to allocated space go side by side where those
    /// to holes would go one after the other; a storage without that difference does nothing. What follows the range may
    /// be allocated as well, until [`Storage::stays_zero`].
    fn will_write(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    /// Says that the range, zero from the beginning, will not be written: space that was allocated ahead for it is given
    /// back.
    fn stays_zero(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    /// The descriptors by which another process can stand in for this one, as [`FileStorage::descriptors`] gives them; none
    /// if it must be opened anew.
    fn handles(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Nothing is wanted of it any more: calls under way that wait for another machine end now, with an error. Never waits.
    fn interrupt(&self) {}

    /// Whether no I/O of a killed process is under way any more once the process is gone: nothing of it arrives later, here
    /// or in memory. Not so behind a network, where the kernel does not wait for a call whose caller is killed.
    fn ends_with_its_process(&self) -> bool {
        false
    }

    /// The first stretch at or after `from` that may hold data; everything before it reads as zeroes. `None`: only a
    /// hole follows. A storage that cannot tell answers with all that follows.
    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        Ok((from < self.size()).then(|| ByteRange { start: from, end: self.size() }))
    }
}

/// The range `length` bytes from `offset`, if a storage of `size` bytes has it.
///
/// # Errors
/// `InvalidInput` if it does not.
pub fn check_range(size: u64, offset: u64, length: u64) -> io::Result<ByteRange> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(ByteRange { start: offset, end }),
        _ => {
            let reason = format!("{length} bytes at offset {offset} are not inside the storage's {size} bytes");
            Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
        }
    }
}
