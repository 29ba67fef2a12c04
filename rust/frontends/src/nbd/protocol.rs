//! The vocabulary of NBD: magic numbers, options, commands, flags, errors, and the structures on the wire.
//!
//! Shared by the server and the client; decides nothing and does no I/O. The format is that of the NBD protocol
//! document, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, whose names the constants bear
//! without their `NBD_` prefix. All numbers on the wire are big-endian; `zerocopy` reads and writes them in place.

#![allow(missing_docs, reason = "the names are those of the protocol document, which explains them")]

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of a server: `NBDMAGIC`.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: before every option, and in the greeting of a newstyle server.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The longest string (export name, error message, meta context) that the protocol lets anybody send.
pub const MAX_STRING: usize = 4096;
/// What a client may ask for in one request when no block sizes were agreed.
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;
/// Zeroes after the answer to `EXPORT_NAME`, unless both sides said `NO_ZEROES`.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// The meta context of allocation; block states are `STATE_*`.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Handshake flags, of the server (16 bits) and in answer of the client (32 bits).
pub mod handshake {
    pub const FIXED_NEWSTYLE: u16 = 1;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of a client.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options. Those with the highest bit are errors, with a message for people as their data.
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// The bit that all errors have.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Types of information in a `reply::INFO`.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const ROTATIONAL: u16 = 1 << 4;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_RESIZE: u16 = 1 << 9;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Types of requests.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// Zeroes keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The answer to a read is one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeroes only if that is quicker than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flags of the chunks of structured replies.
pub mod chunk {
    /// Flag: the last chunk of its reply.
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    /// The bit that the types of all error chunks have.
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT | 1;
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Errors of requests; the numbers are Linux's, but these are all there are.
pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// Block states in the context `base:allocation`.
pub const STATE_HOLE: u32 = 1;
/// Reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// A structure as it stands on the wire.
macro_rules! wire {
    ($(#[$about:meta])* $name:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $(pub $field: $kind),+ }

        impl $name {
            /// Its length on the wire.
            pub const LENGTH: usize = size_of::<Self>();
        }
    };
}

wire!(
    /// What a newstyle server says first.
    Greeting { magic: U64, option_magic: U64, flags: U16 }
);
wire!(
    /// Before the data of an option.
    OptionHeader { magic: U64, option: U32, length: U32 }
);
wire!(
    /// Before the data of a reply to an option.
    OptionReply { magic: U64, option: U32, reply: U32, length: U32 }
);
wire!(
    /// The answer to `EXPORT_NAME`; `EXPORT_NAME_ZEROES` may follow.
    ExportNameReply { size: U64, flags: U16 }
);
wire!(
    /// The data of a `reply::INFO` of type `info::EXPORT`.
    InfoExport { info: U16, size: U64, flags: U16 }
);
wire!(
    /// The data of a `reply::INFO` of type `info::BLOCK_SIZE`.
    InfoBlockSize { info: U16, minimum: U32, preferred: U32, maximum: U32 }
);
wire!(
    /// A request; the data of a `command::WRITE` follow.
    Request { magic: U32, flags: U16, command: U16, cookie: U64, offset: U64, length: U32 }
);
wire!(
    /// A simple reply; the data of a `command::READ` that did not fail follow.
    SimpleReply { magic: U32, error: U32, cookie: U64 }
);
wire!(
    /// Before the `length` bytes of a chunk of a structured reply.
    ChunkHeader { magic: U32, flags: U16, kind: U16, cookie: U64, length: U32 }
);
wire!(
    /// All of a `chunk::OFFSET_HOLE`. A `chunk::OFFSET_DATA` begins with the offset alone, a `U64`.
    OffsetHole { offset: U64, length: U32 }
);
wire!(
    /// The beginning of a `chunk::ERROR` or `chunk::ERROR_OFFSET`; the message follows, and for the latter a `U64`.
    ChunkError { error: U32, message_length: U16 }
);
wire!(
    /// One extent of a `chunk::BLOCK_STATUS`, which begins with the context's id, a `U32`.
    BlockDescriptor { length: U32, status: U32 }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_document_says() {
        assert_eq!([Greeting::LENGTH, OptionHeader::LENGTH, OptionReply::LENGTH], [18, 16, 20]);
        assert_eq!([ExportNameReply::LENGTH, InfoExport::LENGTH, InfoBlockSize::LENGTH], [10, 12, 14]);
        assert_eq!([Request::LENGTH, SimpleReply::LENGTH, ChunkHeader::LENGTH], [28, 16, 20]);
        assert_eq!([OffsetHole::LENGTH, ChunkError::LENGTH, BlockDescriptor::LENGTH], [12, 6, 8]);
        assert_eq!(OPTION_MAGIC.to_be_bytes(), *b"IHAVEOPT");
        assert_eq!(NBD_MAGIC.to_be_bytes(), *b"NBDMAGIC");
    }
}
