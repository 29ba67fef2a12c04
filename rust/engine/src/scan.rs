//! Reads all of an image in parallel, compares every extent with its digest, and hands on what it read.
//!
//! What is made of the bytes, and of damage, is up to the sink: `verify` counts, `restore` writes.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use crate::buffer::AlignedBuf;
use crate::digest::{ExtentHasher, ZERO_EXTENT};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::manifest::Manifest;
use crate::mutant::planted;
use crate::partial::partial_path;
use crate::storage::{Access, FileStorage, Storage};
use crate::sync::{Arc, AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};

const ROLE: ErrorKind = ErrorKind::Destination;
const READERS: usize = 2;
const BUFFER_BYTES: u64 = 1 << 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What becomes of an image's bytes. Called from several threads; an error ends the scan.
pub(crate) trait Sink: Sync {
    /// These bytes stand in the image at `offset`; that they are intact is not known yet.
    fn data(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Here the image has a hole.
    fn hole(&self, range: ByteRange) -> Result<()>;
    /// The extent that starts at `offset` differs from its digest.
    fn damaged(&self, offset: u64) -> Result<()>;
}

/// An image that is open for reading, and its manifest.
pub struct Image {
    storage: Arc<dyn Storage>,
    manifest: Manifest,
    name: String,
}

impl Image {
    /// The image in a file or on a block device.
    ///
    /// # Errors
    /// `NotFound` for either, `Busy` if a program may be writing to the image, `Manifest`, `Mismatch` if the image's
    /// size is not the manifest's; a block device may be larger.
    pub fn open(path: &Path, manifest_path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        check_present(path, &name)?;
        let manifest = Manifest::load(manifest_path)?;
        let storage = FileStorage::open(path, Access::ReadOnly, ROLE)?;
        if storage.size() > manifest.header().size && !storage.is_block_device() {
            return Err(other_size(&name, &storage, &manifest));
        }
        Self::of(Arc::new(storage), name, manifest)
    }

    /// The image at the beginning of any storage; errors call it `name`.
    ///
    /// # Errors
    /// `Mismatch` if the storage is smaller than the manifest says.
    pub fn of(storage: Arc<dyn Storage>, name: String, manifest: Manifest) -> Result<Self> {
        if storage.size() < manifest.header().size {
            return Err(other_size(&name, &*storage, &manifest));
        }
        Ok(Self { storage, manifest, name })
    }

    /// What it must be.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads everything. `progress` is told the bytes done and in all a few times a second, on this thread.
    ///
    /// # Errors
    /// `Destination` if the image cannot be read, `Cancelled` if `progress` breaks off, and those of the sink.
    pub(crate) fn scan(&self, sink: &dyn Sink, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<()> {
        let total = self.manifest.header().size;
        let scan = Scan {
            image: self,
            sink,
            next: AtomicU32::new(0),
            done: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let tell = || {
            if progress(scan.done.load(Ordering::Relaxed), total).is_break() {
                scan.fail(Error::new(ErrorKind::Cancelled, format!("read the image {}", self.name), "cancelled"));
            }
        };
        thread::scope(|scope| {
            let (alive, all_gone) = crossbeam_channel::bounded::<()>(0);
            for _ in 0..READERS {
                let alive = alive.clone();
                scope.spawn(|| {
                    let _alive = alive;
                    scan.read_extents();
                });
            }
            drop(alive);
            while all_gone.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
                tell();
            }
        });
        tell();
        scan.failure.into_inner().map_or(Ok(()), Err)
    }
}

fn other_size(name: &str, storage: &dyn Storage, manifest: &Manifest) -> Error {
    let (found, size) = (storage.size(), manifest.header().size);
    let reason = format!("it has {found} bytes, and its manifest says {size}: this is not the whole image, or another");
    Error::new(ErrorKind::Mismatch, format!("compare the image {name}"), reason)
}

fn check_present(path: &Path, name: &str) -> Result<()> {
    let operation = format!("open the image {name}");
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() || found.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Invalid, operation, "it is neither a regular file nor a block device")),
        Err(e) if e.kind() == io::ErrorKind::NotFound && partial_path(path).exists() => {
            let partial = partial_path(path);
            let reason = format!("only {} is there: the backup was interrupted or is under way", partial.display());
            Err(Error::new(ErrorKind::NotFound, operation, reason).hint("it is not complete; make it again"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::io(ErrorKind::NotFound, operation, &e)),
        Err(e) => Err(Error::io(ROLE, operation, &e)),
    }
}

struct Scan<'a> {
    image: &'a Image,
    sink: &'a dyn Sink,
    next: AtomicU32,
    done: AtomicU64,
    ended: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Scan<'_> {
    fn fail(&self, error: Error) {
        self.failure.lock().get_or_insert(error);
        self.ended.store(true, Ordering::Relaxed);
    }

    fn read_extents(&self) {
        let mut reader = Reader { scan: self, buf: AlignedBuf::new(BUFFER_BYTES as usize), data_from: 0 };
        let count = self.image.manifest.geometry().extent_count();
        while !self.ended.load(Ordering::Relaxed) {
            let extent = self.next.fetch_add(1, Ordering::Relaxed);
            if extent >= count {
                return;
            }
            if let Err(error) = reader.extent(extent) {
                return self.fail(error);
            }
        }
    }
}

/// One thread's part of a scan; its extents ascend.
struct Reader<'a> {
    scan: &'a Scan<'a>,
    buf: AlignedBuf,
    /// From where it was last asked for data up to here, the image is a hole.
    data_from: u64,
}

impl Reader<'_> {
    fn extent(&mut self, extent: u32) -> Result<()> {
        let Scan { image, sink, done, .. } = self.scan;
        let range = image.manifest.geometry().bytes_of_extent(extent);
        let recorded = image.manifest.digests().get(extent);
        let mut hasher = ExtentHasher::default();
        let mut at = range.start;
        while at < range.end {
            let hole_end = if recorded == ZERO_EXTENT { self.hole_end(at)?.min(range.end) } else { at };
            let end = if hole_end > at { hole_end } else { range.end.min(at + BUFFER_BYTES) };
            if hole_end > at {
                sink.hole(ByteRange { start: at, end })?;
            } else {
                let bytes = &mut self.buf[..(end - at) as usize];
                image.storage.read_at(bytes, at).map_err(|e| self.scan.unreadable(&e, at))?;
                hasher.update(bytes);
                sink.data(bytes, at)?;
            }
            done.fetch_add(end - at, Ordering::Relaxed);
            at = end;
        }
        if hasher.finish() == recorded || planted("digests-are-not-compared") {
            Ok(())
        } else {
            sink.damaged(range.start)
        }
    }

    /// Where the hole at `at` ends; `at` itself if there is none.
    fn hole_end(&mut self, at: u64) -> Result<u64> {
        if self.data_from <= at {
            let data = self.scan.image.storage.next_data(at).map_err(|e| self.scan.unreadable(&e, at))?;
            self.data_from = data.map_or(u64::MAX, |found| found.start);
        }
        Ok(self.data_from)
    }
}

impl Scan<'_> {
    fn unreadable(&self, source: &io::Error, offset: u64) -> Error {
        Error::io(ROLE, format!("read the image {}", self.image.name), source).at(offset)
    }
}
