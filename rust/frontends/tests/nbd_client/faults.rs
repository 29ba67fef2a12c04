//! A server that fails, ends, stands still or talks nonsense is an error with its cause, never a panic or a long wait.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Access, Storage, Zeroing};
use blockcow_frontends::nbd::client::{NbdStorage, Patience};
use blockcow_frontends::nbd::protocol::{
    Greeting, InfoExport, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReply, Request,
    SIMPLE_REPLY_MAGIC, SimpleReply, handshake, info, option, reply, transmission,
};
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::servers::{Server, can, uri_of};

const SHORT: Duration = Duration::from_millis(300);

fn number(error: &io::Error) -> Option<i32> {
    // As the engine looks for it.
    Error::io(ErrorKind::Device, "", error).errno
}

#[test]
fn what_the_server_answers_is_the_error_and_the_storage_goes_on() {
    if !can("what_the_server_answers_is_the_error_and_the_storage_goes_on", &["nbdkit"]) {
        return;
    }
    let server = Server::nbdkit(&["--filter=error", "memory", "size=1M", "error=ENOSPC", "error-pwrite-rate=1"]);
    let storage = server.open();
    for _ in 0..3 {
        let error = storage.write_at(&[1; 4096], 0).unwrap_err();
        assert_eq!((error.kind(), number(&error)), (io::ErrorKind::StorageFull, Some(libc::ENOSPC)));
        assert!(error.to_string().contains(&server.uri().to_string()), "{error}");
    }
    storage.read_at(&mut [0; 4096], 0).unwrap();
    storage.zero(ByteRange { start: 0, end: 1 << 20 }, Zeroing::ANY).unwrap();
    storage.sync().unwrap();
}

#[test]
fn fast_zeroing_is_done_or_refused_and_space_is_kept_on_demand() {
    if !can("fast_zeroing_is_done_or_refused_and_space_is_kept_on_demand", &["nbdkit"]) {
        return;
    }
    let fast = Zeroing { keep_space: false, fast: true };
    let whole = ByteRange { start: 0, end: 1 << 20 };
    for (mode, works) in [("slow", false), ("ignore", true)] {
        let server = Server::nbdkit(&[
            "--filter=nozero",
            "memory",
            "size=1M",
            "zeromode=plugin",
            &format!("fastzeromode={mode}"),
        ]);
        let storage = server.open();
        storage.write_at(&[7; 1 << 20], 0).unwrap();
        let result = storage.zero(whole, fast);
        assert_eq!(result.is_ok(), works, "{mode}: {result:?}");
        let mut found = vec![1; 1 << 20];
        storage.read_at(&mut found, 0).unwrap();
        assert!(found.iter().all(|&byte| byte == if works { 0 } else { 7 }), "{mode}");
        if !works {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::Unsupported);
        }
    }
    let server = Server::nbdkit(&["--filter=log", "memory", "size=1M", "logfile=log"]);
    let storage = server.open();
    storage.zero(whole, Zeroing { keep_space: true, fast: false }).unwrap();
    storage.zero(whole, Zeroing::ANY).unwrap();
    storage.discard(whole).unwrap();
    let log = std::fs::read_to_string(server.path("log")).unwrap();
    let zeroes: Vec<_> = log.lines().filter(|line| line.contains(" Zero ") && line.contains("count=")).collect();
    assert!(zeroes[0].contains("trim=0") && zeroes[1].contains("trim=1"), "{log}");
    assert!(log.contains(" Trim "), "{log}");
}

