//! Negotiation, from the greeting to the export that a client chooses. Over any stream, so that it runs without a socket.
//!
//! Bounded in bytes and in the number of options; the time is the stream's affair.

use std::io::{self, Read, Write};
use std::sync::Arc;

use zerocopy::big_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use super::export::Export;
use super::option::{Contexts, Wanted};
use crate::nbd::protocol::{
    BASE_ALLOCATION, DEFAULT_MAX_PAYLOAD, EXPORT_NAME_ZEROES, ExportNameReply, Greeting, InfoBlockSize, InfoExport,
    MAX_STRING, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReply, handshake, info, option, reply,
};

/// Options of one client; libraries need about ten.
const MAX_OPTIONS: usize = 128;
/// The most data of an option that is looked at; two strings and what surrounds them would do.
const MAX_OPTION_DATA: u32 = 64 << 10;
/// More data than this is not even skipped.
const MAX_SKIPPED: u32 = 1 << 20;
/// The smallest request. The engine takes every byte range, so the answer is the least the protocol has.
pub(super) const MINIMUM_BLOCK: u32 = 1;
const PREFERRED_BLOCK: u32 = 4096;
/// The context id of `base:allocation`.
pub(super) const ALLOCATION_ID: u32 = 1;

/// What a client and the server agreed on.
pub(super) struct Agreed {
    pub export: Arc<Export>,
    /// Structured replies.
    pub structured: bool,
    /// The context `base:allocation` was set for this export.
    pub allocation: bool,
}

/// Greets a client and answers its options. `None`: it wants nothing more.
///
/// # Errors
/// The stream's own; `InvalidData` for what cannot be answered and ends the connection.
pub(super) fn negotiate(stream: &mut (impl Read + Write), exports: &[Arc<Export>]) -> io::Result<Option<Agreed>> {
    let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    let greeting = Greeting { magic: NBD_MAGIC.into(), option_magic: OPTION_MAGIC.into(), flags: flags.into() };
    stream.write_all(greeting.as_bytes())?;
    let answered: U32 = receive(stream)?;
    if answered.get() & !u32::from(flags) != 0 {
        return Err(violation("the client answers with unknown handshake flags"));
    }
    let said = answered.get() as u16;
    let mut talk = Talk {
        stream,
        exports,
        fixed: said & handshake::FIXED_NEWSTYLE != 0,
        zeroes: said & handshake::NO_ZEROES == 0,
        structured: false,
        allocation_of: None,
    };
    for _ in 0..MAX_OPTIONS {
        match talk.option()? {
            Next::Option => {}
            Next::Transmission(agreed) => return Ok(Some(agreed)),
            Next::Goodbye => return Ok(None),
        }
    }
    Err(violation("the client sends options without end"))
}

/// What comes after an option.
enum Next {
    Option,
    Transmission(Agreed),
    Goodbye,
}

struct Talk<'a, S> {
    stream: &'a mut S,
    exports: &'a [Arc<Export>],
    fixed: bool,
    zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was set.
    allocation_of: Option<Arc<Export>>,
}

