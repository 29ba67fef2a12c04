//! A window on another storage: a run of its bytes that counts from 0. Keeps nobody else out of those bytes.

use std::io;

use super::{Alignment, Storage, Zeroing, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::sync::Arc;

/// A section of another storage.
pub struct SectionStorage {
    inner: Arc<dyn Storage>,
    range: ByteRange,
}

impl SectionStorage {
    /// The bytes `range` of `inner`.
    ///
    /// # Errors
    /// `Invalid` if the range does not lie inside `inner`.
    pub fn new(inner: Arc<dyn Storage>, range: ByteRange) -> Result<Self> {
        if range.start > range.end || range.end > inner.size() {
            let reason = format!("{}..{} is not inside its {} bytes", range.start, range.end, inner.size());
            return Err(Error::new(ErrorKind::Invalid, "take a section of the device", reason));
        }
        Ok(Self { inner, range })
    }

    fn translate(&self, range: ByteRange) -> io::Result<ByteRange> {
        let range = check_range(self.size(), range.start, range.len())?;
        Ok(ByteRange { start: range.start + self.range.start, end: range.end + self.range.start })
    }
}

impl Storage for SectionStorage {
    fn size(&self) -> u64 {
        self.range.len()
    }

    fn alignment(&self) -> Alignment {
        let alignment = self.inner.alignment();
        // A window that starts between the units has no aligned offset of its own: every request bounces.
        let fits = self.range.start.is_multiple_of(alignment.offset);
        if fits { alignment } else { Alignment::NONE }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size(), offset, buf.len() as u64)?;
        self.inner.read_at(buf, range.start + self.range.start)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size(), offset, buf.len() as u64)?;
        self.inner.write_at(buf, range.start + self.range.start)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.inner.zero(self.translate(range)?, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.inner.discard(self.translate(range)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        if from >= self.size() {
            return Ok(None);
        }
        let Some(found) = self.inner.next_data(from + self.range.start)? else { return Ok(None) };
        let data =
            ByteRange { start: found.start - self.range.start, end: found.end.min(self.range.end) - self.range.start };
        Ok((data.start < self.size()).then_some(data))
    }
}
