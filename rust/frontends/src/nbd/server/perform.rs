//! What requests do to the driver, and what its errors are called in the protocol.

use std::borrow::Cow;

use blockcow_engine::driver::{self, Driver};
use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::Zeroing;

use super::buffers::Buffers;
use super::reply::Answer;
use super::request::{Refusal, Request};
use crate::nbd::protocol::{BlockDescriptor, STATE_HOLE, STATE_ZERO, command, errno, flag};

/// Extents in one answer; a client asks again from where they end.
const MAX_EXTENTS: usize = 2048;

/// The change that a checked request asks for; `None`: it changes nothing.
pub(super) fn change<'a>(request: &Request, payload: &'a [u8]) -> Option<driver::Request<'a>> {
    let range = ByteRange { start: request.offset, end: request.offset + u64::from(request.length) };
    match request.command {
        command::WRITE => Some(driver::Request::Write(Cow::Borrowed(payload), request.offset)),
        command::TRIM => Some(driver::Request::Discard(range)),
        command::WRITE_ZEROES => {
            let keep_space = request.flags & flag::NO_HOLE != 0;
            let fast = request.flags & flag::FAST_ZERO != 0;
            Some(driver::Request::Zero(range, Zeroing { keep_space, fast }))
        }
        _ => None,
    }
}

/// Answers a checked request that changes nothing.
pub(super) fn look(driver: &Driver, request: &Request, buffers: &Buffers) -> Answer {
    let answer = match request.command {
        command::READ if request.length > 0 => read(driver, request, buffers),
        command::FLUSH => driver.flush().map(|()| Answer::Done),
        command::BLOCK_STATUS => extents(driver, request).map(Answer::Extents),
        // CACHE is advice. Where direct I/O is used there is no cache to fill; elsewhere the kernel reads ahead itself.
        _ => Ok(Answer::Done),
    };
    answer.unwrap_or_else(|error| Answer::Failed(refusal(&error)))
}

/// The answer to a request that is done, or failed.
pub(super) fn outcome(result: &Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(refusal(error)),
    }
}

fn read(driver: &Driver, request: &Request, buffers: &Buffers) -> Result<Answer> {
    let length = request.length as usize;
    let mut buffer = buffers.take(length);
    match driver.read(&mut buffer[..length], request.offset) {
        Ok(()) => Ok(Answer::Data(buffer)),
        Err(error) => {
            buffers.put(buffer);
            Err(error)
        }
    }
}

fn extents(driver: &Driver, request: &Request) -> Result<Vec<BlockDescriptor>> {
    let end = request.offset + u64::from(request.length);
    let most = if request.flags & flag::REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
    let mut found: Vec<(u64, u32)> = Vec::new();
    let mut at = request.offset;
    while at < end {
        let data = driver.next_data(at)?.filter(|data| data.start < end);
        let hole_end = data.map_or(end, |data| data.start);
        let data_end = data.map_or(end, |data| data.end.min(end));
        for (until, state) in [(hole_end, STATE_HOLE | STATE_ZERO), (data_end, 0)] {
            let length = until.saturating_sub(at);
            match found.last_mut() {
                _ if length == 0 => continue,
                Some((sum, last)) if *last == state => *sum += length,
                _ => found.push((length, state)),
            }
            at = until;
        }
        if found.len() > most {
            found.truncate(most);
            break;
        }
    }
    Ok(described(&found))
}

fn described(found: &[(u64, u32)]) -> Vec<BlockDescriptor> {
    // No length exceeds the request's, which has 32 bits.
    let describe =
        |&(length, state): &(u64, u32)| BlockDescriptor { length: (length as u32).into(), status: state.into() };
    found.iter().map(describe).collect()
}

fn refusal(error: &Error) -> Refusal {
    let number = match error.errno {
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => errno::EPERM,
        Some(libc::ENOMEM) => errno::ENOMEM,
        Some(libc::EINVAL) => errno::EINVAL,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => errno::ENOSPC,
        Some(libc::EOVERFLOW) => errno::EOVERFLOW,
        Some(libc::EOPNOTSUPP) => errno::ENOTSUP,
        Some(libc::ESHUTDOWN) => errno::ESHUTDOWN,
        None if error.kind == ErrorKind::Invalid => errno::EINVAL,
        _ => errno::EIO,
    };
    Refusal { error: number, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_number_that_the_protocol_knows() {
        for number in 0..200 {
            let source = std::io::Error::from_raw_os_error(number);
            let error = refusal(&Error::io(ErrorKind::Device, "write", &source)).error;
            let known = [1, 5, 12, 22, 28, 75, 95, 108];
            assert!(known.contains(&error), "{number} became {error}");
            assert!(error == number as u32 || !known.contains(&(number as u32)), "{number} became {error}");
        }
        assert_eq!(refusal(&Error::new(ErrorKind::Invalid, "write", "no")).error, errno::EINVAL);
        assert_eq!(refusal(&Error::new(ErrorKind::Timeout, "write", "no")).error, errno::EIO);
    }
}
