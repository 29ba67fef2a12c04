//! The NBD server: exports in front of drivers, listening sockets, and the life of connections.
//!
//! Speaks fixed newstyle without TLS: whoever can reach the socket can read and write the device, so it belongs on a unix
//! socket or on the loopback address. All changes go through `Driver::submit`, so no thread ever waits for a backup.

mod acceptor;
mod budget;
mod buffers;
mod connection;
mod export;
#[doc(hidden)]
pub mod fuzzing;
mod guests;
mod inbox;
mod intake;
mod lookout;
mod negotiation;
mod option;
mod outbox;
mod pace;
mod perform;
mod reply;
mod request;
mod socket;
mod turns;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blockcow_engine::error::{Error, ErrorKind, Result};
use parking_lot::Mutex;

pub use export::Export;

use acceptor::Acceptor;
use connection::Connection;
use guests::{Guest, Guests};
use negotiation::negotiate;
use socket::{Hurried, Socket};

use super::protocol::MAX_STRING;

/// Connections at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to agree on an export.
const NEGOTIATION: Duration = Duration::from_secs(10);

/// Serves devices to NBD clients, until it is closed.
pub struct Server {
    host: Arc<Host>,
    acceptors: Mutex<Vec<Acceptor>>,
}

/// What all connections share.
struct Host {
    /// The first is also the default export, whose name is empty. None when the server is closed.
    exports: Mutex<Arc<[Arc<Export>]>>,
    guests: Arc<Guests>,
}

impl Server {
    /// Serves `exports`; nobody is listening yet.
    ///
    /// # Errors
    /// `Invalid` if there are none, two have the same name, or a name is longer than the protocol allows.
    pub fn new(exports: Vec<Export>) -> Result<Self> {
        let invalid = |reason: String| Err(Error::new(ErrorKind::Invalid, "serve by NBD", reason));
        if exports.is_empty() {
            return invalid("there is no device to serve".into());
        }
        for (index, export) in exports.iter().enumerate() {
            if export.name.len() > MAX_STRING {
                return invalid(format!("an export's name has {} bytes, more than {MAX_STRING}", export.name.len()));
            }
            if exports[..index].iter().any(|other| other.name == export.name) {
                return invalid(format!("two exports have the name {:?}; give each its own", export.name));
            }
        }
        let exports = Mutex::new(exports.into_iter().map(Arc::new).collect());
        let host = Arc::new(Host { exports, guests: Guests::new(MAX_CONNECTIONS) });
        Ok(Self { host, acceptors: Mutex::new(Vec::new()) })
    }

    /// Accepts clients from a listening socket, on a thread of its own.
    ///
    /// # Errors
    /// `Invalid` if it is no listening stream socket; `State` if no thread can be started, or the server is closed.
    pub fn serve(&self, listener: OwnedFd) -> Result<()> {
        let mut acceptors = self.acceptors.lock();
        if self.host.guests.closed() {
            return Err(Error::new(ErrorKind::State, "serve by NBD", "the server is closed"));
        }
        let host = self.host.clone();
        acceptors.push(Acceptor::start(listener, move |socket| host.welcome(socket))?);
        Ok(())
    }

    /// Serves one client on a connected socket.
    pub fn attach(&self, socket: OwnedFd) {
        self.host.welcome(Socket::new(socket));
    }

    /// How many clients there are, those that still negotiate included.
    pub fn connections(&self) -> usize {
        self.host.guests.count()
    }

    /// Accepts nobody any more and ends all connections: requests that were received are still done and answered, for at
    /// most `patience`; then the sockets are cut. Lets go of the devices, but for requests that a backup suspends still.
    pub fn close(&self, patience: Duration) {
        self.host.guests.close();
        // An acceptor that is dropped has ended.
        self.acceptors.lock().clear();
        self.host.guests.leave_by(Instant::now() + patience);
        *self.host.exports.lock() = Arc::new([]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Host {
    /// Gives a client a thread, or turns it away.
    fn welcome(self: &Arc<Self>, socket: Socket) {
        let Some(guest) = self.guests.admit(socket) else { return };
        let host = self.clone();
        // Without a thread the guest is dropped, which closes its socket.
        let _ = thread::Builder::new().name("blockcow-nbd".into()).spawn(move || host.entertain(guest));
    }

    fn entertain(&self, guest: Guest) {
        guest.socket().prepare();
        let mut stream = Hurried::new(guest.socket(), Instant::now() + NEGOTIATION);
        let exports = self.exports.lock().clone();
        // Whatever went wrong, the client was told what the protocol has for it; the socket closes with the guest.
        let Ok(Some(agreed)) = negotiate(&mut stream, &exports) else { return };
        drop(exports);
        if guest.socket().unhurried().is_ok() {
            Connection::new(guest, agreed).run();
        }
    }
}
