//! An export: one file that programs reach by its path, from the mount to the end, through the deaths of its servers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blockcow_engine::driver::Driver;
use blockcow_engine::error::{Error, ErrorKind, Result};
use rustix::fs::FileType;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::channel::{Channel, Reply, RequestBuffer};
use super::file::File;
use super::init::{Note, agree};
use super::mount::{Mounting, unmount};
use super::session::Session;
use super::wire::{InHeader, opcode};

/// For so long a file that was closed, or a loop device that was detached, may still count as open.
const CLOSED_JUST_NOW: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// How a file is exported.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads that serve it, each with its own descriptor.
    pub threads: usize,
    /// Whether other users than the one who mounts reach it, as far as its permission bits let them. Root always may
    /// decide so; for others the machine's settings do, and where they do not allow it, it is left out.
    pub allow_other: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// A mounted file in front of a driver.
pub struct Export {
    note: Note,
    channels: Vec<Arc<Channel>>,
    session: Arc<Session>,
}

impl Export {
    /// Mounts the device as a file on the regular file `mountpoint`, whose permission bits and owner it takes, and serves
    /// it.
    ///
    /// # Errors
    /// `Invalid` if the mount point is no regular file or no thread is asked for; `NotFound` without FUSE; `Device` with
    /// the kernel's reason.
    pub fn mount(driver: Arc<Driver>, mountpoint: &Path, options: Options) -> Result<Self> {
        if options.threads == 0 {
            return Err(Error::new(ErrorKind::Invalid, "serve a file by FUSE", "it takes at least one thread"));
        }
        let mut note = describe(&driver, mountpoint, options.read_only)?;
        let Options { read_only, allow_other, .. } = options;
        let mounting = Mounting { mountpoint, read_only, allow_other };
        let first = Arc::new(Channel::new(mounting.mount(note.mode)?));
        let served = (|| {
            (note.minor, note.resend) = greet(&first)?;
            let another = |_| first.another().map(Arc::new).map_err(|error| descriptor_error(error, "open another"));
            let mut channels = vec![first.clone()];
            channels.extend((1..options.threads).map(another).collect::<Result<Vec<_>>>()?);
            let session = Session::start(&Arc::new(File::new(driver, &note)), &channels)?;
            Ok(Self { note, channels, session })
        })();
        if served.is_err() {
            // The error that led here is the one to tell.
            let _ = unmount(mountpoint);
        }
        served
    }

    /// Serves a file that a process served which is gone by now: what was in flight is done again. The descriptors are
    /// those of [`Export::descriptors`], kept open in the meantime.
    ///
    /// # Errors
    /// `State` if the kernel cannot send requests again: then nobody can take over, and closing all the descriptors ends
    /// the connection with errors for programs, not with a wait that never ends. `Invalid` if the note is damaged or the
    /// device another one.
    pub fn adopt(driver: Arc<Driver>, descriptors: Vec<OwnedFd>, note: &str) -> Result<Self> {
        let operation = "take over a FUSE connection";
        let note = Note::parse(note)?;
        if note.size != driver.size() {
            let reason = format!("the file has {} bytes, the device {}", note.size, driver.size());
            return Err(Error::new(ErrorKind::Invalid, operation, reason));
        }
        let channels: Vec<_> = descriptors.into_iter().map(|descriptor| Arc::new(Channel::new(descriptor))).collect();
        let Some(first) = channels.first() else {
            return Err(Error::new(ErrorKind::Invalid, operation, "it needs at least one descriptor"));
        };
        if !note.resend {
            let reason = "this kernel cannot send again what was in flight (Linux 6.9 can); close its descriptors, detach, \
                          and attach again";
            return Err(Error::new(ErrorKind::State, operation, reason));
        }
        match first.resend() {
            // Unmounted in the meantime: the threads will find that out.
            Ok(()) | Err(Errno::NODEV | Errno::PERM | Errno::CONNABORTED | Errno::NOTCONN) => {}
            Err(error) => return Err(descriptor_error(error, operation)),
        }
        let session = Session::start(&Arc::new(File::new(driver, &note)), &channels)?;
        Ok(Self { note, channels, session })
    }

    /// The descriptors of the connection, which lives as long as one of them is open anywhere. Whoever wants to adopt it
    /// keeps all of them: closing one ends the requests that were read from it.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.channels.iter().map(|channel| channel.as_fd())
    }

    /// What a successor must know beside the descriptors.
    pub fn note(&self) -> String {
        self.note.text()
    }

    /// Whether the kernel can send again what was in flight when a server dies.
    pub fn can_resend(&self) -> bool {
        self.note.resend
    }

    /// Where the file is.
    pub fn mountpoint(&self) -> PathBuf {
        PathBuf::from(&self.note.mountpoint)
    }

    /// Unmounts the file if that has not been done, and waits until its threads have ended.
    ///
    /// # Errors
    /// `Busy` while the file is open somewhere: it goes on then. `Timeout` if a request does not end.
    pub fn close(&self, timeout: Duration) -> Result<()> {
        unmount_within(&self.mountpoint(), timeout.min(CLOSED_JUST_NOW))?;
        if self.session.wait(timeout) {
            return Ok(());
        }
        let reason = format!("its requests did not end within {timeout:?}; is the device hanging?");
        Err(Error::new(ErrorKind::Timeout, format!("unmount {}", self.note.mountpoint), reason))
    }
}

fn unmount_within(mountpoint: &Path, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        match unmount(mountpoint) {
            Err(error) if error.kind == ErrorKind::Busy && Instant::now() < until => thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

fn describe(driver: &Driver, mountpoint: &Path, read_only: bool) -> Result<Note> {
    let operation = format!("mount a file on {}", mountpoint.display());
    let stat = rustix::fs::stat(mountpoint).map_err(|error| {
        let kind = if error == Errno::NOENT { ErrorKind::NotFound } else { ErrorKind::Device };
        Error::io(kind, &*operation, &error.into())
    })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::new(ErrorKind::Invalid, operation, "the place must be a regular file; create an empty one"));
    }
    let whole = mountpoint.canonicalize().map_err(|error| Error::io(ErrorKind::Device, &*operation, &error))?;
    let Some(mountpoint) = whole.to_str().map(str::to_owned) else {
        return Err(Error::new(ErrorKind::Invalid, operation, "its path is no UTF-8"));
    };
    let mode = stat.st_mode & if read_only { 0o555 } else { 0o777 };
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    Ok(Note { schema: 1, minor: 0, resend: false, size: driver.size(), mountpoint, read_only, mode, uid, gid })
}

/// The first request of a connection. What was agreed: the minor version, and whether requests can be sent again.
fn greet(channel: &Arc<Channel>) -> Result<(u32, bool)> {
    let operation = "begin a FUSE connection";
    let mut buffer = RequestBuffer::new();
    loop {
        let length = match channel.read(&mut buffer) {
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            length => length.map_err(|error| descriptor_error(error, operation))?,
        };
        let bytes = &buffer.bytes()[..length];
        let Ok((header, body)) = InHeader::read_from_prefix(bytes) else {
            return Err(Error::new(ErrorKind::Device, operation, "the kernel's first request is cut short"));
        };
        let reply = Reply::new(channel, header.unique);
        if header.opcode != opcode::INIT {
            reply.error(Errno::IO);
            continue;
        }
        let (answer, minor, resend) = agree(body)?;
        reply.body(&answer);
        return Ok((minor, resend));
    }
}

fn descriptor_error(error: Errno, operation: &str) -> Error {
    Error::io(ErrorKind::Device, operation, &error.into())
}
