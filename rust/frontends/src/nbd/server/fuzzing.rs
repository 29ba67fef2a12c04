//! What the fuzz targets run: arbitrary bytes as a client, and what must hold whatever they are. Not for other use.
//!
//! `fuzz/` builds libFuzzer targets of these functions; the tests run them on the committed corpus and its mutations.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;

use blockcow_engine::driver::Driver;
use blockcow_engine::storage::MemoryStorage;
use zerocopy::FromBytes;

use super::buffers::Buffers;
use super::export::Export;
use super::inbox::Inbox;
use super::intake::{self, Received};
use super::negotiation::{Agreed, negotiate};
use super::perform;
use super::reply::{Answer, Reply};
use super::request::Request;
use crate::nbd::protocol::{
    BlockDescriptor, ChunkHeader, EXPORT_NAME_ZEROES, ExportNameReply, Greeting, OPTION_REPLY_MAGIC, OptionReply,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, chunk, command, reply,
};

/// Size of the device: small, so that ranges that are guessed meet it.
pub const SIZE: u64 = (64 << 10) + 512;
/// Far more than all options of one client can be answered with.
const MOST_SAID: usize = 256 << 10;

/// A client's part of a negotiation. Nothing panics, the answer is well-formed and bounded, and the same however the bytes
/// arrive.
pub fn fuzz_negotiation(data: &[u8]) {
    let exports = [export("disk", false).0, export("still", true).0];
    let mut whole = Script::new(data, usize::MAX);
    let mut drip = Script::new(data, 3);
    let first = negotiate(&mut whole, &exports);
    let second = negotiate(&mut drip, &exports);
    assert!(whole.said == drip.said, "the answer depends on how the bytes arrive");
    assert_eq!(outcome(&first), outcome(&second));
    assert!(whole.said.len() <= MOST_SAID, "{} bytes of answer", whole.said.len());
    check_answers(&whole.said, matches!(first, Ok(Some(_))));
    if let Ok(Some(agreed)) = first {
        assert!(agreed.structured || !agreed.allocation, "block status needs structured replies");
    }
}

fn outcome(result: &io::Result<Option<Agreed>>) -> (bool, Option<(String, bool, bool)>) {
    let agreed = result.as_ref().ok().and_then(Option::as_ref);
    let fields = agreed.map(|agreed| (agreed.export.name.clone(), agreed.structured, agreed.allocation));
    (result.is_ok(), fields)
}

/// The server's part: a greeting, whole replies, and after the old way of naming an export its size and flags.
fn check_answers(mut said: &[u8], agreed: bool) {
    let greeting = Greeting::LENGTH.min(said.len());
    said = &said[greeting..];
    while let Ok((header, rest)) = OptionReply::read_from_prefix(said)
        && header.magic.get() == OPTION_REPLY_MAGIC
    {
        let length = header.length.get() as usize;
        assert!(length <= rest.len(), "a reply is cut short");
        assert!(header.reply.get() & reply::ERROR == 0 || std::str::from_utf8(&rest[..length]).is_ok());
        said = &rest[length..];
    }
    let old = [ExportNameReply::LENGTH, ExportNameReply::LENGTH + EXPORT_NAME_ZEROES];
    assert!(said.is_empty() || agreed && old.contains(&said.len()), "{} bytes are no reply", said.len());
}

/// A client's requests, after a byte that says what was agreed. Nothing panics, each request has one well-formed reply,
/// reads and the device's contents are those of a model.
pub fn fuzz_requests(data: &[u8]) {
    let Some((&mode, mut stream)) = data.split_first() else { return };
    let (export, storage) = export("disk", mode & 4 != 0);
    let structured = mode & 1 != 0;
    let agreed = Agreed { export, structured, allocation: structured && mode & 2 != 0 };
    let mut session = Session { agreed, buffers: Buffers::default(), model: vec![0; SIZE as usize] };
    let mut inbox = Inbox::default();
    loop {
        let mut reserved = None;
        let reserve = |memory| reserved = Some(memory);
        let Ok(received) = intake::next(&mut inbox, &mut stream, &session.agreed, &session.buffers, reserve) else {
            break;
        };
        match received {
            Received::End => break,
            Received::Refused(request, refusal) => session.check_reply(&request, Answer::Failed(refusal)),
            Received::Work(request, payload) => {
                assert!(reserved >= Some(request.payload()) && reserved <= Some(SIZE as usize));
                let bytes = payload.as_deref().map_or(&[][..], |buffer| &buffer[..request.payload()]);
                session.perform(&request, bytes);
            }
        }
    }
    assert!(storage.snapshot() == session.model, "the device differs from the model");
}

