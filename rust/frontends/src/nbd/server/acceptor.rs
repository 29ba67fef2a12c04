//! Accepts clients from one listening socket, on a thread of its own, until it is dropped.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockcow_engine::error::{Error, ErrorKind, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with, sockopt};

use super::socket::Socket;

/// How long to wait when the process has no descriptor left for one more client.
const BREATH: Duration = Duration::from_millis(100);

/// Accepts until it is dropped, which waits for the thread. The listening socket stays open for whoever else has it.
pub(super) struct Acceptor {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(listener: OwnedFd, welcome: impl Fn(Socket) + Send + 'static) -> Result<Self> {
        let operation = "accept NBD clients";
        let fail = |error: Errno| Error::io(ErrorKind::Invalid, operation, &error.into());
        let listens = sockopt::socket_acceptconn(&listener).map_err(fail)?;
        if !listens || sockopt::socket_type(&listener).map_err(fail)? != SocketType::STREAM {
            return Err(Error::new(
                ErrorKind::Invalid,
                operation,
                "the descriptor is not of a listening stream socket",
            ));
        }
        // Another process may share the socket and be quicker than us: then accepting must not wait.
        rustix::io::ioctl_fionbio(&listener, true).map_err(fail)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(fail)?);
        let told = stop.clone();
        let thread = thread::Builder::new()
            .name("blockcow-nbd-accept".into())
            .spawn(move || accept(&listener, &told, welcome))
            .map_err(|error| Error::io(ErrorKind::State, "start a thread", &error))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // An eventfd takes any number but the largest.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &OwnedFd, stop: &OwnedFd, welcome: impl Fn(Socket)) {
    loop {
        let mut events = [PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        if matches!(poll(&mut events, None), Err(error) if error != Errno::INTR) || !events[0].revents().is_empty() {
            return;
        }
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => welcome(Socket::new(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            // No descriptors or memory: those who are served keep theirs, and the client in line waits.
            Err(_) => {
                let breath = Timespec { tv_sec: 0, tv_nsec: i64::from(BREATH.subsec_nanos()) };
                let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&breath));
            }
        }
    }
}
