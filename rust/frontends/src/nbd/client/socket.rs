//! A socket to an NBD server: every wait on it has an end, and it remembers when bytes last moved.

use std::io::{self, IoSlice};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};

use super::cause::Cause;
use super::uri::Place;

/// A host from which nothing has come for this long is asked whether it is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMES: u32 = 3;
/// How soon a unix socket whose server is behind with accepting is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// A connected socket that never blocks by itself.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Where it leads, so that two ways to one server can be recognised.
    peer: String,
    born: Instant,
    /// When bytes last moved, in milliseconds since `born`.
    progress: AtomicU64,
}

impl Socket {
    /// Connects, at the latest at `until`. `silence` is how long the kernel may send in vain before it gives up.
    ///
    /// # Errors
    /// What the system says, or that there was no answer in time.
    pub fn connect(place: &Place, until: Instant, silence: Duration) -> Result<Self, Cause> {
        let (fd, peer) = match place {
            Place::Tcp(host, port) => connect_tcp(host, *port, until, silence)?,
            Place::Unix(path) => connect_unix(path, until)?,
        };
        Ok(Self { fd, peer, born: Instant::now(), progress: AtomicU64::new(0) })
    }

    /// Where it leads.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// When bytes last moved, either way.
    pub fn last_progress(&self) -> Instant {
        self.born + Duration::from_millis(self.progress.load(Ordering::Relaxed))
    }

    fn moved(&self) {
        self.progress.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Sends both parts. `until` is asked before every wait.
    ///
    /// # Errors
    /// The connection is lost, or time is up; then how much was sent is not known.
    pub fn send(&self, head: &[u8], body: &[u8], until: &dyn Fn() -> Instant) -> Result<(), Cause> {
        let (total, mut sent) = (head.len() + body.len(), 0);
        while sent < total {
            let parts =
                [IoSlice::new(&head[sent.min(head.len())..]), IoSlice::new(&body[sent.saturating_sub(head.len())..])];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.fd, &parts, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => {
                    sent += count;
                    self.moved();
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(closed()),
                Err(error) => return Err(Cause::os("sending to it failed", error)),
            }
        }
        Ok(())
    }

    /// Receives at least one byte; returns how many. `until` is asked before every wait.
    ///
    /// # Errors
    /// The connection is lost, or time is up.
    pub fn receive(&self, buf: &mut [u8], until: &dyn Fn() -> Instant) -> Result<usize, Cause> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Err(closed()),
                Ok((count, _)) => {
                    self.moved();
                    return Ok(count);
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, until)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Cause::os("receiving from it failed", error)),
            }
        }
    }

    /// Ends the connection: every wait on it, in whichever thread, is over at once.
    pub fn hang_up(&self) {
        // It may be gone already.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    fn wait(&self, for_what: PollFlags, until: &dyn Fn() -> Instant) -> Result<(), Cause> {
        loop {
            let left = until().saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(silent());
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(&self.fd, for_what)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Cause::os("waiting for it failed", error)),
            }
        }
    }
}

/// The server did not answer, or did not take what was sent, in time.
pub fn silent() -> Cause {
    Cause::new(Errno::TIMEDOUT, "it gives no answer; the server or the way to it stands still")
}

fn closed() -> Cause {
    Cause::new(Errno::CONNRESET, "it closed the connection; the server has ended, or its log says why")
}

fn connect_tcp(host: &str, port: u16, until: Instant, silence: Duration) -> Result<(OwnedFd, String), Cause> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| Cause::new(Errno::HOSTUNREACH, format!("the host {host} cannot be found: {error}")))?;
    let mut last = Cause::new(Errno::HOSTUNREACH, format!("the host {host} has no address"));
    for address in addresses {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                let fd = OwnedFd::from(stream);
                tune(&fd, silence).map_err(|error| Cause::os("setting up the socket failed", error))?;
                return Ok((fd, address.to_string()));
            }
            Err(error) => {
                let number = error.raw_os_error().map_or(Errno::TIMEDOUT, Errno::from_raw_os_error);
                last = Cause::os(&format!("cannot connect to {address}"), number);
            }
        }
    }
    Err(last)
}

/// Requests go at once, and a host that is gone is noticed even while nobody waits for it.
fn tune(fd: &OwnedFd, silence: Duration) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_TIMES)?;
    sockopt::set_tcp_user_timeout(fd, u32::try_from(silence.as_millis()).unwrap_or(u32::MAX))
}

fn connect_unix(path: &Path, until: Instant) -> Result<(OwnedFd, String), Cause> {
    let failed = |error| Cause::os(&format!("cannot connect to the socket {}", path.display()), error);
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    loop {
        match rustix::net::connect(fd.as_fd(), &address) {
            Ok(()) => break,
            // The server's queue is full.
            Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(RETRY),
            Err(Errno::AGAIN) => return Err(failed(Errno::TIMEDOUT)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok((fd, identity(path).unwrap_or_else(|_| path.display().to_string())))
}

fn identity(path: &Path) -> io::Result<String> {
    let found = std::fs::metadata(path)?;
    Ok(format!("unix {}:{}", found.dev(), found.ino()))
}
