//! Locks on image files in the way of QEMU's `block/file-posix.c`, so that it and we refuse each other's files.
//!
//! Each permission has two bytes in the file: one that a holder locks when it uses the permission, one when it does
//! not share it. All locks are shared ones; a conflict is found by asking whether an exclusive one could be had. They
//! belong to the open file description, so they go when it is closed, however the process ends.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Access;
use crate::mutant::planted;

const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What nobody else may do while we have the file open. Reading stays shared, for those who ask for no more
/// (`qemu-img info -U`); a plain reader of QEMU does not share writing, and so is refused beside a writer.
const UNSHARED: [i64; 2] = [WRITE, RESIZE];

/// Locks the file until `release`, or until the last copy of `fd` is closed.
///
/// # Errors
/// `WouldBlock` if another open file description holds what we need; anything else if the file system cannot lock.
pub(super) fn acquire(fd: BorrowedFd<'_>, access: Access) -> io::Result<()> {
    if planted("image-is-not-locked") {
        return Ok(());
    }
    let used: &[i64] = match access {
        Access::ReadOnly => &[CONSISTENT_READ],
        Access::ReadWrite | Access::ReadWriteMounted => &[CONSISTENT_READ, WRITE, RESIZE],
    };
    // Lock first and look second: of two who arrive together at least one sees the other.
    for byte in used.iter().map(|bit| USED_BASE + bit).chain(UNSHARED.map(|bit| UNSHARED_BASE + bit)) {
        fcntl(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte, 1)?;
    }
    for byte in used.iter().map(|bit| UNSHARED_BASE + bit).chain(UNSHARED.map(|bit| USED_BASE + bit)) {
        let found = fcntl(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1)?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
    }
    Ok(())
}

/// Unlocks the file now. Closing `fd` is not enough: a child process has copies of all descriptors until it executes
/// its program, and would keep the lock alive for that long.
pub(super) fn release(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0).map(drop)
}

fn fcntl(
    fd: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    start: i64,
    length: i64,
) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: both commands take a pointer to a `flock`, which lives on this stack for the whole call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(lock),
        _ => Err(io::Error::last_os_error()),
    }
}
