//! Buffered receiving: several small requests in one call, large payloads straight to where they belong.

use std::io::{self, IoSliceMut, Read};

/// A call of so many bytes brings about a dozen writes of 4 KiB.
const CAPACITY: usize = 64 << 10;

/// What was received and not yet looked at.
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: vec![0; CAPACITY].into(), start: 0, end: 0 }
    }
}

impl Inbox {
    /// How much is there already.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// The next `N` bytes; `None`: the stream ended before the first of them.
    pub(super) fn next<const N: usize>(&mut self, source: &mut impl Read) -> io::Result<Option<[u8; N]>> {
        while self.len() < N {
            let before = self.len();
            if self.add(|space| source.read(space))? == 0 {
                return if before == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let mut next = [0; N];
        next.copy_from_slice(&self.bytes[self.start..][..N]);
        self.start += N;
        Ok(Some(next))
    }

    /// Adds what `receive` puts into the space that is left.
    pub(super) fn add(&mut self, receive: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = receive(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// Fills `payload`, and receives beyond it what comes in the same call.
    pub(super) fn fill(&mut self, source: &mut impl Read, payload: &mut [u8]) -> io::Result<()> {
        let here = self.len().min(payload.len());
        payload[..here].copy_from_slice(&self.bytes[self.start..][..here]);
        self.start += here;
        let mut rest = &mut payload[here..];
        while !rest.is_empty() {
            // All that was here is used up.
            (self.start, self.end) = (0, 0);
            let wanted = rest.len();
            let count = source.read_vectored(&mut [IoSliceMut::new(rest), IoSliceMut::new(&mut self.bytes)])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.end = count.saturating_sub(wanted);
            rest = &mut rest[count.min(wanted)..];
        }
        Ok(())
    }

    /// Drops the next `count` bytes.
    pub(super) fn skip(&mut self, source: &mut impl Read, mut count: usize) -> io::Result<()> {
        loop {
            let here = self.len().min(count);
            self.start += here;
            count -= here;
            if count == 0 {
                return Ok(());
            }
            if self.add(|space| source.read(space))? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most so many bytes a call.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(self.1);
            self.0.read(&mut buffer[..count])
        }
    }

    #[test]
    fn bytes_come_in_order_however_they_arrive() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        for drip in [1, 7, 4096, 65_536, 200_000] {
            let (mut inbox, mut source, mut at) = (Inbox::default(), Drip(&bytes, drip), 0);
            for length in [0, 1, 5_000, 100_000, 3, 70_000] {
                let head = inbox.next::<28>(&mut source).unwrap().unwrap();
                assert_eq!(head, bytes[at..at + 28]);
                at += 28;
                let mut payload = vec![0; length / 2];
                inbox.fill(&mut source, &mut payload).unwrap();
                assert_eq!(payload, bytes[at..at + length / 2]);
                inbox.skip(&mut source, length / 2).unwrap();
                at += length / 2 * 2;
            }
            inbox.skip(&mut source, bytes.len() - at).unwrap();
            assert_eq!(inbox.next::<28>(&mut source).unwrap(), None);
        }
    }

    #[test]
    fn an_end_within_a_request_is_an_error() {
        let (mut inbox, mut source) = (Inbox::default(), &[0_u8; 30][..]);
        assert!(inbox.next::<28>(&mut source).unwrap().is_some());
        assert!(inbox.next::<28>(&mut source).is_err());
        assert!(inbox.fill(&mut source, &mut [0; 3]).is_err());
    }
}
