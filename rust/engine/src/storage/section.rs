//! Sections of another storage, one behind the other: counts from 0 over all of them. Keeps nobody else out of those
//! bytes.

use std::io;

use super::{Alignment, Storage, Zeroing, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::sync::Arc;

/// One or more sections of another storage, as one storage.
pub struct SectionStorage {
    inner: Arc<dyn Storage>,
    sections: Vec<Section>,
    size: u64,
}

#[derive(Clone, Copy)]
struct Section {
    /// Where it begins in this storage.
    at: u64,
    /// Its bytes in the inner one.
    range: ByteRange,
}

impl Section {
    fn end(&self) -> u64 {
        self.at + self.range.len()
    }
}

impl SectionStorage {
    /// The bytes of `ranges` in `inner`, in that order.
    ///
    /// # Errors
    /// `Invalid` if there is none, or one does not lie inside `inner`.
    pub fn new(inner: Arc<dyn Storage>, ranges: &[ByteRange]) -> Result<Self> {
        let invalid = |reason: String| Err(Error::new(ErrorKind::Invalid, "take sections of the device", reason));
        let mut sections = Vec::with_capacity(ranges.len());
        let mut size = 0;
        for &range in ranges {
            if range.start > range.end || range.end > inner.size() {
                return invalid(format!("{}..{} is not inside its {} bytes", range.start, range.end, inner.size()));
            }
            sections.push(Section { at: size, range });
            size += range.len();
        }
        if sections.is_empty() {
            return invalid("there is no section".into());
        }
        Ok(Self { inner, sections, size })
    }

    /// The pieces of the inner storage that a range of this one consists of, each with its offset in the range.
    fn pieces(&self, offset: u64, length: u64) -> io::Result<impl Iterator<Item = (usize, ByteRange)> + '_> {
        let wanted = check_range(self.size, offset, length)?;
        let first = self.sections.partition_point(|section| section.end() <= wanted.start);
        let reached = self.sections[first..].iter().take_while(move |section| section.at < wanted.end);
        Ok(reached.filter(|section| !section.range.is_empty()).map(move |section| {
            let (start, end) = (wanted.start.max(section.at), wanted.end.min(section.end()));
            let inner = section.range.start + (start - section.at);
            ((start - wanted.start) as usize, ByteRange { start: inner, end: inner + (end - start) })
        }))
    }
}

impl Storage for SectionStorage {
    fn size(&self) -> u64 {
        self.size
    }

    fn alignment(&self) -> Alignment {
        let alignment = self.inner.alignment();
        // A section that starts between the units has no aligned offset of its own, and one that ends between them
        // spoils those of its successor: every request bounces.
        let fits = self.sections.iter().all(|section| {
            section.at.is_multiple_of(alignment.offset) && section.range.start.is_multiple_of(alignment.offset)
        });
        if fits { alignment } else { Alignment::NONE }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        for (at, piece) in self.pieces(offset, buf.len() as u64)? {
            self.inner.read_at(&mut buf[at..][..piece.len() as usize], piece.start)?;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        for (at, piece) in self.pieces(offset, buf.len() as u64)? {
            self.inner.write_at(&buf[at..][..piece.len() as usize], piece.start)?;
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.pieces(range.start, range.len())?.try_for_each(|(_, piece)| self.inner.zero(piece, how))
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.pieces(range.start, range.len())?.try_for_each(|(_, piece)| self.inner.discard(piece))
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        if from >= self.size {
            return Ok(None);
        }
        for (at, piece) in self.pieces(from, self.size - from)? {
            let Some(found) = self.inner.next_data(piece.start)?.filter(|found| found.start < piece.end) else {
                continue;
            };
            let start = from + at as u64 + (found.start - piece.start);
            return Ok(Some(ByteRange { start, end: start + found.end.min(piece.end) - found.start }));
        }
        Ok(None)
    }
}
