//! Requests: what one asks for, and whether it may. Pure: decides, and does nothing.

use zerocopy::FromBytes;

use super::negotiation::Agreed;
use super::pace::Kind;
use crate::nbd::protocol::{self, DEFAULT_MAX_PAYLOAD, REQUEST_MAGIC, command, errno, flag};

/// More data than this are not even skipped: the connection ends.
const MAX_SKIPPED: u32 = 2 * DEFAULT_MAX_PAYLOAD;

/// A request, without the data of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub cookie: u64,
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub length: u32,
}

/// Why a request is not done: the protocol's error, and words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub error: u32,
    pub reason: String,
}

impl Request {
    /// `None`: this is no request, so nothing that follows can be understood either.
    pub(super) fn decode(bytes: &[u8; protocol::Request::LENGTH]) -> Option<Self> {
        let wire = protocol::Request::read_from_bytes(bytes).ok().filter(|wire| wire.magic.get() == REQUEST_MAGIC)?;
        let request = Self {
            cookie: wire.cookie.get(),
            command: wire.command.get(),
            flags: wire.flags.get(),
            offset: wire.offset.get(),
            length: wire.length.get(),
        };
        (request.payload() <= MAX_SKIPPED as usize).then_some(request)
    }

    /// Bytes that follow the request.
    pub(super) fn payload(&self) -> usize {
        if self.command == command::WRITE { self.length as usize } else { 0 }
    }

    /// Bytes of memory that the request and its answer need beside what every request needs.
    pub(super) fn memory(&self) -> usize {
        match self.command {
            command::READ | command::WRITE => self.length as usize,
            _ => 0,
        }
    }

    /// Whether the client ends the connection with it.
    pub(super) fn is_goodbye(&self) -> bool {
        self.command == command::DISC
    }

    /// Whether it changes the device.
    pub(super) fn changes(&self) -> bool {
        matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
    }

    /// Whether its reply waits until what it changed is durable.
    pub(super) fn durable(&self) -> bool {
        self.changes() && self.flags & flag::FUA != 0
    }

    /// What its I/O takes as long as.
    pub(super) fn kind(&self) -> Kind {
        match self.command {
            _ if self.durable() => Kind::Flush,
            command::FLUSH => Kind::Flush,
            command::READ => Kind::of_read(self.length),
            command::WRITE => Kind::of_write(self.length),
            _ => Kind::Other,
        }
    }

    /// Whether it may be done as the protocol and the export have it.
    pub(super) fn check(&self, agreed: &Agreed) -> Result<(), Refusal> {
        let allowed = match self.command {
            command::READ if agreed.structured => flag::DF,
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
            command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS if agreed.allocation => flag::REQ_ONE,
            command::BLOCK_STATUS => return refuse(errno::EINVAL, "base:allocation was not negotiated"),
            _ => return refuse(errno::EINVAL, "this command is not known here"),
        };
        // FUA is taken with every command, also where it means nothing.
        if self.flags & !(allowed | flag::FUA) != 0 {
            return refuse(errno::EINVAL, "a flag does not go with this command");
        }
        if self.changes() && agreed.export.read_only {
            return refuse(errno::EPERM, "the export is read-only");
        }
        if self.memory() > DEFAULT_MAX_PAYLOAD as usize {
            return refuse(errno::EINVAL, "the request is longer than 32 MiB");
        }
        let size = agreed.export.driver.size();
        let inside = self.offset.checked_add(u64::from(self.length)).is_some_and(|end| end <= size);
        match self.command {
            command::FLUSH => Ok(()),
            command::BLOCK_STATUS if self.length == 0 => refuse(errno::EINVAL, "the range is empty"),
            command::WRITE | command::WRITE_ZEROES if !inside => {
                refuse(errno::ENOSPC, "the range ends beyond the export")
            }
            _ if !inside => refuse(errno::EINVAL, "the range ends beyond the export"),
            _ => Ok(()),
        }
    }
}

fn refuse(error: u32, reason: &str) -> Result<(), Refusal> {
    Err(Refusal { error, reason: reason.into() })
}