impl<S: Read + Write> Talk<'_, S> {
    fn option(&mut self) -> io::Result<Next> {
        let header: OptionHeader = receive(self.stream)?;
        if header.magic.get() != OPTION_MAGIC {
            return Err(violation("an option does not begin with IHAVEOPT"));
        }
        let (option, length) = (header.option.get(), header.length.get());
        if option == option::EXPORT_NAME {
            return self.export_name(length);
        }
        if !self.fixed {
            return Err(violation("a client that is not fixed newstyle may only name an export"));
        }
        if length > MAX_OPTION_DATA {
            return self.skip(option, length);
        }
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        self.answer(option, &data)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> io::Result<Next> {
        match option {
            option::ABORT => {
                // A client that aborts may be gone already.
                let _ = self.reply(option, reply::ACK, &[]);
                return Ok(Next::Goodbye);
            }
            option::GO => return self.go(data),
            option::INFO => self.info(option, data).map(drop)?,
            option::LIST if data.is_empty() => self.list()?,
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, reply::ACK, &[])?;
            }
            option::STARTTLS if data.is_empty() => {
                self.refuse(option, reply::ERR_POLICY, "this server does not speak TLS")?;
            }
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS => {
                self.refuse(option, reply::ERR_INVALID, "this option has no data")?;
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data)?,
            _ => self.refuse(option, reply::ERR_UNSUP, "this option is not known here")?,
        }
        Ok(Next::Option)
    }

    /// The old way to choose an export; it has no reply for an error, so the connection ends.
    fn export_name(&mut self, length: u32) -> io::Result<Next> {
        if length as usize > MAX_STRING {
            return Err(violation("the name of an export is longer than the protocol allows"));
        }
        let mut name = vec![0; length as usize];
        self.stream.read_exact(&mut name)?;
        let found = std::str::from_utf8(&name).ok().and_then(|name| self.find(name));
        let Some(export) = found else { return Err(violation("there is no export of that name")) };
        let fields = ExportNameReply { size: export.driver.size().into(), flags: export.flags(self.structured).into() };
        let mut answer = fields.as_bytes().to_vec();
        if self.zeroes {
            answer.resize(answer.len() + EXPORT_NAME_ZEROES, 0);
        }
        self.stream.write_all(&answer)?;
        Ok(self.agree(export))
    }

    fn go(&mut self, data: &[u8]) -> io::Result<Next> {
        Ok(match self.info(option::GO, data)? {
            Some(export) => self.agree(export),
            None => Next::Option,
        })
    }

    /// Describes an export; `None` if the option was refused.
    fn info(&mut self, option: u32, data: &[u8]) -> io::Result<Option<Arc<Export>>> {
        let Some(wanted) = Wanted::read(data) else {
            self.refuse(option, reply::ERR_INVALID, "the option's data are malformed")?;
            return Ok(None);
        };
        let Some(export) = self.find(wanted.name) else {
            self.refuse(option, reply::ERR_UNKNOWN, "there is no export of that name")?;
            return Ok(None);
        };
        let about = InfoExport {
            info: info::EXPORT.into(),
            size: export.driver.size().into(),
            flags: export.flags(self.structured).into(),
        };
        let sizes = InfoBlockSize {
            info: info::BLOCK_SIZE.into(),
            minimum: MINIMUM_BLOCK.into(),
            preferred: PREFERRED_BLOCK.into(),
            maximum: DEFAULT_MAX_PAYLOAD.into(),
        };
        let mut answer = Vec::new();
        push(&mut answer, option, reply::INFO, &[about.as_bytes()]);
        push(&mut answer, option, reply::INFO, &[sizes.as_bytes()]);
        if wanted.infos.contains(&info::NAME) {
            push(&mut answer, option, reply::INFO, &[&info::NAME.to_be_bytes(), export.name.as_bytes()]);
        }
        push(&mut answer, option, reply::ACK, &[]);
        self.stream.write_all(&answer)?;
        Ok(Some(export))
    }

    fn list(&mut self) -> io::Result<()> {
        let mut answer = Vec::new();
        for export in self.exports {
            let length = U32::from(export.name.len() as u32);
            push(&mut answer, option::LIST, reply::SERVER, &[length.as_bytes(), export.name.as_bytes()]);
        }
        push(&mut answer, option::LIST, reply::ACK, &[]);
        self.stream.write_all(&answer)
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            // Whatever comes of this one, what was set before is set no more.
            self.allocation_of = None;
        }
        if !self.structured {
            return self.refuse(option, reply::ERR_INVALID, "negotiate structured replies first");
        }
        let Some(asked) = Contexts::read(data) else {
            return self.refuse(option, reply::ERR_INVALID, "the option's data are malformed");
        };
        let Some(export) = self.find(asked.name) else {
            return self.refuse(option, reply::ERR_UNKNOWN, "there is no export of that name");
        };
        let named = asked.queries.contains(&BASE_ALLOCATION);
        let listed = !sets && (asked.queries.is_empty() || asked.queries.contains(&"base:"));
        let mut answer = Vec::new();
        if named || listed {
            let id = U32::from(if sets { ALLOCATION_ID } else { 0 });
            push(&mut answer, option, reply::META_CONTEXT, &[id.as_bytes(), BASE_ALLOCATION.as_bytes()]);
        }
        if named && sets {
            self.allocation_of = Some(export);
        }
        push(&mut answer, option, reply::ACK, &[]);
        self.stream.write_all(&answer)
    }

    fn find(&self, name: &str) -> Option<Arc<Export>> {
        let by_name = self.exports.iter().find(|export| export.name == name);
        by_name.or_else(|| self.exports.first().filter(|_| name.is_empty())).cloned()
    }

    fn agree(&self, export: Arc<Export>) -> Next {
        let allocation = self.allocation_of.as_ref().is_some_and(|other| Arc::ptr_eq(other, &export));
        Next::Transmission(Agreed { export, structured: self.structured, allocation })
    }

    /// An option whose data are too long: they are skipped, unless that would take too long as well.
    fn skip(&mut self, option: u32, length: u32) -> io::Result<Next> {
        self.refuse(option, reply::ERR_TOO_BIG, "the option's data are too long")?;
        if length > MAX_SKIPPED {
            return Err(violation("the data of an option are too long to be skipped"));
        }
        let skipped = io::copy(&mut self.stream.take(u64::from(length)), &mut io::sink())?;
        if skipped < u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Next::Option)
    }

    fn refuse(&mut self, option: u32, error: u32, message: &str) -> io::Result<()> {
        self.reply(option, error, message.as_bytes())
    }

    fn reply(&mut self, option: u32, reply: u32, data: &[u8]) -> io::Result<()> {
        let mut answer = Vec::new();
        push(&mut answer, option, reply, &[data]);
        self.stream.write_all(&answer)
    }
}

fn push(answer: &mut Vec<u8>, option: u32, reply: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    let header = OptionReply {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        reply: reply.into(),
        length: (length as u32).into(),
    };
    answer.extend_from_slice(header.as_bytes());
    data.iter().for_each(|part| answer.extend_from_slice(part));
}

fn receive<T: FromZeros + zerocopy::FromBytes + IntoBytes>(stream: &mut impl Read) -> io::Result<T> {
    let mut value = T::new_zeroed();
    stream.read_exact(value.as_mut_bytes())?;
    Ok(value)
}

/// What ends a connection.
fn violation(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
