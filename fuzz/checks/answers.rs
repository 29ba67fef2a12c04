//! What must hold whatever a server answers a request with.
//!
//! An input is a byte that says what was agreed and asked (1 structured replies; 2 a read, 4 the block status, else only the
//! outcome), the offset (64 bits) and the length (32 bits) of the request, and the reply.

use blockcow_frontends::nbd::client::Cause;
use blockcow_frontends::nbd::client::answer::{Answer, Header, Source, Wanted};
use rustix::io::Errno;

const MOST_READ: usize = 64 << 10;
/// Every server's first context.
const CONTEXTS: [u32; 2] = [0, 1];

struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Cause> {
        let Some((now, later)) = self.0.split_at_checked(buf.len()) else {
            return Err(Cause::new(Errno::CONNRESET, "the end"));
        };
        buf.copy_from_slice(now);
        self.0 = later;
        Ok(())
    }
}

fn take(bytes: &[u8], wanted: Wanted<'_>, structured: bool) -> Result<Result<(), Cause>, Cause> {
    let mut source = Bytes(bytes);
    let mut answer = Answer::new(wanted, structured);
    loop {
        let header = Header::read(&mut source, structured)?;
        if answer.take(&header, &mut source)? {
            return Ok(answer.outcome());
        }
    }
}

fn number<const N: usize>(bytes: &[u8]) -> u64 {
    bytes[..N].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// What a reply to a read says that was found right, by another reading: pieces go where they say.
fn pieces(mut reply: &[u8], offset: u64, length: usize) -> Vec<u8> {
    if number::<4>(reply) == 0x6744_6698 {
        return reply[16..16 + length].to_vec();
    }
    let mut found = vec![0xee; length];
    loop {
        let (done, kind, count) = (reply[5] & 1 == 1, number::<2>(&reply[6..]), number::<4>(&reply[16..]) as usize);
        let payload = &reply[20..20 + count];
        if kind == 1 {
            let start = (number::<8>(payload) - offset) as usize;
            found[start..start + count - 8].copy_from_slice(&payload[8..]);
        } else if kind == 2 {
            let start = (number::<8>(payload) - offset) as usize;
            found[start..start + number::<4>(&payload[8..]) as usize].fill(0);
        }
        if done {
            return found;
        }
        reply = &reply[20 + count..];
    }
}

fn refused(cause: &Cause) {
    assert!(cause.errno > 0 && !cause.text.is_empty() && cause.text.len() < 1000, "{cause}");
    assert!(!cause.text.chars().any(char::is_control), "{cause:?}");
}

/// What is taken for data is what the server sent; the rest is an error with a number and words.
pub fn check(data: &[u8]) {
    let Some((head, reply)) = data.split_at_checked(13) else { return };
    let (mode, offset, length) = (head[0], number::<8>(&head[1..]), number::<4>(&head[9..]) as usize);
    let structured = mode & 1 != 0;
    let outcome = if mode & 2 != 0 {
        let mut buf = vec![0x55; length.min(MOST_READ)];
        let outcome = take(reply, Wanted::Data { buf: &mut buf, offset }, structured);
        if let Ok(Ok(())) = outcome {
            assert!(buf == pieces(reply, offset, buf.len()), "what was read is not what was sent");
        }
        outcome
    } else if mode & 4 != 0 {
        let mut found = Vec::new();
        let outcome =
            take(reply, Wanted::Status { context: CONTEXTS[usize::from(mode >> 7)], found: &mut found }, structured);
        if let Ok(Ok(())) = outcome {
            assert!(!found.is_empty() && found.len() <= reply.len() / 8);
            assert!(found.iter().all(|(length, _)| *length > 0) && found.windows(2).all(|pair| pair[0].1 != pair[1].1));
        }
        outcome
    } else {
        take(reply, Wanted::Outcome, structured)
    };
    match outcome {
        Err(cause) | Ok(Err(cause)) => refused(&cause),
        Ok(Ok(())) => {}
    }
}
