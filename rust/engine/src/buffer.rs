//! Memory that direct I/O accepts: zeroed buffers that start at a multiple of a given alignment.
//!
//! Says nothing about how many of them may exist; whoever needs a bound keeps it.

use std::ops::{Deref, DerefMut};

/// A zeroed buffer on the heap whose first byte lies at a multiple of its alignment. Its length never changes.
#[derive(Debug)]
pub struct AlignedBuf {
    // Never grown, so its allocation, and with it `start`, stays where it is.
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuf {
    /// `length` bytes that start on a page.
    pub fn new(length: usize) -> Self {
        Self::with_alignment(length, rustix::param::page_size())
    }

    /// `length` bytes that start at a multiple of `alignment` bytes, a power of two.
    ///
    /// # Panics
    /// If `alignment` is no power of two.
    pub fn with_alignment(length: usize, alignment: usize) -> Self {
        assert!(alignment.is_power_of_two(), "alignment {alignment} is no power of two");
        let bytes = vec![0; length + alignment - 1];
        let address = bytes.as_ptr().addr();
        Self { start: address.next_multiple_of(alignment) - address, bytes, length }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_where_it_must_and_is_zeroed() {
        for alignment in [1, 8, 512, 4096, 1 << 16] {
            for length in [0, 1, 511, 4096, 1 << 20] {
                let buf = AlignedBuf::with_alignment(length, alignment);
                assert_eq!(buf.len(), length);
                assert_eq!(buf.as_ptr().addr() % alignment, 0);
                assert!(buf.iter().all(|&byte| byte == 0));
            }
        }
        assert_eq!(AlignedBuf::new(10).as_ptr().addr() % rustix::param::page_size(), 0);
    }
}
