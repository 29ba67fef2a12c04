//! Replies of every shape: what is right is read, what is not is an error, and nothing makes the reader panic.

use proptest::prelude::*;
use rustix::io::Errno;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32, U64};

use super::*;

const COOKIE: u64 = 7;
const OFFSET: u64 = 4096;
const CONTEXT: u32 = 3;

/// Bytes that come to an end.
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

fn chunk_of(kind: u16, done: bool, payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    let header = ChunkHeader {
        magic: U32::new(STRUCTURED_REPLY_MAGIC),
        flags: U16::new(u16::from(done)),
        kind: U16::new(kind),
        cookie: U64::new(COOKIE),
        length: U32::new(payload.len() as u32),
    };
    [header.as_bytes(), &payload].concat()
}

fn simple(error: u32) -> Vec<u8> {
    let reply = SimpleReply { magic: U32::new(SIMPLE_REPLY_MAGIC), error: U32::new(error), cookie: U64::new(COOKIE) };
    reply.as_bytes().to_vec()
}

fn data(offset: u64, bytes: &[u8], done: bool) -> Vec<u8> {
    chunk_of(chunk::OFFSET_DATA, done, &[&offset.to_be_bytes(), bytes])
}

fn hole(offset: u64, length: u32, done: bool) -> Vec<u8> {
    chunk_of(chunk::OFFSET_HOLE, done, &[&offset.to_be_bytes(), &length.to_be_bytes()])
}

fn error(number: u32, message: &str, done: bool) -> Vec<u8> {
    let length = (message.len() as u16).to_be_bytes();
    chunk_of(chunk::ERROR, done, &[&number.to_be_bytes(), &length, message.as_bytes()])
}

fn status(context: u32, extents: &[(u32, u32)], done: bool) -> Vec<u8> {
    let extents: Vec<u8> =
        extents.iter().flat_map(|(length, state)| [length.to_be_bytes(), state.to_be_bytes()].concat()).collect();
    chunk_of(chunk::BLOCK_STATUS, done, &[&context.to_be_bytes(), &extents])
}

/// Reads replies until one says that it is the last. The first half: breaches; the second: what the server answered.
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

fn take_data(bytes: &[u8], buf: &mut [u8]) -> Result<Result<(), Cause>, Cause> {
    take(bytes, Wanted::Data { buf, offset: OFFSET }, true)
}

fn breach(bytes: &[u8], words: &str) {
    let found = take_data(bytes, &mut [0; 8]).unwrap_err();
    assert!(found.text.contains(words) && found.errno == libc::EPROTO, "{found}");
}

#[test]
fn what_the_protocol_does_not_allow_is_a_breach() {
    let all = [1; 8];
    breach(&data(OFFSET, &all[..7], true), "before all has come");
    breach(&[data(OFFSET, &all[..4], false), data(OFFSET + 3, &all[..5], true)].concat(), "came before");
    breach(&[data(OFFSET + 3, &all[..5], false), data(OFFSET, &all[..4], true)].concat(), "came before");
    breach(&[hole(OFFSET, 8, false), hole(OFFSET, 8, true)].concat(), "came before");
    breach(&data(OFFSET - 1, &all, true), "not those asked for");
    breach(&data(OFFSET + 1, &all, true), "not those asked for");
    breach(&hole(u64::MAX, u32::MAX, true), "not those asked for");
    breach(&hole(OFFSET, 0, true), "none");
    breach(&data(OFFSET, b"", true), "none");
    breach(&chunk_of(chunk::OFFSET_DATA, true, &[b"short"]), "without an offset");
    breach(&chunk_of(chunk::OFFSET_HOLE, true, &[b"short"]), "a chunk of type 2");
    breach(&chunk_of(chunk::NONE, true, &[b"x"]), "a chunk of type 0");
    breach(&chunk_of(chunk::NONE, false, &[]), "a chunk of type 0");
    breach(&chunk_of(chunk::NONE, true, &[]), "before all has come");
    breach(&chunk_of(99, true, &[]), "a chunk of type 99");
    breach(&error(0, "", true), "that is none");
    breach(&chunk_of(chunk::ERROR, true, &[&[0, 0, 0, 5, 0, 9], b"short"]), "longer than itself");
    breach(&chunk_of(chunk::ERROR, true, &[b"12345"]), "an error of 5 bytes");
    breach(&chunk_of(chunk::ERROR, true, &[&[1; 6], &[b'x'; 4097]]), "an error of");
    breach(&simple(0), "chunks were agreed on");
    breach(&[data(OFFSET, &all, false), simple(5)].concat(), "after chunks");
    breach(&status(CONTEXT, &[(8, 0)], true), "nobody asked for");
    breach(&[7; 16], "a reply begins with");
    let errors = error(5, "", false).repeat(2000);
    breach(&errors, "one too many");
    let chunks_without_agreement = take(&data(OFFSET, &all, true), Wanted::Outcome, false).unwrap_err();
    assert!(chunks_without_agreement.text.contains("begins with"), "{chunks_without_agreement}");
    let data_for_nobody = take(&data(OFFSET, &all, true), Wanted::Outcome, true).unwrap_err();
    assert!(data_for_nobody.text.contains("nobody asked for"), "{data_for_nobody}");
}

