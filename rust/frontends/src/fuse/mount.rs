//! Mounting and unmounting: by the system call where this process may, by `fusermount3` where it may not.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use blockcow_engine::error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::channel::{Channel, MAX_TRANSFER};

const HELPER: &str = "fusermount3";
/// The descriptor on which the helper finds the socket for its answer: its stdin.
const HELPER_SOCKET: &str = "0";

/// How a file is mounted.
pub struct Mounting<'a> {
    /// A regular file.
    pub mountpoint: &'a Path,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether other users reach it, as far as its permission bits let them.
    pub allow_other: bool,
}

impl Mounting<'_> {
    /// Mounts; the connection's first descriptor.
    ///
    /// # Errors
    /// `NotFound` without FUSE in the kernel or without the helper that an ordinary user needs; `Device` with the reason
    /// otherwise.
    pub fn mount(&self, mode: u32) -> Result<OwnedFd> {
        if !rustix::process::geteuid().is_root() {
            return self.by_helper();
        }
        let device = Channel::open().map_err(|error| {
            let kind = if error == Errno::NOENT { ErrorKind::NotFound } else { ErrorKind::Device };
            Error::io(kind, "open /dev/fuse", &error.into()).hint("load the kernel's module: modprobe fuse")
        })?;
        match self.by_system_call(&device, mode) {
            Ok(()) => Ok(device),
            // Root of a container, without the capability.
            Err(Errno::PERM) if program(HELPER).is_some() => self.by_helper(),
            Err(error) => Err(self.failed(&io::Error::from(error))),
        }
    }

    fn by_system_call(&self, device: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mut options = format!(
            "fd={},rootmode={:o},user_id={uid},group_id={gid},default_permissions,max_read={MAX_TRANSFER}",
            device.as_raw_fd(),
            libc::S_IFREG | mode,
        );
        if self.allow_other {
            options.push_str(",allow_other");
        }
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
        flags.set(MountFlags::RDONLY, self.read_only);
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("blockcow", self.mountpoint, "fuse.blockcow", flags, options.as_c_str())
    }

    /// Other users only where the machine's settings allow it.
    fn by_helper(&self) -> Result<OwnedFd> {
        if self.allow_other
            && let Ok(device) = self.ask_helper(true)
        {
            return Ok(device);
        }
        self.ask_helper(false)
    }

    fn ask_helper(&self, allow_other: bool) -> Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| self.failed(&error))?;
        let mut options = format!("fsname=blockcow,subtype=blockcow,default_permissions,max_read={MAX_TRANSFER}");
        options.push_str(if self.read_only { ",ro" } else { ",rw" });
        if allow_other {
            options.push_str(",allow_other");
        }
        let socket = Stdio::from(OwnedFd::from(theirs));
        let arguments = ["-o".as_ref(), options.as_ref(), "--".as_ref(), self.mountpoint.as_os_str()];
        let done = run_helper(&arguments, socket).map_err(|error| self.no_helper(&error))?;
        if !done.status.success() {
            return Err(Error::new(ErrorKind::Device, self.operation(), said(&done)));
        }
        received(&ours).map_err(|error| self.failed(&error))
    }

    fn operation(&self) -> String {
        format!("mount a file on {}", self.mountpoint.display())
    }

    fn failed(&self, error: &io::Error) -> Error {
        let kind = if error.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Device };
        Error::io(kind, self.operation(), error)
    }

    fn no_helper(&self, error: &io::Error) -> Error {
        self.failed(error).hint("without root this needs fusermount3: install the package fuse3, or use NBD")
    }
}

/// Unmounts a file; one that is not mounted any more is no error.
///
/// # Errors
/// `Busy` while a program or a loop device has it open.
pub fn unmount(mountpoint: &Path) -> Result<()> {
    let operation = format!("unmount {}", mountpoint.display());
    let failed = |error: Errno| match error {
        Errno::BUSY => Error::io(ErrorKind::Busy, &*operation, &error.into())
            .hint("a program or a loop device has the file open (fuser shows which)"),
        _ => Error::io(ErrorKind::Device, &*operation, &error.into()),
    };
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => {
            let arguments = ["-u".as_ref(), "--".as_ref(), mountpoint.as_os_str()];
            let done = run_helper(&arguments, Stdio::null()).map_err(|_| failed(Errno::PERM))?;
            match said(&done) {
                _ if done.status.success() => Ok(()),
                text if text.contains("not found in") || text.contains("not mounted") => Ok(()),
                text if text.contains("busy") => Err(failed(Errno::BUSY)),
                text => Err(Error::new(ErrorKind::Device, operation, text)),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// Runs the helper with a plain environment: what it says is read.
fn run_helper(arguments: &[&std::ffi::OsStr], stdin: Stdio) -> io::Result<Output> {
    let helper = program(HELPER).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Command::new(helper).args(arguments).env("LC_ALL", "C").env("_FUSE_COMMFD", HELPER_SOCKET).stdin(stdin).output()
}

fn said(done: &Output) -> String {
    let text = String::from_utf8_lossy(&done.stderr);
    let line = text.trim().replace('\n', "; ");
    if line.is_empty() { format!("{HELPER} failed with {}", done.status) } else { line }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [PathBuf::from("/usr/bin"), PathBuf::from("/bin")];
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The descriptor that the helper sends before it ends.
fn received(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let parts = &mut [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::Error::other(format!("{HELPER} sent no descriptor")))
}
