//! Reading the replies of an NBD server, and believing nothing: every length, offset and cookie is checked.
//!
//! Does no I/O of its own; the bytes come from a `Source`. What a request's reply may be, its `Answer` knows.

use std::collections::BTreeMap;
use std::mem;

use zerocopy::byteorder::big_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::cause::Cause;
use crate::nbd::protocol::{
    BlockDescriptor, ChunkError, ChunkHeader, MAX_STRING, OffsetHole, SIMPLE_REPLY_MAGIC, STATE_ZERO,
    STRUCTURED_REPLY_MAGIC, SimpleReply, chunk,
};

/// More extents in one block status than this are not read.
const MOST_DESCRIPTORS: u32 = 1 << 21;
/// More error chunks in one reply than this are a server gone mad.
const MOST_ERRORS: u32 = 1024;

/// Where the bytes come from.
pub trait Source {
    /// Fills the buffer.
    ///
    /// # Errors
    /// The connection is lost, or stood still for too long.
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Cause>;
}

/// Reads a structure of the protocol.
///
/// # Errors
/// Those of the source.
pub fn read<T: FromBytes + IntoBytes>(source: &mut dyn Source) -> Result<T, Cause> {
    let mut value = T::new_zeroed();
    source.fill(value.as_mut_bytes())?;
    Ok(value)
}

/// The beginning of a reply, or of one of its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// All there is but for the data of a read.
    Simple {
        /// Which request.
        cookie: u64,
        /// 0, or the error.
        error: u32,
    },
    /// A chunk.
    Chunk {
        /// Which request.
        cookie: u64,
        /// Whether it is the last one.
        done: bool,
        /// One of `protocol::chunk`.
        kind: u16,
        /// The length of what follows.
        length: u32,
    },
}

impl Header {
    /// Reads one. `structured`: chunks were agreed on.
    ///
    /// # Errors
    /// Those of the source; a breach if it is neither.
    pub fn read(source: &mut dyn Source, structured: bool) -> Result<Self, Cause> {
        let mut start = [0; SimpleReply::LENGTH];
        source.fill(&mut start)?;
        let simple = SimpleReply::read_from_bytes(&start).map_err(|_| Cause::breach("a reply is cut short"))?;
        match simple.magic.get() {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple { cookie: simple.cookie.get(), error: simple.error.get() }),
            STRUCTURED_REPLY_MAGIC if structured => {
                let mut whole = [0; ChunkHeader::LENGTH];
                whole[..start.len()].copy_from_slice(&start);
                source.fill(&mut whole[start.len()..])?;
                let chunk = ChunkHeader::read_from_bytes(&whole).map_err(|_| Cause::breach("a chunk is cut short"))?;
                Ok(Self::Chunk {
                    cookie: chunk.cookie.get(),
                    done: chunk.flags.get() & chunk::DONE != 0,
                    kind: chunk.kind.get(),
                    length: chunk.length.get(),
                })
            }
            magic => Err(Cause::breach(format!("a reply begins with {magic:#010x}"))),
        }
    }

    /// Which request it answers.
    pub fn cookie(&self) -> u64 {
        match *self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => cookie,
        }
    }
}

/// What a request is answered with.
#[derive(Debug)]
pub enum Wanted<'a> {
    /// Whether it worked.
    Outcome,
    /// Bytes that fill the buffer; those of the export from `offset` on.
    Data {
        /// Where they go.
        buf: &'a mut [u8],
        /// Where they come from.
        offset: u64,
    },
    /// The states of the export's next bytes, in the meta context of this id.
    Status {
        /// The id that the server gave.
        context: u32,
        /// Filled with lengths, and whether the bytes read as zeroes.
        found: &'a mut Vec<(u64, bool)>,
    },
}

/// One request's answer while it comes in.
#[derive(Debug)]
pub struct Answer<'a> {
    wanted: Wanted<'a>,
    structured: bool,
    /// The bytes that came so far: ends by beginnings, neighbours joined.
    covered: BTreeMap<u64, u64>,
    error: Option<Cause>,
    errors: u32,
}

impl<'a> Answer<'a> {
    /// Nothing has come yet. `structured`: chunks were agreed on.
    pub fn new(wanted: Wanted<'a>, structured: bool) -> Self {
        Self { wanted, structured, covered: BTreeMap::new(), error: None, errors: 0 }
    }

    /// Takes what follows a header. `true`: that was the last of it.
    ///
    /// # Errors
    /// Those of the source, and breaches; the connection is of no use afterwards.
    pub fn take(&mut self, header: &Header, source: &mut dyn Source) -> Result<bool, Cause> {
        match *header {
            Header::Simple { error, .. } => self.simple(error, source).map(|()| true),
            Header::Chunk { done, kind, length, .. } => {
                self.chunk(kind, length, done, source)?;
                if done && self.error.is_none() {
                    self.check_whole()?;
                }
                Ok(done)
            }
        }
    }

    /// What became of the request, when all has come.
    ///
    /// # Errors
    /// What the server answered.
    pub fn outcome(self) -> Result<(), Cause> {
        self.error.map_or(Ok(()), Err)
    }

