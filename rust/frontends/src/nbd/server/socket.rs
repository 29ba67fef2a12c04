//! A connected stream socket, unix or TCP, and the two ways it is used: in a hurry, and not.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

/// What the kernel holds for us to send, so that a reply of many kilobytes goes in one call. The kernel may give less.
const SEND_BUFFER: usize = 4 << 20;

/// A connected stream socket. Many threads may use it, one at a time in each direction.
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sets what makes it quick. Nothing depends on it, and a unix socket knows of no delay to switch off.
    pub(super) fn prepare(&self) {
        let _ = sockopt::set_tcp_nodelay(&self.0, true);
        if sockopt::set_socket_send_buffer_size_force(&self.0, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&self.0, SEND_BUFFER);
        }
        // A socket inherited from a caller may be non-blocking.
        let _ = rustix::io::ioctl_fionbio(&self.0, false);
    }

    /// Ends the hurry of a negotiation.
    pub(super) fn unhurried(&self) -> rustix::io::Result<()> {
        sockopt::set_socket_timeout(&self.0, Timeout::Recv, None)?;
        sockopt::set_socket_timeout(&self.0, Timeout::Send, None)
    }

    /// Receives what is there, at least one byte unless the peer has ended.
    pub(super) fn receive(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::readv(&self.0, buffers))?)
    }

    /// Receives what is there now; `None`: nothing is.
    pub(super) fn receive_now(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
        let mut control = RecvAncillaryBuffer::default();
        match retry_on_intr(|| rustix::net::recvmsg(&self.0, buffers, &mut control, RecvFlags::DONTWAIT)) {
            Err(Errno::AGAIN) => Ok(None),
            received => Ok(Some(received?.bytes)),
        }
    }

    /// Sends some of the bytes. `now`: `WouldBlock` rather than waiting for a peer that does not read.
    pub(super) fn send(&self, buffers: &[IoSlice<'_>], now: bool) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | if now { SendFlags::DONTWAIT } else { SendFlags::empty() };
        let mut control = SendAncillaryBuffer::default();
        Ok(retry_on_intr(|| rustix::net::sendmsg(&self.0, buffers, &mut control, flags))?)
    }

    /// Receives nothing any more; what was received is still answered.
    pub(super) fn stop_receiving(&self) {
        // Fails if the peer is gone, which serves as well.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Read);
    }

    /// Ends it in both directions, and wakes whoever waits for it.
    pub(super) fn cut(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket with a deadline for all that is done with it.
pub(super) struct Hurried<'a> {
    socket: &'a Socket,
    deadline: Instant,
}

impl<'a> Hurried<'a> {
    pub(super) fn new(socket: &'a Socket, deadline: Instant) -> Self {
        Self { socket, deadline }
    }

    fn limit(&self, direction: Timeout) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel takes zero for no limit.
        let left = left.max(Duration::from_millis(1));
        Ok(sockopt::set_socket_timeout(&self.socket.0, direction, Some(left))?)
    }
}

impl Read for Hurried<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.limit(Timeout::Recv)?;
        self.socket.receive(&mut [IoSliceMut::new(buffer)])
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.limit(Timeout::Send)?;
        self.socket.send(&[IoSlice::new(bytes)], false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn whoever_says_nothing_or_reads_nothing_meets_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let socket = Socket::new(ours.into());
        let mut hurried = Hurried::new(&socket, Instant::now() + Duration::from_millis(20));
        assert!(hurried.read(&mut [0]).is_err());
        assert_eq!(hurried.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut hurried = Hurried::new(&socket, Instant::now() + Duration::from_millis(20));
        assert!(hurried.write_all(&vec![0; 64 << 20]).is_err());
    }

    #[test]
    fn one_byte_at_a_time_does_not_move_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = Socket::new(ours.into());
        theirs.write_all(&[0; 1000]).unwrap();
        let mut hurried = Hurried::new(&socket, Instant::now());
        assert_eq!(hurried.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
