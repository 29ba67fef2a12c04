//! Bytes in memory. Fast, and gone with the process.

use std::io;

use super::{Alignment, Storage, Zeroing, check_range};
use crate::geometry::ByteRange;
use crate::sync::RwLock;

/// A storage of zeroed heap memory.
#[derive(Debug)]
pub struct MemoryStorage {
    bytes: RwLock<Vec<u8>>,
    size: u64,
}

impl MemoryStorage {
    /// `size` bytes of zeroes.
    ///
    /// # Panics
    /// If `size` does not fit in this machine's address space.
    pub fn new(size: u64) -> Self {
        let length = usize::try_from(size).expect("size fits in the address space");
        Self { bytes: RwLock::new(vec![0; length]), size }
    }

    /// A copy of all bytes as they are at one instant.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

impl Storage for MemoryStorage {
    fn size(&self) -> u64 {
        self.size
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size, offset, buf.len() as u64)?;
        buf.copy_from_slice(&self.bytes.read()[range.start as usize..range.end as usize]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size, offset, buf.len() as u64)?;
        self.bytes.write()[range.start as usize..range.end as usize].copy_from_slice(buf);
        Ok(())
    }

    fn zero(&self, range: ByteRange, _how: Zeroing) -> io::Result<()> {
        let range = check_range(self.size, range.start, range.len())?;
        self.bytes.write()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        check_range(self.size, range.start, range.len()).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
