//! Opening and creating: what may be opened, how it is held, which direct I/O the kernel offers for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::{Access, FileStorage};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Alignment, lock};
use crate::sync::{Mutex, RwLock};

const DEFAULT_LOGICAL_BLOCK: u64 = 512;
const BLKROGET: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 94);

impl FileStorage {
    /// Opens and holds a regular file or block device. `role` is the kind of an error that is none of those below.
    ///
    /// # Errors
    /// `NotFound` if it does not exist, `Invalid` if it is neither a regular file nor a block device, `Busy` if another
    /// program holds it or, unless the access allows for that, it is mounted.
    pub fn open(path: &Path, access: Access, role: ErrorKind) -> Result<Self> {
        let operation = format!("open {}", path.display());
        let fail = |error: Errno| os_error(role, &operation, error);
        // Looks without opening: opening a device of another type can have effects of its own.
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
        let block_device = match FileType::from_raw_mode(rustix::fs::fstat(&place).map_err(fail)?.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            other => return Err(Error::new(ErrorKind::Invalid, operation, wrong_type(other))),
        };
        let claims = block_device && access != Access::ReadWriteMounted;
        let exclusive = if claims { OFlags::EXCL } else { OFlags::empty() };
        let buffered = reopen(&place, access, exclusive).map_err(fail)?;
        if block_device && access == Access::ReadWrite && is_read_only(&buffered).map_err(fail)? {
            return Err(read_only(role, operation));
        }
        hold(buffered, None, access, block_device, role, &operation)
    }

    /// Stands in for another process that had it open for reading and writing, with the descriptors that
    /// [`FileStorage::descriptors`] gave there. The lock, which belongs to them, stays as it is.
    ///
    /// # Errors
    /// `role` if the descriptors are not of an open file or block device.
    pub fn adopt(buffered: OwnedFd, direct: Option<OwnedFd>, role: ErrorKind) -> Result<Self> {
        let operation = "take over the descriptors of a storage";
        let fail = |error: Errno| os_error(role, operation, error);
        let mode = rustix::fs::fstat(&buffered).map_err(fail)?.st_mode;
        let block_device = FileType::from_raw_mode(mode) == FileType::BlockDevice;
        hold(buffered, direct, Access::ReadWrite, block_device, role, operation)
    }

    /// Creates and holds a regular file of `size` bytes, all zero, that only its owner may read. `role` as in `open`.
    ///
    /// # Errors
    /// `Exists` if the path exists, `NotFound` if its folder does not.
    pub fn create(path: &Path, size: u64, role: ErrorKind) -> Result<Self> {
        let operation = format!("create {}", path.display());
        let fail = |error: Errno| os_error(role, &operation, error);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let buffered = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
        let made = rustix::fs::ftruncate(&buffered, size)
            .map_err(fail)
            .and_then(|()| hold(buffered, None, Access::ReadWrite, false, role, &operation));
        made.map_err(|error| match rustix::fs::unlink(path) {
            Ok(()) => error,
            Err(left) => error.hint(&format!("the empty file is left behind ({left})")),
        })
    }

    /// As `create`, but the file is gone with its last descriptor, and a kill leaves nothing behind: it never bears its
    /// name, unless the file system insists on one, from which it is removed at once.
    ///
    /// # Errors
    /// Those of `create`; where it bears no name, one that is there already is not in its way.
    pub fn create_unnamed(path: &Path, size: u64, role: ErrorKind) -> Result<Self> {
        let operation = format!("create {}", path.display());
        let fail = |error: Errno| os_error(role, &operation, error);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(buffered) => {
                rustix::fs::ftruncate(&buffered, size).map_err(fail)?;
                hold(buffered, None, Access::ReadWrite, false, role, &operation)
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                let storage = Self::create(path, size, role)?;
                rustix::fs::unlink(path).map_err(fail)?;
                Ok(storage)
            }
            Err(error) => Err(fail(error)),
        }
    }
}

