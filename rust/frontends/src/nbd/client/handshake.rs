//! The client's half of the negotiation: fixed newstyle, `GO`, structured replies and `base:allocation` where offered.
//!
//! Nothing is assumed of the server; what it offers stands in `Agreed`, and what makes it useless is a `Cause`.

use rustix::io::Errno;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::answer::{Source, read};
use super::cause::{Cause, printable};
use crate::nbd::protocol::{
    BASE_ALLOCATION, DEFAULT_MAX_PAYLOAD, InfoBlockSize, InfoExport, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    OptionHeader, OptionReply, handshake, info, option, reply, transmission,
};

/// No reply to an option is longer.
const LONGEST_REPLY: u32 = 64 << 10;
/// No option has more replies.
const MOST_REPLIES: usize = 1000;
/// The largest minimum block that the protocol allows.
const LARGEST_MINIMUM: u32 = 64 << 10;
/// What a server of before 2012 says instead of `IHAVEOPT`.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// Bytes both ways.
pub trait Wire: Source {
    /// Sends all bytes.
    ///
    /// # Errors
    /// The connection is lost, or time is up.
    fn say(&mut self, bytes: &[u8]) -> Result<(), Cause>;
}

/// What was negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Bytes of the export.
    pub size: u64,
    /// Of `protocol::transmission`.
    pub flags: u16,
    /// Whether replies may come in chunks.
    pub structured: bool,
    /// The id of the context `base:allocation`, if the server has it.
    pub allocation: Option<u32>,
    /// Requests start and end at multiples of this many bytes.
    pub minimum: u32,
    /// The most data of a request.
    pub maximum: u32,
    /// The name that the server itself gives the export.
    pub name: Option<String>,
}

