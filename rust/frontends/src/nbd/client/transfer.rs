//! From ranges of any shape to the requests that a server takes: whole blocks, not more bytes than it allows at once.

use std::io;

use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Storage, Zeroing};

use super::answer::Wanted;
use super::connection::Call;
use super::{MOST_STATUS, MOST_WITHOUT_DATA, NbdStorage};
use crate::nbd::protocol::{command, flag, transmission};

/// The most zeroes that are written as data at once.
const ZEROES: u64 = 1 << 20;

/// The range in pieces of at most `most` bytes, which is a multiple of what the range's ends are.
pub(super) fn pieces(range: ByteRange, most: u64) -> impl Iterator<Item = ByteRange> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let piece = ByteRange { start, end: range.end.min(start + most) };
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

impl NbdStorage {
    pub(super) fn read_range(&self, buf: &mut [u8], range: ByteRange) -> io::Result<()> {
        let whole = range.grow_to(self.minimum());
        if whole == range {
            return self.read_blocks(buf, range);
        }
        let most = self.agreed.maximum.into();
        let mut bounce = vec![0; whole.len().min(most) as usize];
        for piece in pieces(whole, most) {
            let blocks = &mut bounce[..piece.len() as usize];
            self.read_blocks(blocks, piece)?;
            let wanted = ByteRange { start: piece.start.max(range.start), end: piece.end.min(range.end) };
            let target = (wanted.start - range.start) as usize..(wanted.end - range.start) as usize;
            buf[target].copy_from_slice(&blocks[(wanted.start - piece.start) as usize..][..wanted.len() as usize]);
        }
        Ok(())
    }

    fn read_blocks(&self, buf: &mut [u8], range: ByteRange) -> io::Result<()> {
        let most = u64::from(self.agreed.maximum);
        for (piece, buf) in pieces(range, most).zip(buf.chunks_mut(most as usize)) {
            let (offset, length) = (piece.start, piece.len() as u32);
            let call = Call { command: command::READ, flags: 0, offset, length, payload: b"", patience: self.patience };
            self.call(call, Wanted::Data { buf, offset })?;
        }
        Ok(())
    }

    pub(super) fn write_range(&self, buf: &[u8], range: ByteRange) -> io::Result<()> {
        let (head, inner, tail) = split(range, self.minimum());
        let (first, rest) = buf.split_at(head.len() as usize);
        let (middle, last) = rest.split_at(inner.len() as usize);
        self.write_part(first, head)?;
        if !inner.is_empty() {
            let _shared = self.blocks.read();
            self.write_blocks(middle, inner)?;
        }
        self.write_part(last, tail)
    }

    fn write_blocks(&self, buf: &[u8], range: ByteRange) -> io::Result<()> {
        let most = u64::from(self.agreed.maximum);
        for (piece, payload) in pieces(range, most).zip(buf.chunks(most as usize)) {
            let (offset, length) = (piece.start, piece.len() as u32);
            let (flags, patience) = (self.fua(), self.patience);
            self.call(Call { command: command::WRITE, flags, offset, length, payload, patience }, Wanted::Outcome)?;
        }
        Ok(())
    }

    /// Writes less than a block: reads it, and writes it back with these bytes changed.
    fn write_part(&self, bytes: &[u8], range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let whole = range.grow_to(self.minimum());
        let mut block = vec![0; whole.len() as usize];
        let _alone = self.blocks.write();
        self.read_blocks(&mut block, whole)?;
        block[(range.start - whole.start) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.write_blocks(&block, whole)
    }

    pub(super) fn zero_range(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let (head, inner, tail) = split(range, self.minimum());
        if !inner.is_empty() && !self.zero_blocks(inner, how)? {
            return if how.fast { Err(io::ErrorKind::Unsupported.into()) } else { self.write_zeroes(range) };
        }
        self.write_zeroes(head)?;
        self.write_zeroes(tail)
    }

    /// Whether the server could do it, or could do it fast if that was asked for. `false` leaves the range as it was.
    fn zero_blocks(&self, range: ByteRange, how: Zeroing) -> io::Result<bool> {
        let needed = if how.fast { transmission::SEND_FAST_ZERO } else { transmission::SEND_WRITE_ZEROES };
        if !self.can(transmission::SEND_WRITE_ZEROES) || !self.can(needed) {
            return Ok(false);
        }
        let _shared = self.blocks.read();
        for piece in pieces(range, MOST_WITHOUT_DATA) {
            // Half of it zero and half refused would be neither: only the first piece may be refused for want of speed.
            let first = piece.start == range.start;
            let flags = self.fua()
                | if how.keep_space { flag::NO_HOLE } else { 0 }
                | if how.fast && first { flag::FAST_ZERO } else { 0 };
            match self.plain(command::WRITE_ZEROES, flags, piece) {
                Err(error) if first && error.kind() == io::ErrorKind::Unsupported => return Ok(false),
                result => result?,
            }
        }
        Ok(true)
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let zeroes = vec![0; range.len().min(ZEROES) as usize];
        pieces(range, ZEROES).try_for_each(|piece| self.write_range(&zeroes[..piece.len() as usize], piece))
    }

    pub(super) fn find_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        let size = self.size();
        let all = (from < size).then_some(ByteRange { start: from, end: size });
        let Some(context) = self.agreed.allocation else { return Ok(all) };
        let mut at = from;
        while at < size {
            let start = at - at % self.minimum();
            let asked = ByteRange { start, end: size.min(start.saturating_add(MOST_STATUS)) };
            let mut found = Vec::new();
            let (offset, length) = (asked.start, asked.len() as u32);
            let (command, patience) = (command::BLOCK_STATUS, self.patience);
            let call = Call { command, flags: 0, offset, length, payload: b"", patience };
            match self.call(call, Wanted::Status { context, found: &mut found }) {
                Ok(()) => {}
                // A server that is not sure is believed to have data everywhere.
                Err(_) if self.first_failure.get().is_none() => return Ok(Some(ByteRange { start: at, end: size })),
                Err(error) => return Err(error),
            }
            let mut end = asked.start;
            for (length, zero) in found {
                let stretch = ByteRange { start: end.max(at), end: end.saturating_add(length).min(size) };
                end = stretch.end;
                if !zero && !stretch.is_empty() {
                    return Ok(Some(stretch));
                }
            }
            if end <= at {
                return Ok(Some(ByteRange { start: at, end: size }));
            }
            at = end;
        }
        Ok(None)
    }
}

/// The range's part of a first block, its whole blocks, and its part of a last block.
fn split(range: ByteRange, block: u64) -> (ByteRange, ByteRange, ByteRange) {
    let inner = range.shrink_to(block);
    if !inner.is_empty() {
        let head = ByteRange { start: range.start, end: inner.start };
        return (head, inner, ByteRange { start: inner.end, end: range.end });
    }
    // It has no whole block, and reaches into two at most.
    let border = (range.start - range.start % block).saturating_add(block).min(range.end);
    let nothing = ByteRange { start: border, end: border };
    (ByteRange { start: range.start, end: border }, nothing, ByteRange { start: border, end: range.end })
}