fn hold(
    buffered: OwnedFd,
    direct: Option<OwnedFd>,
    access: Access,
    block_device: bool,
    role: ErrorKind,
    operation: &str,
) -> Result<FileStorage> {
    let fail = |error: Errno| os_error(role, operation, error);
    lock::acquire(buffered.as_fd(), access).map_err(|error| lock_error(role, operation, &error))?;
    let size = rustix::fs::seek(&buffered, SeekFrom::End(0)).map_err(fail)?;
    let stat = rustix::fs::fstat(&buffered).map_err(fail)?;
    let sector =
        if block_device { Some(u64::from(rustix::fs::ioctl_blksszget(&buffered).map_err(fail)?)) } else { None };
    let offered = direct_alignment(&buffered, sector).map_err(fail)?;
    let direct = match (offered, direct) {
        (Some(_), None) => open_direct(&buffered, access).map_err(fail)?,
        (Some(_), opened) => opened,
        (None, _) => None,
    };
    let file_system = rustix::fs::fstatfs(&buffered).map_err(fail)?.f_type;
    let alignment = offered.filter(|_| direct.is_some()).unwrap_or(Alignment::NONE);
    let page = rustix::param::page_size() as u64;
    let file_block = (stat.st_blksize as u64).next_power_of_two().max(page).max(alignment.offset);
    let edge = match direct {
        None => 0,
        Some(_) if size.is_multiple_of(alignment.offset) => size,
        Some(_) => size & !(file_block - 1),
    };
    Ok(FileStorage {
        size,
        edge,
        alignment,
        granule: sector.unwrap_or(file_block),
        logical_block: sector.unwrap_or(alignment.offset.max(DEFAULT_LOGICAL_BLOCK)),
        block_device,
        local: block_device || LOCAL.contains(&file_system),
        tmpfs: file_system == TMPFS,
        buffered,
        direct,
        units: RwLock::new(()),
        seek: Mutex::new(()),
        ahead: Mutex::default(),
    })
}

/// The number of tmpfs in statfs(2).
const TMPFS: i64 = 0x0102_1994;
/// File systems whose I/O the kernel waits for even if the caller is killed, by their numbers in statfs(2): ext2/3/4, xfs,
/// btrfs, tmpfs, f2fs, bcachefs, zfs, overlayfs.
const LOCAL: [i64; 8] = [0xef53, 0x5846_5342, 0x9123_683e, TMPFS, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1, 0x794c_7630];

/// The kernel lets a program open a read-only device for writing, and fails the writes.
fn is_read_only(device: &OwnedFd) -> rustix::io::Result<bool> {
    // SAFETY: BLKROGET writes one int to the pointer.
    let flag = unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Getter::<BLKROGET, i32>::new()) }?;
    Ok(flag != 0)
}

/// What the kernel says direct I/O needs; `None` if it offers none or does not say.
fn direct_alignment(fd: &OwnedFd, sector: Option<u64>) -> rustix::io::Result<Option<Alignment>> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let (offset, memory) = match sector {
        Some(sector) if !told => (sector, sector),
        _ if !told => return Ok(None),
        _ => (u64::from(stat.stx_dio_offset_align), u64::from(stat.stx_dio_mem_align)),
    };
    // Rounding needs powers of two; an XFS real-time file may want others, and is served through the page cache.
    let usable = offset.is_power_of_two() && memory.is_power_of_two();
    Ok(usable.then(|| Alignment { offset: offset.max(memory), memory }))
}

fn open_direct(fd: &OwnedFd, access: Access) -> rustix::io::Result<Option<OwnedFd>> {
    match reopen(fd, access, OFlags::DIRECT) {
        Ok(direct) => Ok(Some(direct)),
        Err(Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the inode behind a descriptor once more, whatever its path names by now.
fn reopen(fd: &OwnedFd, access: Access, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let access = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite | Access::ReadWriteMounted => OFlags::RDWR,
    };
    rustix::fs::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), access | flags | OFlags::CLOEXEC, Mode::empty())
}

fn os_error(role: ErrorKind, operation: &str, error: Errno) -> Error {
    let source = io::Error::from(error);
    match error {
        Errno::NOENT | Errno::NOTDIR => Error::io(ErrorKind::NotFound, operation, &source),
        Errno::EXIST => Error::io(ErrorKind::Exists, operation, &source).hint("choose another name, or remove it"),
        Errno::BUSY => Error::io(ErrorKind::Busy, operation, &source)
            .hint("it is mounted or another program holds it; unmount or stop that (lsblk shows what is on it)"),
        Errno::ACCESS | Errno::PERM => Error::io(role, operation, &source).hint("run as a user who may, such as root"),
        _ => Error::io(role, operation, &source),
    }
}

fn read_only(role: ErrorKind, operation: String) -> Error {
    let mut error = Error::new(role, operation, "the device is read-only; choose another, or try blockdev --setrw");
    error.errno = Some(Errno::ROFS.raw_os_error());
    error
}

fn lock_error(role: ErrorKind, operation: &str, source: &io::Error) -> Error {
    if source.kind() == io::ErrorKind::WouldBlock {
        let mut busy = Error::new(ErrorKind::Busy, operation, "another program (QEMU or blockcow) has it open");
        busy.errno = source.raw_os_error();
        return busy.hint("stop that program and try again (lsof shows which one)");
    }
    Error::io(role, operation, source).hint("it could not be locked, so nothing would keep other writers away")
}

fn wrong_type(found: FileType) -> String {
    let name = match found {
        FileType::Directory => "a directory",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "something else",
    };
    format!("it is {name}; give a block device or a regular file")
}