#[test]
fn a_simple_reply_is_the_data_or_an_error() {
    let mut buf = [0; 8];
    let reply = [simple(0), vec![9; 8]].concat();
    take(&reply, Wanted::Data { buf: &mut buf, offset: OFFSET }, false).unwrap().unwrap();
    assert_eq!(buf, [9; 8]);
    take(&simple(0), Wanted::Outcome, true).unwrap().unwrap();
    for (number, errno) in [(5, libc::EIO), (28, libc::ENOSPC), (95, libc::ENOTSUP), (4711, libc::EINVAL)] {
        let answered = take(&simple(number), Wanted::Outcome, true).unwrap().unwrap_err();
        assert_eq!(answered.errno, errno);
    }
}

#[test]
fn an_error_comes_with_its_words_and_without_control_characters() {
    let mut buf = [0; 8];
    let reply = [hole(OFFSET, 4, false), error(28, "disk\x1b[2J full\n", false), chunk_of(chunk::NONE, true, &[])];
    let answered = take_data(&reply.concat(), &mut buf).unwrap().unwrap_err();
    assert_eq!(answered.errno, libc::ENOSPC);
    assert!(answered.text.ends_with("(disk [2J full)"), "{answered}");
    let at = chunk_of(chunk::ERROR_OFFSET, true, &[&5u32.to_be_bytes(), &[0, 0], &OFFSET.to_be_bytes()]);
    assert_eq!(take_data(&at, &mut buf).unwrap().unwrap_err().errno, libc::EIO);
    let unknown = chunk_of(chunk::ERROR_BIT | 77, true, &[&5u32.to_be_bytes(), &[0, 0], b"more"]);
    assert_eq!(take_data(&unknown, &mut buf).unwrap().unwrap_err().errno, libc::EIO);
}

#[test]
fn block_states_are_joined_and_checked() {
    let ask = |bytes: &[u8]| {
        let mut found = Vec::new();
        take(bytes, Wanted::Status { context: CONTEXT, found: &mut found }, true).map(|outcome| (outcome, found))
    };
    let (outcome, found) = ask(&status(CONTEXT, &[(10, 3), (5, 2), (7, 0), (1, 1)], true)).unwrap();
    assert!(outcome.is_ok());
    assert_eq!(found, [(15, true), (8, false)]);
    for wrong in [
        status(CONTEXT + 1, &[(8, 0)], true),
        status(CONTEXT, &[], true),
        status(CONTEXT, &[(0, 0)], true),
        [status(CONTEXT, &[(8, 0)], false), status(CONTEXT, &[(8, 0)], true)].concat(),
        chunk_of(chunk::BLOCK_STATUS, true, &[b"odd"]),
        chunk_of(chunk::NONE, true, &[]),
        simple(0),
    ] {
        assert_eq!(ask(&wrong).unwrap_err().errno, libc::EPROTO);
    }
}

/// A right reply to a read, in pieces of any order, and what it says.
fn replies() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let pieces = prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..40)), 1..12);
    pieces.prop_flat_map(|pieces| {
        let mut offset = OFFSET;
        let mut placed = Vec::new();
        for (is_hole, bytes) in pieces {
            let bytes = if is_hole { vec![0; bytes.len()] } else { bytes };
            placed.push((offset, is_hole, bytes.clone()));
            offset += bytes.len() as u64;
        }
        let expected: Vec<u8> = placed.iter().flat_map(|(_, _, bytes)| bytes.clone()).collect();
        Just(placed).prop_shuffle().prop_map(move |placed| {
            let last = placed.len() - 1;
            let chunks = placed.iter().enumerate().map(|(index, (offset, is_hole, bytes))| match is_hole {
                true => hole(*offset, bytes.len() as u32, index == last),
                false => data(*offset, bytes, index == last),
            });
            (chunks.collect::<Vec<_>>().concat(), expected.clone())
        })
    })
}

proptest! {
    #[test]
    fn pieces_in_any_order_make_the_whole((bytes, expected) in replies()) {
        let mut buf = vec![0xee; expected.len()];
        take_data(&bytes, &mut buf).unwrap().unwrap();
        prop_assert_eq!(buf, expected);
    }

    #[test]
    fn a_piece_less_is_noticed((bytes, expected) in replies(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len());
        let mut buf = vec![0xee; expected.len()];
        prop_assert!(take_data(&bytes[..cut], &mut buf).is_err());
    }

    #[test]
    fn damage_does_no_harm(
        (mut bytes, expected) in replies(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut buf = vec![0xee; expected.len()];
        let _ = take_data(&bytes, &mut buf);
        let mut found = Vec::new();
        let _ = take(&bytes, Wanted::Status { context: CONTEXT, found: &mut found }, true);
        let _ = take(&bytes, Wanted::Outcome, true);
    }

    #[test]
    fn noise_does_no_harm(kind in 0u16..8, error_bit: bool, done: bool, noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let kind = if error_bit { kind | chunk::ERROR_BIT } else { kind };
        let bytes = [chunk_of(kind, done, &[&noise]), noise].concat();
        let _ = take_data(&bytes, &mut [0; 64]);
        let mut found = Vec::new();
        let _ = take(&bytes, Wanted::Status { context: CONTEXT, found: &mut found }, true);
    }
}