#[test]
fn a_server_that_ends_is_named_and_everything_after_it_fails_with_that() {
    if !can("a_server_that_ends_is_named_and_everything_after_it_fails_with_that", &["nbdkit"]) {
        return;
    }
    let mut server = Server::nbdkit(&["--filter=delay", "memory", "size=1M", "rdelay=60"]);
    let storage = Arc::new(server.open());
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let storage = storage.clone();
            thread::spawn(move || storage.read_at(&mut [0; 4096], 0).unwrap_err())
        })
        .collect();
    storage.write_at(&[1; 4096], 0).unwrap();
    server.kill();
    for reader in readers {
        let error = reader.join().unwrap();
        assert_eq!(number(&error), Some(libc::ECONNRESET), "{error}");
    }
    let first = storage.write_at(&[1; 4096], 0).unwrap_err().to_string();
    assert!(first.contains("closed the connection") && first.contains(&server.uri().to_string()), "{first}");
    assert_eq!(storage.sync().unwrap_err().to_string(), first);
    assert_eq!(storage.next_data(0).unwrap_err().to_string(), first);
    let error = server.try_open(Access::ReadWrite).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Destination, Some(libc::ECONNREFUSED)));
    std::fs::remove_file(server.socket()).unwrap();
    assert_eq!(server.try_open(Access::ReadWrite).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_server_that_stands_still_is_given_up_after_the_silence() {
    if !can("a_server_that_stands_still_is_given_up_after_the_silence", &["nbdkit"]) {
        return;
    }
    let server = Server::nbdkit(&["memory", "size=64M"]);
    let storage = Arc::new(server.open_briefly(SHORT));
    storage.read_at(&mut [0; 4096], 0).unwrap();
    server.stop();
    // More than the sockets hold, so that senders wait as well as receivers.
    let writers: Vec<_> = (0..12)
        .map(|turn| {
            let storage = storage.clone();
            thread::spawn(move || storage.write_at(&vec![1; 4 << 20], turn * (4 << 20)).unwrap_err())
        })
        .collect();
    for writer in writers {
        let error = writer.join().unwrap();
        assert_eq!(number(&error), Some(libc::ETIMEDOUT), "{error}");
        assert!(error.to_string().contains("gives no answer"), "{error}");
    }
    assert_eq!(number(&storage.sync().unwrap_err()), Some(libc::ETIMEDOUT));
    let patience = Patience { connect: SHORT, silence: SHORT };
    let error = NbdStorage::open(&server.uri(), Access::ReadOnly, patience, ErrorKind::Device).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Device, Some(libc::ETIMEDOUT)));
}

#[test]
fn a_server_that_is_only_slow_is_waited_for() {
    if !can("a_server_that_is_only_slow_is_waited_for", &["nbdkit"]) {
        return;
    }
    // A write takes about 16 times as long as the silence that is borne, but bytes move all the time.
    let server = Server::nbdkit(&["--filter=rate", "memory", "size=1M", "rate=16M", "burstiness=1"]);
    let storage = server.open_briefly(SHORT);
    storage.write_at(&vec![1; 1 << 20], 0).unwrap();
}

/// A server that is a function: given a connection, it says what it likes.
fn strange(serve: impl Fn(UnixStream) + Send + 'static) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream);
        }
    });
    (folder, socket)
}

fn open(socket: &std::path::Path) -> Result<NbdStorage, Error> {
    let patience = Patience { connect: SHORT, silence: SHORT };
    NbdStorage::open(&uri_of(socket), Access::ReadWrite, patience, ErrorKind::Container)
}

fn greeting(flags: u16) -> Vec<u8> {
    let hello = Greeting { magic: U64::new(NBD_MAGIC), option_magic: U64::new(OPTION_MAGIC), flags: U16::new(flags) };
    hello.as_bytes().to_vec()
}

#[test]
fn what_is_no_nbd_server_is_said_to_be_none() {
    let old = [NBD_MAGIC.to_be_bytes(), 0x0000_4202_8186_1253_u64.to_be_bytes()].concat();
    let cases: [(&[u8], &str, i32); 6] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no NBD server", libc::EPROTO),
        (b"NBDMAGICnonsense", "no NBD server", libc::EPROTO),
        (&old, "before 2012", libc::EPROTO),
        (&greeting(0), "before 2012", libc::EPROTO),
        (b"", "gives no answer", libc::ETIMEDOUT),
        (b"NBDM", "gives no answer", libc::ETIMEDOUT),
    ];
    for (said, words, errno) in cases {
        let said = said.to_vec();
        let held = std::sync::Mutex::new(Vec::new());
        let (_folder, socket) = strange(move |mut stream| {
            // The client may have gone.
            let _ = stream.write_all(&said);
            held.lock().unwrap().push(stream);
        });
        let error = open(&socket).unwrap_err();
        assert_eq!((error.kind, error.errno), (ErrorKind::Container, Some(errno)), "{error}");
        assert!(error.reason.contains(words) && error.operation.contains("nbd+unix"), "{error}");
    }
}

