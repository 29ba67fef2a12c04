//! One system call on files: what it is, on which path, and how it is carried out.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::filter::{Reply, Request};

/// What calls do, as far as faults and power cuts can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Transfers bytes from a file.
    Read,
    /// Transfers bytes to a file.
    Write,
    /// Allocates, zeroes, or changes the size.
    Shape,
    /// Makes durable.
    Sync,
    /// Opens, and may create.
    Open,
    /// Renames.
    Rename,
    /// Removes a name.
    Remove,
    /// Asks or locks, and changes no file.
    Look,
    /// Closes. Its errors tell nothing that a sync did not.
    Close,
}

/// How a call names what it is about.
enum Names {
    Descriptor,
    Path(usize),
    /// A descriptor, or a path that is not empty.
    Either(usize),
    /// From one path to another.
    Paths(usize, usize),
}

/// A call that was handed over.
#[derive(Debug)]
pub struct Call {
    pub kind: Kind,
    pub number: i64,
    pub args: [u64; 6],
    /// The thread that made it.
    pub thread: u32,
    /// What it is about: for a descriptor, the path under which that was opened.
    pub path: Arc<Path>,
    /// The new name of what is renamed.
    pub to: Option<Arc<Path>>,
}

impl Call {
    /// `None` for a call that is not known.
    pub(super) fn decode(request: &Request, paths: &HashMap<i32, Arc<Path>>) -> Option<Self> {
        let (kind, names) = known(request.number())?;
        let args = request.args();
        let opened = |fd: u64| paths.get(&(fd as i32)).cloned().unwrap_or_else(|| Path::new("").into());
        let (path, to) = match names {
            Names::Descriptor => (opened(args[0]), None),
            Names::Path(at) => (path_at(args[at], paths), None),
            Names::Either(at) => {
                let path = path_at(args[at], paths);
                (if path.as_os_str().is_empty() { opened(args[0]) } else { path }, None)
            }
            Names::Paths(from, to) => (path_at(args[from], paths), Some(path_at(args[to], paths))),
        };
        Some(Self { kind, number: request.number(), args, thread: request.thread(), path, to })
    }

    /// Does what the caller asked for.
    pub fn carry_out(&self) -> Reply {
        carry_out(self.number, self.args)
    }

    /// The same, but transfers so many bytes only.
    pub fn carry_out_short(&self, bytes: u64) -> Reply {
        let [fd, buffer, _, offset, ..] = self.args;
        carry_out(self.number, [fd, buffer, bytes, offset, 0, 0])
    }

    /// How many bytes a transfer is about.
    pub fn length(&self) -> u64 {
        self.args[2]
    }

    /// The bytes of a write.
    pub fn bytes(&self) -> &[u8] {
        assert_eq!(self.kind, Kind::Write);
        // SAFETY: the caller waits for its answer with its buffer borrowed, in this very process.
        unsafe { std::slice::from_raw_parts(self.args[1] as *const u8, self.length() as usize) }
    }
}

impl Call {
    /// After a `statx`: lets the caller believe that direct I/O in sectors is offered. File systems in memory take it since
    /// Linux 6.6, and only do not say so.
    pub fn offer_direct_io(&self) {
        assert_eq!(self.number, libc::SYS_statx);
        // SAFETY: the kernel has just filled it for the caller, who waits for the answer.
        let found = unsafe { &mut *(self.args[4] as *mut libc::statx) };
        found.stx_mask |= libc::STATX_DIOALIGN;
        (found.stx_dio_mem_align, found.stx_dio_offset_align) = (512, 512);
    }
}

/// Makes a system call on this thread.
pub(super) fn carry_out(number: i64, [a, b, c, d, e, f]: [u64; 6]) -> Reply {
    // SAFETY: what the call reads and writes is the caller's to vouch for, who is of this process and waits.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        reply => reply,
    }
}

/// The path at an address; what `/proc/self/fd` names is the path under which that was opened.
fn path_at(address: u64, paths: &HashMap<i32, Arc<Path>>) -> Arc<Path> {
    if address == 0 {
        return Path::new("").into();
    }
    // SAFETY: the caller waits for its answer and vouches for the string, as above.
    let bytes = unsafe { CStr::from_ptr(address as *const libc::c_char) }.to_bytes();
    let again = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_prefix("/proc/self/fd/")?.parse().ok());
    let known = again.and_then(|fd: i32| paths.get(&fd).cloned());
    known.unwrap_or_else(|| Path::new(OsStr::from_bytes(bytes)).into())
}

fn known(number: i64) -> Option<(Kind, Names)> {
    Some(match number {
        libc::SYS_pread64 | libc::SYS_read => (Kind::Read, Names::Descriptor),
        libc::SYS_pwrite64 | libc::SYS_write => (Kind::Write, Names::Descriptor),
        libc::SYS_fallocate | libc::SYS_ftruncate => (Kind::Shape, Names::Descriptor),
        libc::SYS_fsync | libc::SYS_fdatasync => (Kind::Sync, Names::Descriptor),
        libc::SYS_openat => (Kind::Open, Names::Path(1)),
        libc::SYS_renameat2 => (Kind::Rename, Names::Paths(1, 3)),
        libc::SYS_unlinkat => (Kind::Remove, Names::Path(1)),
        libc::SYS_faccessat => (Kind::Look, Names::Path(1)),
        libc::SYS_fcntl | libc::SYS_fstat | libc::SYS_fstatfs | libc::SYS_lseek => (Kind::Look, Names::Descriptor),
        libc::SYS_newfstatat | libc::SYS_statx => (Kind::Look, Names::Either(1)),
        libc::SYS_close => (Kind::Close, Names::Descriptor),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => (Kind::Open, Names::Path(0)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access => (Kind::Look, Names::Path(0)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => (Kind::Rename, Names::Paths(0, 1)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => (Kind::Remove, Names::Path(0)),
        _ => return None,
    })
}
