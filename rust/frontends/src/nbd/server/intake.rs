//! Takes requests off a stream, with their data, and sorts out those that may not be done.

use std::io::{self, Read};

use super::buffers::{Buffer, Buffers};
use super::inbox::Inbox;
use super::negotiation::Agreed;
use super::request::{Refusal, Request};
use crate::nbd::protocol;

/// What came.
pub(super) enum Received {
    /// A request that is to be done, and the data of a write.
    Work(Request, Option<Buffer>),
    /// One that is only to be answered; its data are skipped.
    Refused(Request, Refusal),
    /// Nothing more will come.
    End,
}

/// Waits for the next request. `reserve` is told how much memory it takes, before it is taken.
///
/// # Errors
/// The stream's own; `InvalidData` for what is no request.
pub(super) fn next(
    inbox: &mut Inbox,
    source: &mut impl Read,
    agreed: &Agreed,
    buffers: &Buffers,
    reserve: impl FnOnce(usize),
) -> io::Result<Received> {
    let Some(bytes) = inbox.next::<{ protocol::Request::LENGTH }>(source)? else { return Ok(Received::End) };
    let Some(request) = Request::decode(&bytes) else { return Err(io::ErrorKind::InvalidData.into()) };
    if request.is_goodbye() {
        return Ok(Received::End);
    }
    let length = request.payload();
    if let Err(refusal) = request.check(agreed) {
        reserve(0);
        inbox.skip(source, length)?;
        return Ok(Received::Refused(request, refusal));
    }
    reserve(request.memory());
    if length == 0 {
        return Ok(Received::Work(request, None));
    }
    let mut buffer = buffers.take(length);
    inbox.fill(source, &mut buffer[..length])?;
    Ok(Received::Work(request, Some(buffer)))
}
