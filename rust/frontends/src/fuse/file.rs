//! What can be done with the one file: each request becomes a call of the driver. Knows no descriptor and no mount.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use blockcow_engine::driver::{Driver, Request};
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::Zeroing;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, KnownLayout};

use super::channel::{MAX_TRANSFER, Reply};
use super::init::Note;
use super::wire::{
    Attr, AttrOut, FallocateIn, InHeader, LseekIn, LseekOut, OpenIn, OpenOut, ROOT, SetattrIn, StatfsOut, TransferIn,
    WRITE_DATA, WriteOut, attribute, opcode, open_flag,
};

/// Size, mode and owner never change: the kernel need not ask again for so many seconds.
const ATTRIBUTES_HOLD: u64 = 3600;
/// What loop takes as the granularity of discards.
const BLOCK: u32 = 4096;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// The file.
pub struct File {
    driver: Arc<Driver>,
    size: u64,
    read_only: bool,
    attributes: AttrOut,
}

impl File {
    /// The file in front of `driver`, as the note describes it.
    pub fn new(driver: Arc<Driver>, note: &Note) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut attr = Attr::new_zeroed();
        (attr.ino, attr.size, attr.blocks) = (ROOT, note.size, note.size.div_ceil(512));
        (attr.atime, attr.mtime, attr.ctime) = (now.as_secs(), now.as_secs(), now.as_secs());
        (attr.mode, attr.uid, attr.gid) = (libc::S_IFREG | note.mode, note.uid, note.gid);
        (attr.nlink, attr.blksize) = (1, BLOCK);
        let attributes = AttrOut { attr_valid: ATTRIBUTES_HOLD, attr_valid_nsec: 0, dummy: 0, attr };
        Self { driver, size: note.size, read_only: note.read_only, attributes }
    }

    /// Does the request in `bytes`, which may be written over, and answers it: now, or if it is parked, later.
    pub fn handle(&self, header: InHeader, bytes: &mut [u8], length: usize, reply: Reply) {
        let outcome = match header.opcode {
            opcode::READ => return self.read(bytes, length, reply),
            opcode::WRITE => return self.write(&bytes[..length], reply),
            opcode::FALLOCATE => return self.allocate(&bytes[..length], reply),
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => return reply.none(),
            opcode::GETATTR => return reply.body(&self.attributes),
            opcode::SETATTR => self.set_attributes(&bytes[..length]).map(|()| Answer::Attributes),
            opcode::OPEN => self.open(&bytes[..length]).map(Answer::Open),
            opcode::LSEEK => self.seek(&bytes[..length]).map(Answer::Offset),
            opcode::STATFS => return reply.body(&self.statistics()),
            opcode::FSYNC => self.driver.flush().map_err(|error| errno_of(&error)).map(|()| Answer::Done),
            opcode::FLUSH | opcode::RELEASE | opcode::ACCESS | opcode::DESTROY => Ok(Answer::Done),
            opcode::LOOKUP => Err(Errno::NOTDIR),
            // The kernel will not ask again: attributes of other kinds, locks, polling, copying within the file.
            _ => Err(Errno::NOSYS),
        };
        match outcome {
            Ok(Answer::Done) => reply.done(),
            Ok(Answer::Attributes) => reply.body(&self.attributes),
            Ok(Answer::Open(answer)) => reply.body(&answer),
            Ok(Answer::Offset(offset)) => reply.body(&LseekOut { offset }),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(&self, bytes: &mut [u8], length: usize, reply: Reply) {
        let Ok(wanted) = structure::<TransferIn>(&bytes[..length]) else { return reply.error(Errno::INVAL) };
        let left = self.size.saturating_sub(wanted.offset);
        if wanted.size as usize > MAX_TRANSFER {
            return reply.error(Errno::INVAL);
        }
        let data = &mut bytes[WRITE_DATA..][..u64::from(wanted.size).min(left) as usize];
        if data.is_empty() {
            return reply.done();
        }
        match self.driver.read(data, wanted.offset) {
            Ok(()) => reply.bytes(data),
            Err(error) => reply.error(errno_of(&error)),
        }
    }

    fn write(&self, bytes: &[u8], reply: Reply) {
        let Ok(wanted) = structure::<TransferIn>(bytes) else { return reply.error(Errno::INVAL) };
        let Some(data) = bytes[WRITE_DATA..].get(..wanted.size as usize) else { return reply.error(Errno::INVAL) };
        if self.read_only {
            return reply.error(Errno::ROFS);
        }
        // As on a block device: what fits is written, and there is no space behind the end.
        let left = self.size.saturating_sub(wanted.offset);
        let data = &data[..u64::from(wanted.size).min(left) as usize];
        if data.is_empty() && wanted.size > 0 {
            return reply.error(Errno::NOSPC);
        }
        let written = WriteOut { size: data.len() as u32, padding: 0 };
        let completion = Box::new(move |result: Result<(), Error>| match result {
            Ok(()) => reply.body(&written),
            Err(error) => reply.error(errno_of(&error)),
        });
        self.driver.submit(Request::Write(Cow::Borrowed(data), wanted.offset), completion);
    }

    /// Holes and zeroes. The loop driver asks for a hole for discards and for zeroes alike, so a hole must read as zeroes.
    fn allocate(&self, bytes: &[u8], reply: Reply) {
        let Ok(wanted) = structure::<FallocateIn>(bytes) else { return reply.error(Errno::INVAL) };
        let Some(end) = wanted.offset.checked_add(wanted.length) else { return reply.error(Errno::FBIG) };
        if self.read_only {
            return reply.error(Errno::ROFS);
        }
        let mode = FallocateFlags::from_bits_retain(wanted.mode);
        let how = match mode - FallocateFlags::KEEP_SIZE {
            FallocateFlags::PUNCH_HOLE => Zeroing { keep_space: false, fast: true },
            FallocateFlags::ZERO_RANGE => Zeroing { keep_space: true, fast: false },
            other if !other.is_empty() => return reply.error(Errno::OPNOTSUPP),
            // The space is the device's own and is there already.
            _ if end <= self.size => return reply.done(),
            _ => return reply.error(Errno::NOSPC),
        };
        if end > self.size && !mode.contains(FallocateFlags::KEEP_SIZE) {
            return reply.error(Errno::NOSPC);
        }
        let end = end.min(self.size);
        let range = ByteRange { start: wanted.offset.min(end), end };
        let completion = Box::new(move |result: Result<(), Error>| match result {
            Ok(()) => reply.done(),
            Err(error) => reply.error(errno_of(&error)),
        });
        self.driver.submit(Request::Zero(range, how), completion);
    }

    fn set_attributes(&self, bytes: &[u8]) -> Result<(), Errno> {
        let wanted = structure::<SetattrIn>(bytes)?;
        let attr = &self.attributes.attr;
        let changed = |bit: u32, differs: bool| wanted.valid & bit != 0 && differs;
        if changed(attribute::SIZE, wanted.size != self.size)
            || changed(attribute::MODE, wanted.mode & 0o7777 != attr.mode & 0o7777)
            || changed(attribute::UID, wanted.uid != attr.uid)
            || changed(attribute::GID, wanted.gid != attr.gid)
        {
            return Err(Errno::PERM);
        }
        Ok(()) // times are not kept
    }

    /// Nothing is cached, so that what loop, programs and the device see is one.
    fn open(&self, bytes: &[u8]) -> Result<OpenOut, Errno> {
        let wanted = structure::<OpenIn>(bytes)?;
        let access = OFlags::from_bits_retain(wanted.flags) & OFlags::RWMODE;
        if self.read_only && access != OFlags::RDONLY {
            return Err(Errno::ROFS);
        }
        let open_flags = open_flag::DIRECT_IO | open_flag::PARALLEL_DIRECT_WRITES | open_flag::NOFLUSH;
        Ok(OpenOut { fh: 0, open_flags, padding: 0 })
    }

    fn seek(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let wanted = structure::<LseekIn>(bytes)?;
        if wanted.offset >= self.size {
            return Err(Errno::NXIO);
        }
        let next = |from| self.driver.next_data(from).map_err(|error| errno_of(&error));
        match wanted.whence {
            SEEK_DATA => Ok(next(wanted.offset)?.ok_or(Errno::NXIO)?.start.max(wanted.offset)),
            SEEK_HOLE => {
                let mut at = wanted.offset;
                while at < self.size
                    && let Some(data) = next(at)?
                    && data.start <= at
                    && data.end > at
                {
                    at = data.end;
                }
                Ok(at.min(self.size))
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn statistics(&self) -> StatfsOut {
        let mut found = StatfsOut::new_zeroed();
        (found.blocks, found.bsize, found.frsize) = (self.size.div_ceil(u64::from(BLOCK)), BLOCK, BLOCK);
        (found.files, found.namelen) = (1, 255);
        found
    }
}

/// Answers that are made on the way back from a request without data.
enum Answer {
    Done,
    Attributes,
    Open(OpenOut),
    Offset(u64),
}

/// The structure behind a request's header.
fn structure<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<T, Errno> {
    let body = bytes.get(size_of::<InHeader>()..).ok_or(Errno::INVAL)?;
    T::read_from_prefix(body).map(|(structure, _)| structure).map_err(|_| Errno::INVAL)
}

/// What a program sees of an error. Never ENOSYS: to the kernel that means never to ask again.
fn errno_of(error: &Error) -> Errno {
    match error.errno.map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) => Errno::OPNOTSUPP,
        Some(errno) => errno,
        None if error.kind == ErrorKind::Invalid => Errno::INVAL,
        None => Errno::IO,
    }
}
