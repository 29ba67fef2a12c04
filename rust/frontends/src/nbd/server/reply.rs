//! Replies: the bytes of an answer, simple or structured. Pure.

use std::mem;

use zerocopy::big_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

use super::buffers::Buffer;
use super::negotiation::{ALLOCATION_ID, Agreed};
use super::request::{Refusal, Request};
use crate::nbd::protocol::{
    BlockDescriptor, ChunkError, ChunkHeader, MAX_STRING, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    chunk, command,
};

const HEAD: usize = ChunkHeader::LENGTH + size_of::<U64>();

/// What came of a request.
pub(super) enum Answer {
    Done,
    /// As many bytes of the buffer as the request asked for.
    Data(Buffer),
    Extents(Vec<BlockDescriptor>),
    Failed(Refusal),
}

/// A reply, ready to be sent.
pub(super) struct Reply {
    head: [u8; HEAD],
    head_length: usize,
    body: Body,
    /// What the request took of the connection's budget.
    pub cost: usize,
}

enum Body {
    None,
    Data(Buffer, usize),
    Bytes(Vec<u8>),
}

impl Reply {
    /// The reply to `request`. Everything is one chunk: never more than a client that knows `DF` wants.
    pub(super) fn new(agreed: &Agreed, request: &Request, answer: Answer, cost: usize) -> Self {
        let mut reply = Self { head: [0; HEAD], head_length: 0, body: Body::None, cost };
        match answer {
            // Only reads must be answered by chunks; else the short form serves.
            Answer::Done if agreed.structured && request.command == command::READ => {
                reply.chunk(request, chunk::NONE, 0);
            }
            Answer::Done => reply.simple(request, 0),
            Answer::Failed(refusal) if agreed.structured => reply.error(request, &refusal),
            Answer::Failed(refusal) => reply.simple(request, refusal.error),
            Answer::Data(buffer) => {
                let length = request.length as usize;
                if agreed.structured {
                    reply.chunk(request, chunk::OFFSET_DATA, size_of::<U64>() + length);
                    reply.push(U64::new(request.offset).as_bytes());
                } else {
                    reply.simple(request, 0);
                }
                reply.body = Body::Data(buffer, length);
            }
            Answer::Extents(extents) => {
                let id = ALLOCATION_ID.to_be_bytes();
                let bytes = [&id[..], extents.as_bytes()].concat();
                reply.chunk(request, chunk::BLOCK_STATUS, bytes.len());
                reply.body = Body::Bytes(bytes);
            }
        }
        reply
    }

    /// The reply's parts, in order.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        let body = match &self.body {
            Body::None => &[],
            Body::Data(buffer, length) => &buffer[..*length],
            Body::Bytes(bytes) => &bytes[..],
        };
        [&self.head[..self.head_length], body]
    }

    /// Its length on the wire.
    pub(super) fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Takes the memory out of it, once it is sent.
    pub(super) fn take_buffer(&mut self) -> Option<Buffer> {
        match mem::replace(&mut self.body, Body::None) {
            Body::Data(buffer, _) => Some(buffer),
            _ => None,
        }
    }

    fn simple(&mut self, request: &Request, error: u32) {
        let header =
            SimpleReply { magic: SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: request.cookie.into() };
        self.push(header.as_bytes());
    }

    fn chunk(&mut self, request: &Request, kind: u16, length: usize) {
        let header = ChunkHeader {
            magic: STRUCTURED_REPLY_MAGIC.into(),
            flags: chunk::DONE.into(),
            kind: kind.into(),
            cookie: request.cookie.into(),
            length: (length as u32).into(),
        };
        self.push(header.as_bytes());
    }

    fn error(&mut self, request: &Request, refusal: &Refusal) {
        let mut end = refusal.reason.len().min(MAX_STRING);
        while !refusal.reason.is_char_boundary(end) {
            end -= 1;
        }
        let message = &refusal.reason.as_bytes()[..end];
        let mut fields = ChunkError::new_zeroed();
        fields.error = refusal.error.into();
        fields.message_length = (message.len() as u16).into();
        self.chunk(request, chunk::ERROR, ChunkError::LENGTH + message.len());
        self.body = Body::Bytes([fields.as_bytes(), message].concat());
    }

    fn push(&mut self, bytes: &[u8]) {
        self.head[self.head_length..][..bytes.len()].copy_from_slice(bytes);
        self.head_length += bytes.len();
    }
}