/// Negotiates an export of 1 MiB without chunks. `None`: the client has gone.
fn negotiate(stream: &mut UnixStream) -> Option<()> {
    stream.write_all(&greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES)).ok()?;
    stream.read_exact(&mut [0; 4]).ok()?;
    loop {
        let mut header = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut header).ok()?;
        let header = OptionHeader::read_from_bytes(&header).ok()?;
        stream.read_exact(&mut vec![0; header.length.get() as usize]).ok()?;
        let mut answer = |kind: u32, data: &[u8]| {
            let reply = OptionReply {
                magic: U64::new(OPTION_REPLY_MAGIC),
                option: header.option,
                reply: U32::new(kind),
                length: U32::new(data.len() as u32),
            };
            stream.write_all(&[reply.as_bytes(), data].concat()).ok()
        };
        if header.option.get() != option::GO {
            answer(reply::ERR_UNSUP, b"")?;
            continue;
        }
        let flags = transmission::HAS_FLAGS | transmission::SEND_FLUSH;
        let export = InfoExport { info: U16::new(info::EXPORT), size: U64::new(1 << 20), flags: U16::new(flags) };
        answer(reply::INFO, export.as_bytes())?;
        answer(reply::ACK, b"")?;
        return Some(());
    }
}

fn simple_reply(cookie: u64) -> Vec<u8> {
    let reply = SimpleReply { magic: U32::new(SIMPLE_REPLY_MAGIC), error: U32::new(0), cookie: U64::new(cookie) };
    reply.as_bytes().to_vec()
}

/// Opens a storage whose server answers the first request with `answer(cookie)`, and then only listens.
fn answering(answer: impl Fn(u64) -> Vec<u8> + Send + 'static) -> (tempfile::TempDir, NbdStorage) {
    let (folder, socket) = strange(move |mut stream| {
        if negotiate(&mut stream).is_none() {
            return;
        }
        let mut request = [0; Request::LENGTH];
        if stream.read_exact(&mut request).is_ok() {
            let cookie = Request::read_from_bytes(&request).unwrap().cookie.get();
            // The client may hang up before it has read all.
            let _ = stream.write_all(&answer(cookie));
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    });
    let storage = open(&socket).unwrap();
    (folder, storage)
}

#[test]
fn nonsense_in_transmission_ends_the_use_of_the_server() {
    type Reply = fn(u64) -> Vec<u8>;
    let cases: [(Reply, &str, i32); 5] = [
        (|_| vec![7; 64], "breaks the NBD protocol", libc::EPROTO),
        (|cookie| simple_reply(cookie + 1), "was not made", libc::EPROTO),
        (|cookie| simple_reply(cookie)[..9].to_vec(), "gives no answer", libc::ETIMEDOUT),
        (|cookie| [simple_reply(cookie), vec![1; 100]].concat(), "gives no answer", libc::ETIMEDOUT),
        (|_| Vec::new(), "gives no answer", libc::ETIMEDOUT),
    ];
    for (answer, words, errno) in cases {
        let (_folder, storage) = answering(answer);
        let error = storage.read_at(&mut [0; 4096], 0).unwrap_err();
        assert_eq!(number(&error), Some(errno), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(storage.sync().unwrap_err().to_string(), error.to_string());
    }
}

#[test]
fn a_server_that_answers_others_but_not_this_one_is_given_up_too() {
    // It answers flushes and never a read; the flushes keep bytes moving.
    let (_folder, socket) = strange(|mut stream| {
        if negotiate(&mut stream).is_none() {
            return;
        }
        let mut request = [0; Request::LENGTH];
        while stream.read_exact(&mut request).is_ok() {
            let request = Request::read_from_bytes(&request).unwrap();
            if request.length.get() == 0 && stream.write_all(&simple_reply(request.cookie.get())).is_err() {
                return;
            }
        }
    });
    let storage = Arc::new(open(&socket).unwrap());
    let reader = {
        let storage = storage.clone();
        thread::spawn(move || storage.read_at(&mut [0; 4096], 0).unwrap_err())
    };
    while !reader.is_finished() && storage.sync().is_ok() {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(number(&reader.join().unwrap()), Some(libc::ETIMEDOUT));
}

#[test]
fn random_bytes_at_any_point_are_an_error() {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
    for round in 0..60 {
        let mut noise = vec![0; rng.random_range(64..4000)];
        rng.fill(&mut noise[..]);
        let (in_greeting, keep) = (round % 2 == 0, rng.random_range(0..40));
        let right = greeting(handshake::FIXED_NEWSTYLE);
        let (_folder, socket) = strange(move |mut stream| {
            if in_greeting {
                let _ = stream.write_all(&right[..right.len().min(keep)]);
            } else if negotiate(&mut stream).is_none() {
                return;
            }
            let _ = stream.write_all(&noise);
            // Closed by the end of this.
        });
        let outcome = open(&socket).map(|storage| storage.read_at(&mut [0; 4096], 0));
        assert!(!matches!(outcome, Ok(Ok(()))), "noise was taken for an answer");
    }
}
