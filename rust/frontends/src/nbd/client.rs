//! An NBD server's export as a storage, so that container and destination may be on another machine.
//!
//! Several connections where the server says that a flush on one covers all, else one. A server that is lost, breaks the
//! protocol or stands still for too long is given up for good, and every request from then on fails with that first cause.
//! Encryption, and taking a lost connection up again, are not done here.

pub mod answer;
mod cause;
mod connection;
pub mod handshake;
mod socket;
mod transfer;
pub mod uri;

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Access, Alignment, Storage, Zeroing, check_range};
use parking_lot::RwLock;

use self::answer::{Answer, Wanted};
pub use self::cause::Cause;
use self::connection::{Call, Connection, Failed};
use self::handshake::Agreed;
pub use self::uri::Uri;
use super::protocol::{command, flag, transmission};

/// How many connections are made where the server allows several.
const CONNECTIONS: usize = 4;
/// A flush may take so many times as long as other requests: all that a server has in memory may go to disk.
const FLUSH_PATIENCE: u32 = 10;
/// No request without data is for more bytes than this, so that a server that writes zeroes answers in time.
const MOST_WITHOUT_DATA: u64 = 32 << 20;
/// How much is asked about in one block status.
const MOST_STATUS: u64 = 1 << 30;

/// How long to wait for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection that is negotiated.
    pub connect: Duration,
    /// For anything at all to come or go on a connection while requests wait.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), silence: Duration::from_secs(60) }
    }
}

/// What makes writes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// A flush.
    ByFlush,
    /// The server knows no flush: every write says that it must be durable before its reply.
    ByFua,
    /// Nothing.
    Never,
}

/// An export in use.
#[derive(Debug)]
pub struct NbdStorage {
    uri: String,
    connections: Vec<Connection>,
    agreed: Agreed,
    patience: Duration,
    durable: Durable,
    /// Whoever reads a block to write it back with some bytes changed holds this alone; all other changes share it.
    blocks: RwLock<()>,
    first_failure: OnceLock<Cause>,
}

impl NbdStorage {
    /// Connects to a server. `role` is the kind of an error that is none of those below.
    ///
    /// # Errors
    /// `NotFound` if there is no such server or export, `Invalid` if it is to be written and is read-only.
    pub fn open(uri: &Uri, access: Access, patience: Patience, role: ErrorKind) -> Result<Self> {
        let failed = |cause: Cause| {
            let kind = if cause.errno == libc::ENOENT { ErrorKind::NotFound } else { role };
            Error::io(kind, format!("open {uri}"), &cause.into())
        };
        let until = Instant::now() + patience.connect;
        let (first, agreed) = Connection::open(uri, until, patience.silence).map_err(failed)?;
        if access != Access::ReadOnly && agreed.can(transmission::READ_ONLY) {
            let mut error = Error::new(ErrorKind::Invalid, format!("open {uri}"), "the server allows only reading it");
            error.errno = Some(libc::EROFS);
            return Err(error);
        }
        let mut connections = vec![first];
        if agreed.can(transmission::CAN_MULTI_CONN) {
            for _ in 1..CONNECTIONS {
                match Connection::open(uri, until, patience.silence) {
                    Ok((next, same)) if same == agreed => connections.push(next),
                    Ok(_) => return Err(failed(Cause::breach("a second connection finds another export"))),
                    // A server may limit their number.
                    Err(_) => break,
                }
            }
        }
        let durable = match (agreed.can(transmission::SEND_FLUSH), agreed.can(transmission::SEND_FUA)) {
            (true, _) => Durable::ByFlush,
            (false, true) => Durable::ByFua,
            (false, false) => Durable::Never,
        };
        Ok(Self {
            uri: uri.to_string(),
            connections,
            agreed,
            patience: patience.silence,
            durable,
            blocks: RwLock::new(()),
            first_failure: OnceLock::new(),
        })
    }

    /// What was negotiated.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether `sync` can do what it promises.
    pub fn can_sync(&self) -> bool {
        self.durable != Durable::Never
    }

    /// The server and the export as the connection found them; equal for two URIs that lead to one export by one way.
    pub fn identity(&self) -> String {
        format!("{} {}", self.connections[0].peer(), self.agreed.name.as_deref().unwrap_or_default())
    }

    fn can(&self, flag: u16) -> bool {
        self.agreed.can(flag)
    }

    fn minimum(&self) -> u64 {
        self.agreed.minimum.into()
    }

    /// One request on the connection that has least to do.
    fn call(&self, call: Call<'_>, wanted: Wanted<'_>) -> io::Result<()> {
        if let Some(first) = self.first_failure.get() {
            return Err(first.clone().into());
        }
        let least = self.connections.iter().min_by_key(|connection| connection.load());
        let connection = least.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        match connection.call(call, Answer::new(wanted, self.agreed.structured)) {
            Ok(()) => Ok(()),
            Err(Failed::Request(cause)) => Err(cause.of(&self.uri).into()),
            Err(Failed::Connection(cause)) => Err(self.give_up(&cause).into()),
        }
    }

    /// What became of requests is not known: nothing that follows could be relied on. Returns the first cause.
    fn give_up(&self, cause: &Cause) -> Cause {
        let first = self.first_failure.get_or_init(|| cause.clone().of(&self.uri));
        for connection in &self.connections {
            connection.fail(cause.clone());
        }
        first.clone()
    }

    fn plain(&self, command: u16, flags: u16, range: ByteRange) -> io::Result<()> {
        let call = Call {
            command,
            flags,
            offset: range.start,
            length: range.len() as u32,
            payload: b"",
            patience: self.patience,
        };
        self.call(call, Wanted::Outcome)
    }

    /// The flag that makes changes durable where no flush can.
    fn fua(&self) -> u16 {
        if self.durable == Durable::ByFua { flag::FUA } else { 0 }
    }
}

impl Storage for NbdStorage {
    fn size(&self) -> u64 {
        self.agreed.size
    }

    fn alignment(&self) -> Alignment {
        Alignment { offset: self.minimum(), memory: 1 }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size(), offset, buf.len() as u64)?;
        self.read_range(buf, range)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let range = check_range(self.size(), offset, buf.len() as u64)?;
        self.write_range(buf, range)
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let range = check_range(self.size(), range.start, range.len())?;
        self.zero_range(range, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        let inner = check_range(self.size(), range.start, range.len())?.shrink_to(self.minimum());
        if !self.can(transmission::SEND_TRIM) {
            return Ok(());
        }
        let _shared = self.blocks.read();
        for piece in transfer::pieces(inner, MOST_WITHOUT_DATA) {
            match self.plain(command::TRIM, self.fua(), piece) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
                result => result?,
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match self.durable {
            Durable::ByFlush => {
                let patience = self.patience * FLUSH_PATIENCE;
                let call = Call { command: command::FLUSH, flags: 0, offset: 0, length: 0, payload: b"", patience };
                self.call(call, Wanted::Outcome)
            }
            Durable::ByFua => Ok(()),
            Durable::Never => {
                let why = "it offers neither FLUSH nor FUA, so nothing tells when data are safe; use another server";
                Err(Cause::new(rustix::io::Errno::OPNOTSUPP, why).of(&self.uri).into())
            }
        }
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        self.find_data(from)
    }
}