    fn simple(&mut self, error: u32, source: &mut dyn Source) -> Result<(), Cause> {
        if !self.covered.is_empty() || self.errors > 0 {
            return Err(Cause::breach("a simple reply after chunks of the same request"));
        }
        if error != 0 {
            self.error = Some(Cause::answered(error, b""));
            return Ok(());
        }
        match &mut self.wanted {
            Wanted::Outcome => Ok(()),
            Wanted::Data { buf, .. } if !self.structured => source.fill(buf),
            _ => Err(Cause::breach("a simple reply where chunks were agreed on")),
        }
    }

    fn chunk(&mut self, kind: u16, length: u32, done: bool, source: &mut dyn Source) -> Result<(), Cause> {
        match kind {
            chunk::NONE if length == 0 && done => Ok(()),
            chunk::OFFSET_DATA => self.data(length, source),
            chunk::OFFSET_HOLE if length as usize == OffsetHole::LENGTH => {
                let hole: OffsetHole = read(source)?;
                self.place(hole.offset.get(), hole.length.get())?.fill(0);
                Ok(())
            }
            chunk::BLOCK_STATUS => self.status(length, source),
            _ if kind & chunk::ERROR_BIT != 0 => self.failed(kind, length, source),
            _ => Err(Cause::breach(format!("a chunk of type {kind} and {length} bytes"))),
        }
    }

    fn data(&mut self, length: u32, source: &mut dyn Source) -> Result<(), Cause> {
        let offset_bytes = mem::size_of::<U64>() as u32;
        let count =
            length.checked_sub(offset_bytes).ok_or_else(|| Cause::breach("a chunk of data without an offset"))?;
        let offset: U64 = read(source)?;
        source.fill(self.place(offset.get(), count)?)
    }

    /// The part of the buffer for a stretch of the export; each part is handed out once.
    fn place(&mut self, offset: u64, length: u32) -> Result<&mut [u8], Cause> {
        let Wanted::Data { buf, offset: first } = &mut self.wanted else {
            return Err(Cause::breach("data that nobody asked for"));
        };
        let start = offset.checked_sub(*first).filter(|start| *start <= buf.len() as u64);
        let end = start.and_then(|start| start.checked_add(length.into())).filter(|end| *end <= buf.len() as u64);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Cause::breach(format!("{length} bytes at offset {offset}, which are not those asked for")));
        };
        let before = self.covered.range(..end).next_back().map(|(&from, &to)| (from, to));
        if length == 0 || before.is_some_and(|(_, to)| to > start) {
            return Err(Cause::breach(format!("{length} bytes at offset {offset}: none, or some that came before")));
        }
        let from = before.filter(|(_, to)| *to == start).map_or(start, |(from, _)| from);
        let to = self.covered.remove(&end).unwrap_or(end);
        self.covered.insert(from, to);
        Ok(&mut buf[start as usize..end as usize])
    }

    fn status(&mut self, length: u32, source: &mut dyn Source) -> Result<(), Cause> {
        let Wanted::Status { context, found } = &mut self.wanted else {
            return Err(Cause::breach("a block status that nobody asked for"));
        };
        let (head, each) = (mem::size_of::<u32>() as u32, BlockDescriptor::LENGTH as u32);
        let count = length.checked_sub(head).filter(|rest| rest.is_multiple_of(each)).map(|rest| rest / each);
        let Some(count) = count.filter(|count| (1..=MOST_DESCRIPTORS).contains(count)) else {
            return Err(Cause::breach(format!("a block status of {length} bytes")));
        };
        let id: zerocopy::big_endian::U32 = read(source)?;
        if id.get() != *context || !found.is_empty() {
            return Err(Cause::breach("a block status of a context that nobody asked for, or a second one"));
        }
        for _ in 0..count {
            let extent: BlockDescriptor = read(source)?;
            if extent.length.get() == 0 {
                return Err(Cause::breach("a block status of no bytes"));
            }
            let (length, zero) = (u64::from(extent.length.get()), extent.status.get() & STATE_ZERO != 0);
            match found.last_mut() {
                Some((before, same)) if *same == zero => *before += length,
                _ => found.push((length, zero)),
            }
        }
        Ok(())
    }

    fn failed(&mut self, kind: u16, length: u32, source: &mut dyn Source) -> Result<(), Cause> {
        self.errors += 1;
        let tail = if kind == chunk::ERROR_OFFSET { mem::size_of::<U64>() } else { 0 };
        let shortest = ChunkError::LENGTH + tail;
        let length = length as usize;
        if length < shortest || length > shortest + MAX_STRING || self.errors > MOST_ERRORS {
            return Err(Cause::breach(format!("an error of {length} bytes, or one too many")));
        }
        let error: ChunkError = read(source)?;
        let mut rest = vec![0; length - ChunkError::LENGTH];
        source.fill(&mut rest)?;
        let message = usize::from(error.message_length.get());
        if message > rest.len() || error.error.get() == 0 {
            return Err(Cause::breach("an error that is none, or whose message is longer than itself"));
        }
        self.error.get_or_insert(Cause::answered(error.error.get(), &rest[..message]));
        Ok(())
    }

    /// A server that says it is done has sent all that was asked for.
    fn check_whole(&self) -> Result<(), Cause> {
        let whole = match &self.wanted {
            Wanted::Outcome => true,
            Wanted::Data { buf, .. } => self.covered.get(&0) == Some(&(buf.len() as u64)),
            Wanted::Status { found, .. } => !found.is_empty(),
        };
        if whole { Ok(()) } else { Err(Cause::breach("a reply that ends before all has come")) }
    }
}

#[cfg(test)]
mod tests;