impl Agreed {
    /// Whether the export can do that.
    pub fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Negotiates the use of an export.
///
/// # Errors
/// The reason why that cannot be; `ENOENT` if there is no such export.
pub fn negotiate(wire: &mut dyn Wire, export: &str) -> Result<Agreed, Cause> {
    greet(wire)?;
    let structured = ask_structured(wire)?;
    let allocation = if structured { ask_allocation(wire, export)? } else { None };
    let mut agreed =
        Agreed { size: 0, flags: 0, structured, allocation, minimum: 1, maximum: DEFAULT_MAX_PAYLOAD, name: None };
    go(wire, export, &mut agreed)?;
    Ok(agreed)
}

fn greet(wire: &mut dyn Wire) -> Result<(), Cause> {
    let magic: U64 = read(wire)?;
    if magic.get() != NBD_MAGIC {
        return Err(Cause::new(Errno::PROTO, "what listens there is no NBD server"));
    }
    let second: U64 = read(wire)?;
    let too_old =
        || Cause::new(Errno::PROTO, "it speaks an NBD of before 2012 (no fixed newstyle); use a newer server");
    match second.get() {
        OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => return Err(too_old()),
        _ => return Err(Cause::new(Errno::PROTO, "what listens there is no NBD server")),
    }
    let flags: U16 = read(wire)?;
    if flags.get() & handshake::FIXED_NEWSTYLE == 0 {
        return Err(too_old());
    }
    let mine = flags.get() & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    wire.say(U32::new(mine.into()).as_bytes())
}

fn send_option(wire: &mut dyn Wire, option: u32, data: &[u8]) -> Result<(), Cause> {
    let header =
        OptionHeader { magic: U64::new(OPTION_MAGIC), option: U32::new(option), length: U32::new(data.len() as u32) };
    wire.say(&[header.as_bytes(), data].concat())
}

/// The type and the data of one reply to an option.
fn read_reply(wire: &mut dyn Wire, option: u32) -> Result<(u32, Vec<u8>), Cause> {
    let header: OptionReply = read(wire)?;
    if header.magic.get() != OPTION_REPLY_MAGIC || header.option.get() != option || header.length.get() > LONGEST_REPLY
    {
        return Err(Cause::breach(format!("no reply to the option {option}, but something else")));
    }
    let mut data = vec![0; header.length.get() as usize];
    wire.fill(&mut data)?;
    Ok((header.reply.get(), data))
}

/// Reads replies up to the `ACK`, or to an error, which is the result's second half.
fn replies(
    wire: &mut dyn Wire,
    option: u32,
    mut each: impl FnMut(u32, &[u8]) -> Result<(), Cause>,
) -> Result<Option<(u32, Vec<u8>)>, Cause> {
    for _ in 0..MOST_REPLIES {
        match read_reply(wire, option)? {
            (reply::ACK, _) => return Ok(None),
            (error, message) if error & reply::ERROR != 0 => return Ok(Some((error, message))),
            (kind, data) => each(kind, &data)?,
        }
    }
    Err(Cause::breach("replies without end"))
}

fn ask_structured(wire: &mut dyn Wire) -> Result<bool, Cause> {
    send_option(wire, option::STRUCTURED_REPLY, b"")?;
    let unexpected = |_, _: &[u8]| Err(Cause::breach("a reply to STRUCTURED_REPLY that is neither yes nor no"));
    Ok(replies(wire, option::STRUCTURED_REPLY, unexpected)?.is_none())
}

fn ask_allocation(wire: &mut dyn Wire, export: &str) -> Result<Option<u32>, Cause> {
    let mut data = text(export);
    data.extend_from_slice(U32::new(1).as_bytes());
    data.extend(text(BASE_ALLOCATION));
    send_option(wire, option::SET_META_CONTEXT, &data)?;
    let mut id = None;
    let refused = replies(wire, option::SET_META_CONTEXT, |kind, data| {
        if kind != reply::META_CONTEXT {
            return Err(Cause::breach("a reply to SET_META_CONTEXT that is no context"));
        }
        let (number, name) = U32::read_from_prefix(data).map_err(|_| Cause::breach("a context without an id"))?;
        if name == BASE_ALLOCATION.as_bytes() {
            id = Some(number.get());
        }
        Ok(())
    })?;
    // Without it the export is read in full; if the export is what it objects to, GO will say so.
    Ok(if refused.is_some() { None } else { id })
}

/// A string with its length before it.
fn text(string: &str) -> Vec<u8> {
    [U32::new(string.len() as u32).as_bytes(), string.as_bytes()].concat()
}

fn go(wire: &mut dyn Wire, export: &str, agreed: &mut Agreed) -> Result<(), Cause> {
    let mut data = text(export);
    for number in [2, info::NAME, info::BLOCK_SIZE] {
        data.extend_from_slice(U16::new(number).as_bytes());
    }
    send_option(wire, option::GO, &data)?;
    let mut told = false;
    let refused = replies(wire, option::GO, |kind, data| {
        if kind != reply::INFO {
            return Err(Cause::breach("a reply to GO that is no information"));
        }
        told |= learn(data, agreed)?;
        Ok(())
    })?;
    match refused {
        Some((error, message)) => Err(refusal(error, &message, export)),
        None if !told => Err(Cause::breach("it does not say how large the export is")),
        None => check(agreed),
    }
}

/// Notes one piece of information. `true`: it was the one that there must be.
fn learn(data: &[u8], agreed: &mut Agreed) -> Result<bool, Cause> {
    let short = || Cause::breach("information of a wrong length");
    let (kind, rest) = U16::read_from_prefix(data).map_err(|_| short())?;
    match kind.get() {
        info::EXPORT => {
            let export = InfoExport::read_from_bytes(data).map_err(|_| short())?;
            (agreed.size, agreed.flags) = (export.size.get(), export.flags.get());
            Ok(true)
        }
        info::BLOCK_SIZE => {
            let blocks = InfoBlockSize::read_from_bytes(data).map_err(|_| short())?;
            (agreed.minimum, agreed.maximum) = (blocks.minimum.get(), blocks.maximum.get());
            Ok(false)
        }
        info::NAME => {
            agreed.name = Some(printable(rest));
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Makes what the server said fit for use.
fn check(agreed: &mut Agreed) -> Result<(), Cause> {
    let Agreed { size, flags, minimum, maximum, .. } = *agreed;
    if size > i64::MAX as u64 || flags & transmission::HAS_FLAGS == 0 {
        return Err(Cause::breach(format!("an export of {size} bytes and flags {flags:#x}")));
    }
    if !minimum.is_power_of_two() || minimum > LARGEST_MINIMUM || maximum < minimum {
        return Err(Cause::breach(format!("blocks of {minimum} to {maximum} bytes")));
    }
    agreed.maximum = maximum.min(DEFAULT_MAX_PAYLOAD) / minimum * minimum;
    // Bytes behind the last whole block cannot be reached.
    agreed.size = size / u64::from(minimum) * u64::from(minimum);
    Ok(())
}

fn refusal(error: u32, message: &[u8], export: &str) -> Cause {
    let (number, why) = match error {
        reply::ERR_UNKNOWN => (Errno::NOENT, format!("it has no export {export:?}; nbdinfo --list shows what it has")),
        reply::ERR_TLS_REQD => (Errno::ACCESS, "it wants encryption (TLS), which this version cannot do".into()),
        reply::ERR_POLICY => (Errno::ACCESS, format!("it does not allow the use of the export {export:?}")),
        reply::ERR_UNSUP => (Errno::PROTO, "it does not know the option GO; use a newer server".into()),
        reply::ERR_SHUTDOWN => (Errno::SHUTDOWN, "it is about to end".into()),
        _ => (Errno::PROTO, format!("it refuses the export {export:?} with error {:#x}", error & !reply::ERROR)),
    };
    let said = printable(message);
    Cause::new(number, if said.is_empty() { why } else { format!("{why} ({said})") })
}