struct Session {
    agreed: Agreed,
    buffers: Buffers,
    model: Vec<u8>,
}

impl Session {
    fn perform(&mut self, request: &Request, payload: &[u8]) {
        let driver = self.agreed.export.driver.clone();
        let Some(change) = perform::change(request, payload) else {
            let answer = perform::look(&driver, request, &self.buffers);
            return self.check_reply(request, answer);
        };
        let (sender, receiver) = channel();
        driver.submit(change, Box::new(move |result| sender.send(result).expect("the receiver waits")));
        let result = receiver.try_recv().expect("without a backup nothing is parked");
        if result.is_ok() {
            let place = &mut self.model[request.offset as usize..][..request.length as usize];
            match request.command {
                command::WRITE => place.copy_from_slice(payload),
                command::WRITE_ZEROES => place.fill(0),
                // Memory keeps what is discarded.
                _ => {}
            }
        }
        self.check_reply(request, perform::outcome(&result));
    }

    fn check_reply(&self, request: &Request, answer: Answer) {
        let reply = Reply::new(&self.agreed, request, answer, 0);
        let bytes = reply.parts().concat();
        assert_eq!(bytes.len(), reply.len());
        let expected = || &self.model[request.offset as usize..][..request.length as usize];
        if let Ok((header, data)) = SimpleReply::read_from_prefix(&bytes)
            && header.magic.get() == SIMPLE_REPLY_MAGIC
        {
            assert_eq!(header.cookie.get(), request.cookie);
            assert!(!self.agreed.structured || header.error.get() == 0 && request.command != command::READ);
            let reads = request.command == command::READ && header.error.get() == 0;
            assert!(data == if reads { expected() } else { &[] });
            return;
        }
        let (header, data) = ChunkHeader::read_from_prefix(&bytes).expect("a reply of one form or the other");
        assert!(self.agreed.structured);
        assert_eq!((header.magic.get(), header.flags.get()), (STRUCTURED_REPLY_MAGIC, chunk::DONE));
        assert_eq!((header.cookie.get(), header.length.get() as usize), (request.cookie, data.len()));
        match header.kind.get() {
            chunk::NONE => assert_eq!((request.command, request.length), (command::READ, 0)),
            chunk::OFFSET_DATA => assert!(data[..8] == request.offset.to_be_bytes() && data[8..] == *expected()),
            chunk::BLOCK_STATUS => {
                let extents = <[BlockDescriptor]>::ref_from_bytes(&data[4..]).expect("whole descriptors");
                let sum: u64 = extents.iter().map(|extent| u64::from(extent.length.get())).sum();
                assert!(sum <= u64::from(request.length) && extents.iter().all(|extent| extent.length.get() > 0));
                assert!(!extents.is_empty());
            }
            chunk::ERROR => assert!(data.len() >= 6 && std::str::from_utf8(&data[6..]).is_ok()),
            other => panic!("a chunk of type {other}"),
        }
    }
}

fn export(name: &str, read_only: bool) -> (Arc<Export>, Arc<MemoryStorage>) {
    let storage = Arc::new(MemoryStorage::new(SIZE));
    (Arc::new(Export::new(name, Driver::new(storage.clone()), read_only)), storage)
}

/// A client that has its say whatever it is answered.
struct Script<'a> {
    says: &'a [u8],
    /// The most bytes that arrive at once.
    gulp: usize,
    said: Vec<u8>,
}

impl<'a> Script<'a> {
    fn new(says: &'a [u8], gulp: usize) -> Self {
        Self { says, gulp, said: Vec::new() }
    }
}

impl Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.gulp);
        self.says.read(&mut buffer[..count])
    }
}

impl Write for Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.said.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
