//! Memory of one connection that is used again and again, aligned for direct I/O. The budget limits how much is in use;
//! this limits how much is kept.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use blockcow_engine::buffer::AlignedBuf;
use parking_lot::Mutex;

/// Most requests fit.
const SMALL: usize = 128 << 10;
const SMALL_KEPT: usize = 64;
const LARGE_KEPT: usize = 16 << 20;

/// Aligned memory. Its bytes are left over from another request of the same connection.
pub(super) struct Buffer(AlignedBuf);

/// Buffers that nobody uses now.
#[derive(Default)]
pub(super) struct Buffers {
    small: Mutex<Vec<Buffer>>,
    large: Mutex<VecDeque<Buffer>>,
}

impl Buffers {
    /// At least `length` bytes.
    pub(super) fn take(&self, length: usize) -> Buffer {
        if length <= SMALL {
            let kept = self.small.lock().pop();
            return kept.unwrap_or_else(|| Buffer(AlignedBuf::new(SMALL)));
        }
        let mut large = self.large.lock();
        let fits = large.iter().position(|buffer| buffer.len() >= length);
        let kept = fits.and_then(|index| large.remove(index));
        drop(large);
        kept.unwrap_or_else(|| Buffer(AlignedBuf::new(length.next_power_of_two())))
    }

    pub(super) fn put(&self, buffer: Buffer) {
        if buffer.len() == SMALL {
            let mut small = self.small.lock();
            if small.len() < SMALL_KEPT {
                small.push(buffer);
            }
            return;
        }
        let mut large = self.large.lock();
        large.push_back(buffer);
        // The oldest go first, so that sizes which nobody asks for any more do not stay.
        while large.iter().map(|buffer| buffer.len()).sum::<usize>() > LARGE_KEPT {
            large.pop_front();
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
