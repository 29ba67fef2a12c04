//! One descriptor of `/dev/fuse`: requests are read from it, and answered on it. Knows nothing of what they mean.
//!
//! A request must be answered on the descriptor that it was read from, or on a duplicate: each clone has its own list of
//! the requests that it handed out.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use blockcow_engine::buffer::AlignedBuf;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use zerocopy::{Immutable, IntoBytes};

use super::wire::{MIN_READ_BUFFER, NOTIFY_RESEND, OutHeader, WRITE_DATA};

/// The most bytes of one read or write: what the kernel puts into a request at most, 256 pages.
pub const MAX_TRANSFER: usize = 1 << 20;

const DEVICE: &str = "/dev/fuse";
const FUSE_DEV_IOC_CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);

/// A descriptor of a FUSE connection.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Takes over a descriptor of a connection.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Opens the device; it belongs to no connection yet.
    pub fn open() -> rustix::io::Result<OwnedFd> {
        rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    }

    /// Another descriptor of the same connection; with its own list of requests where the device may be opened.
    pub fn another(&self) -> rustix::io::Result<Self> {
        match self.clone_device() {
            Ok(channel) => Ok(channel),
            Err(_) => Ok(Self(rustix::io::fcntl_dupfd_cloexec(&self.0, 0)?)),
        }
    }

    fn clone_device(&self) -> rustix::io::Result<Self> {
        use std::os::fd::AsRawFd;
        let fresh = Self::open()?;
        let number = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32 from the pointer, the number of a descriptor, and writes nothing.
        unsafe { rustix::ioctl::ioctl(&fresh, rustix::ioctl::Setter::<FUSE_DEV_IOC_CLONE, u32>::new(number)) }?;
        Ok(Self(fresh))
    }

    /// Waits for a request; its length.
    pub fn read(&self, buffer: &mut RequestBuffer) -> rustix::io::Result<usize> {
        rustix::io::read(&self.0, buffer.bytes())
    }

    /// Asks the kernel to send again all that was read from any descriptor of the connection and not answered.
    pub fn resend(&self) -> rustix::io::Result<()> {
        self.send(NOTIFY_RESEND, 0, &[])
    }

    fn send(&self, error: i32, unique: u64, body: &[u8]) -> rustix::io::Result<()> {
        let header = OutHeader { len: (size_of::<OutHeader>() + body.len()) as u32, error, unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        retry_on_intr(|| rustix::io::writev(&self.0, &parts)).map(drop)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The duty to answer one request. Dropped without an answer, as when a handler panics, it answers EIO: no program waits
/// for ever.
pub struct Reply {
    channel: Arc<Channel>,
    unique: u64,
    answered: bool,
}

impl Reply {
    /// The reply to the request of this number.
    pub fn new(channel: &Arc<Channel>, unique: u64) -> Self {
        Self { channel: channel.clone(), unique, answered: false }
    }

    /// Done, nothing to tell.
    pub fn done(self) {
        self.answer(0, &[]);
    }

    /// Done, with bytes that were asked for.
    pub fn bytes(self, bytes: &[u8]) {
        self.answer(0, bytes);
    }

    /// Done, with a structure.
    pub fn body<T: IntoBytes + Immutable>(self, body: &T) {
        self.answer(0, body.as_bytes());
    }

    /// Failed, with an error number.
    pub fn error(self, errno: Errno) {
        self.answer(-errno.raw_os_error(), &[]);
    }

    /// The request is one that takes no answer.
    pub fn none(mut self) {
        self.answered = true;
    }

    fn answer(mut self, error: i32, body: &[u8]) {
        self.answered = true;
        match self.channel.send(error, self.unique, body) {
            // The program that waited for it was killed, or the file was unmounted by force.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => {}
            Err(refused) => {
                eprintln!("blockcow: the kernel refused the answer to a FUSE request: {}", io::Error::from(refused));
                // What it refused it still waits for.
                let _ = self.channel.send(-Errno::IO.raw_os_error(), self.unique, &[]);
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            // If this fails as well the connection is gone.
            let _ = self.channel.send(-Errno::IO.raw_os_error(), self.unique, &[]);
        }
    }
}

/// Where a request is read to: the bytes of a write begin on a page, so that they go to the device without a copy.
pub struct RequestBuffer {
    memory: AlignedBuf,
    start: usize,
}

impl RequestBuffer {
    /// A buffer whose pages are in memory and stay there: a process that dies while the kernel fills one would fail the
    /// request otherwise.
    pub fn new() -> Self {
        let page = rustix::param::page_size();
        let mut memory = AlignedBuf::new(page + MAX_TRANSFER.max(MIN_READ_BUFFER));
        // Faulted in even where locking is not allowed.
        memory.fill(0);
        // SAFETY: the range is the buffer's own memory; locking changes nothing in it, and freeing it unlocks it.
        let locked = unsafe { rustix::mm::mlock(memory.as_mut_ptr().cast(), memory.len()) };
        // Beyond the limit of this user they are there all the same, and only memory pressure takes them.
        let _ = locked;
        Self { start: page - WRITE_DATA, memory }
    }

    /// All of it: header, structure, and data that begin on a page.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}
