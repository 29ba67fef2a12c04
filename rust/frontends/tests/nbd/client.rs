//! A client that says exactly what a test wants, well-formed or not. It waits for at most `PATIENCE`.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use blockcow_frontends::nbd::protocol::{
    self, BASE_ALLOCATION, BlockDescriptor, ChunkHeader, Greeting, InfoExport, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    OptionHeader, OptionReply, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, chunk, command,
    handshake, info, option, reply,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::rig::PATIENCE;

pub struct Client {
    pub stream: UnixStream,
    next_cookie: u64,
}

/// A chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub cookie: u64,
    pub flags: u16,
    pub kind: u16,
    pub data: Vec<u8>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, next_cookie: 1 }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends what the server may not care to receive.
    pub fn send_if_heard(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    }

    pub fn receive<T: FromZeros + FromBytes + IntoBytes>(&mut self) -> T {
        let mut value = T::new_zeroed();
        self.stream.read_exact(value.as_mut_bytes()).unwrap();
        value
    }

    pub fn receive_bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server has closed the connection, and said nothing more.
    pub fn assert_ended(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            // A unix socket that is closed before it was read.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(rest.is_empty(), "{} bytes came before the end: {rest:?}", rest.len());
    }

    // Negotiation.

    pub fn greet_with(&mut self, flags: u32) {
        let greeting: Greeting = self.receive();
        assert_eq!(greeting.magic.get(), protocol::NBD_MAGIC);
        assert_eq!(greeting.option_magic.get(), OPTION_MAGIC);
        assert_eq!(greeting.flags.get(), handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        self.send(&flags.to_be_bytes());
    }

    pub fn greet(&mut self) {
        self.greet_with(u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES));
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let header =
            OptionHeader { magic: OPTION_MAGIC.into(), option: option.into(), length: (data.len() as u32).into() };
        self.send(&[header.as_bytes(), data].concat());
    }

    /// The next reply to `option`: its type and data.
    pub fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let header: OptionReply = self.receive();
        assert_eq!((header.magic.get(), header.option.get()), (OPTION_REPLY_MAGIC, option));
        (header.reply.get(), self.receive_bytes(header.length.get() as usize))
    }

    /// All replies to `option`, up to its acknowledgement or error.
    pub fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.option(option, data);
        let mut replies = Vec::new();
        loop {
            let next = self.option_reply(option);
            let last = next.0 == reply::ACK || next.0 & reply::ERROR != 0;
            replies.push(next);
            if last {
                return replies;
            }
        }
    }

    /// The error with which the server refuses an option, with a message for people.
    pub fn refusal(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.ask(option, data);
        let [(error, message)] = &replies[..] else { panic!("{replies:?}") };
        assert!(error & reply::ERROR != 0, "{error:#x}");
        assert!(!std::str::from_utf8(message).unwrap().is_empty());
        *error
    }

    /// Chooses an export; its size and flags.
    pub fn go(&mut self, name: &str) -> (u64, u16) {
        let replies = self.ask(option::GO, &wanted(name, &[]));
        assert_eq!(replies.last().unwrap().0, reply::ACK, "{replies:?}");
        let about = replies.iter().find(|(_, data)| data.starts_with(&info::EXPORT.to_be_bytes())).unwrap();
        let about = InfoExport::read_from_bytes(&about.1).unwrap();
        (about.size.get(), about.flags.get())
    }

    pub fn structured_replies(&mut self) {
        assert_eq!(self.ask(option::STRUCTURED_REPLY, &[]), [(reply::ACK, vec![])]);
    }

    pub fn set_allocation(&mut self, name: &str) {
        let replies = self.ask(option::SET_META_CONTEXT, &contexts(name, &[BASE_ALLOCATION]));
        assert_eq!(replies.len(), 2, "{replies:?}");
        assert_eq!(replies[0].1[4..], *BASE_ALLOCATION.as_bytes());
    }

    // Transmission.

    /// Sends a request, without the data of a write; returns its cookie.
    pub fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u64 {
        let cookie = self.next_cookie * 0x0101_0101_0101;
        self.next_cookie += 1;
        let request = protocol::Request {
            magic: REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            length: length.into(),
        };
        self.send(request.as_bytes());
        cookie
    }

    /// The next simple reply: cookie and error.
    pub fn simple_reply(&mut self) -> (u64, u32) {
        let header: SimpleReply = self.receive();
        assert_eq!(header.magic.get(), SIMPLE_REPLY_MAGIC);
        (header.cookie.get(), header.error.get())
    }

    /// The next chunk of a structured reply.
    pub fn chunk(&mut self) -> Chunk {
        let header: ChunkHeader = self.receive();
        assert_eq!(header.magic.get(), STRUCTURED_REPLY_MAGIC);
        let data = self.receive_bytes(header.length.get() as usize);
        Chunk { cookie: header.cookie.get(), flags: header.flags.get(), kind: header.kind.get(), data }
    }

    /// The next reply of either form: the cookie, and the chunk if it is structured. It must be no error.
    pub fn any_reply(&mut self) -> (u64, Option<Chunk>) {
        let magic = self.receive_bytes(4);
        if magic == SIMPLE_REPLY_MAGIC.to_be_bytes() {
            assert_eq!(self.receive_bytes(4), [0; 4]);
            return (u64::from_be_bytes(self.receive_bytes(8).try_into().unwrap()), None);
        }
        assert_eq!(magic, STRUCTURED_REPLY_MAGIC.to_be_bytes());
        let rest = self.receive_bytes(ChunkHeader::LENGTH - 4);
        let header = ChunkHeader::read_from_bytes(&[magic, rest].concat()).unwrap();
        let data = self.receive_bytes(header.length.get() as usize);
        let chunk = Chunk { cookie: header.cookie.get(), flags: header.flags.get(), kind: header.kind.get(), data };
        assert_eq!(chunk.kind & chunk::ERROR_BIT, 0, "{:?}", String::from_utf8_lossy(&chunk.data));
        (chunk.cookie, Some(chunk))
    }

    /// Makes a request that has no data either way; the error, 0 for none. Simple replies.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        let cookie = self.request(command, flags, offset, length);
        let (answered, error) = self.simple_reply();
        assert_eq!(answered, cookie);
        error
    }

    pub fn write_with(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.request(command::WRITE, flags, offset, data.len() as u32);
        self.send(data);
        let (answered, error) = self.simple_reply();
        assert_eq!(answered, cookie);
        error
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.write_with(0, offset, data), 0);
    }

    /// Reads by simple replies.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.call(command::READ, 0, offset, length), 0);
        self.receive_bytes(length as usize)
    }

    /// The extents of a range, by structured replies: length and state.
    pub fn status(&mut self, flags: u16, offset: u64, length: u32) -> Vec<(u64, u32)> {
        let cookie = self.request(command::BLOCK_STATUS, flags, offset, length);
        let chunk = self.chunk();
        assert_eq!((chunk.cookie, chunk.flags, chunk.kind), (cookie, chunk::DONE, chunk::BLOCK_STATUS));
        let extents = <[BlockDescriptor]>::ref_from_bytes(&chunk.data[4..]).unwrap();
        extents.iter().map(|extent| (u64::from(extent.length.get()), extent.status.get())).collect()
    }

    /// Says goodbye; the server answers nothing and closes.
    pub fn goodbye(mut self) {
        self.request(command::DISC, 0, 0, 0);
        self.assert_ended();
    }
}

/// The data of `GO` and `INFO`.
pub fn wanted(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

/// The data of the options on meta contexts.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}
