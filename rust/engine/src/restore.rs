//! Writes an image back to a block device or a file, after the whole of it was verified.
//!
//! The mounted target of a careless moment is the caller's to find out and explain; here the exclusive open refuses it.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::mutant::planted;
use crate::partial::PartialFile;
use crate::scan::{Image, Sink};
use crate::storage::{Access, FileStorage, Storage, Zeroing};
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::verify::{VerifyReport, verify_image};
use crate::zeroes::data_runs;

const ROLE: ErrorKind = ErrorKind::Device;
/// Zeroes shorter than this are written like data, which costs less than a request of their own.
const ZERO_UNIT: usize = 64 << 10;

/// What a restore does against its better judgement. By default: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Writes the image as it stands although parts of it are damaged.
    pub force_damaged: bool,
    /// Writes to a block device that is mounted or claimed by another part of the kernel.
    pub force_mounted: bool,
}

/// What a restore is doing when it tells of its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestorePhase {
    /// Reading the image and comparing it with its manifest; the target is untouched.
    Verifying,
    /// Writing the target.
    Writing,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// What was found before anything was written; damage only if it was forced.
    pub verified: VerifyReport,
    /// Bytes written to the target, zeroes not counted.
    pub written_bytes: u64,
    /// Bytes of the target that were made zero, or are in a new file.
    pub zero_bytes: u64,
    /// Whether the target is a file that did not exist before.
    pub created: bool,
}

/// Restores `image` to `target`: a block device or an existing file, either at least as large as the image, whose bytes
/// beyond the image stay as they are; or a new file, which bears its name only when it is whole. `progress` is told the
/// phase and the bytes done and in all about five times a second, on the calling thread, and may break off.
///
/// # Errors
/// Those of `verify`; `Mismatch` at the first damaged offset before anything is written, unless forced; `Invalid` if
/// the target is too small, the image itself, or neither file nor block device; `Busy` if it is in use; `Device` if it
/// cannot be written. An error after the first write says that the target is incomplete; a file created here is
/// removed.
pub fn restore(
    image: &Path,
    manifest: &Path,
    target: &Path,
    options: RestoreOptions,
    progress: &dyn Fn(RestorePhase, u64, u64) -> ControlFlow<()>,
) -> Result<RestoreReport> {
    let source = Image::open(image, manifest)?;
    refuse_itself(image, target)?;
    let target = Target::open(target, source.manifest().header().size, options.force_mounted)?;
    restore_image(&source, target, options.force_damaged, progress)
}

/// Restores an open image to an open target. `progress` as for [`restore`].
///
/// # Errors
/// `Mismatch` at the first damaged offset before anything is written, unless forced; `Invalid` if the target is too
/// small; `Destination` if the image cannot be read, `Device` if the target cannot be written; `Cancelled`. An error after
/// the first write says that the target is incomplete.
pub fn restore_image(
    source: &Image,
    target: Target,
    force_damaged: bool,
    progress: &dyn Fn(RestorePhase, u64, u64) -> ControlFlow<()>,
) -> Result<RestoreReport> {
    let restored = target.fill(source, force_damaged, progress);
    restored.map_err(|error| target.give_up(error))
}

fn refuse_itself(image: &Path, target: &Path) -> Result<()> {
    let (Ok(a), Ok(b)) = (std::fs::metadata(image), std::fs::metadata(target)) else {
        return Ok(());
    };
    let devices = a.file_type().is_block_device() && b.file_type().is_block_device();
    if (devices && a.rdev() == b.rdev()) || (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        let reason = "it is the image itself; give another target";
        return Err(Error::new(ErrorKind::Invalid, format!("restore to {}", target.display()), reason));
    }
    Ok(())
}

/// Where an image is restored to.
pub struct Target {
    storage: Arc<dyn Storage>,
    name: String,
    /// The file that is to be renamed, if this restore created it.
    created: Option<PartialFile>,
    written: AtomicU64,
    zeroed: AtomicU64,
}

impl Target {
    /// A block device, a file, or a new file of `size` bytes where there is none.
    ///
    /// # Errors
    /// `Invalid` if it is neither file nor block device, `Busy` if it is in use (unless `force_mounted`), `Device`.
    pub fn open(path: &Path, size: u64, force_mounted: bool) -> Result<Self> {
        let access = if force_mounted { Access::ReadWriteMounted } else { Access::ReadWrite };
        let name = path.display().to_string();
        match FileStorage::open(path, access, ROLE) {
            Ok(storage) => Ok(Self::storage(Arc::new(storage), name)),
            Err(e) if e.kind == ErrorKind::NotFound => {
                let (file, storage, _) = PartialFile::create(path, size, ROLE)?;
                Ok(Self { created: Some(file), ..Self::storage(Arc::new(storage), name) })
            }
            Err(e) => Err(e),
        }
    }

    /// Any storage, which the caller keeps others out of; errors call it `name`.
    pub fn storage(storage: Arc<dyn Storage>, name: String) -> Self {
        Self { storage, name, created: None, written: AtomicU64::new(0), zeroed: AtomicU64::new(0) }
    }

    fn check_size(&self, needed: u64) -> Result<()> {
        let found = self.storage.size();
        if found >= needed {
            return Ok(());
        }
        let reason = format!("it has {found} bytes, and the image {needed}; give a larger target");
        Err(Error::new(ErrorKind::Invalid, format!("restore to {}", self.name), reason))
    }

    fn fill(
        &self,
        source: &Image,
        force_damaged: bool,
        progress: &dyn Fn(RestorePhase, u64, u64) -> ControlFlow<()>,
    ) -> Result<RestoreReport> {
        self.check_size(source.manifest().header().size)?;
        let verified = verify_image(source, &|done, total| progress(RestorePhase::Verifying, done, total))?;
        if let (Some(&first), false) = (verified.damaged.first(), force_damaged || planted("damage-is-restored")) {
            let reason = format!("{} extents differ from the manifest, this is the first", verified.damaged.len());
            return Err(Error::new(ErrorKind::Mismatch, "verify the image before restoring it", reason)
                .at(first)
                .hint(&format!(
                    "nothing was written to {}; take another backup, or restore what there is with --force damaged",
                    self.name
                )));
        }
        self.write(source, &verified, &|done, total| progress(RestorePhase::Writing, done, total))
            .map_err(|error| self.warn(error))?;
        Ok(RestoreReport {
            verified,
            written_bytes: self.written.load(Ordering::Relaxed),
            zero_bytes: self.zeroed.load(Ordering::Relaxed),
            created: self.created.is_some(),
        })
    }

    fn write(
        &self,
        source: &Image,
        verified: &VerifyReport,
        progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        source.scan(&Writing { target: self, verified }, progress)?;
        self.storage.sync().map_err(|e| self.failed("sync", &e))?;
        self.created.as_ref().map_or(Ok(()), |file| file.place(false))
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        if self.created.is_none() {
            self.storage.zero(range, Zeroing::ANY).map_err(|e| self.failed("write zeroes", &e).at(range.start))?;
        }
        self.zeroed.fetch_add(range.len(), Ordering::Relaxed);
        Ok(())
    }

    fn failed(&self, operation: &str, source: &io::Error) -> Error {
        Error::io(ROLE, format!("{operation} to {}", self.name), source)
    }

    fn warn(&self, error: Error) -> Error {
        match self.created {
            Some(_) => error,
            None => error.hint(&format!("{} is now incomplete: do not use it before another restore", self.name)),
        }
    }

    fn give_up(&self, error: Error) -> Error {
        match self.created.as_ref().map_or(Ok(()), PartialFile::discard) {
            Ok(()) => error,
            Err(left) => error.hint(&format!("and an incomplete file is left behind: {left}")),
        }
    }
}

/// The second reading of an image, which writes what it reads.
struct Writing<'a> {
    target: &'a Target,
    verified: &'a VerifyReport,
}

impl Sink for Writing<'_> {
    fn data(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut end = 0;
        for run in data_runs(bytes, ZERO_UNIT) {
            self.zero(offset, end..run.start)?;
            let at = offset + run.start as u64;
            self.target
                .storage
                .write_at(&bytes[run.clone()], at)
                .map_err(|e| self.target.failed("write", &e).at(at))?;
            self.target.written.fetch_add(run.len() as u64, Ordering::Relaxed);
            end = run.end;
        }
        self.zero(offset, end..bytes.len())
    }

    fn hole(&self, range: ByteRange) -> Result<()> {
        self.target.zero(range)
    }

    fn damaged(&self, offset: u64) -> Result<()> {
        if self.verified.damaged.binary_search(&offset).is_ok() {
            return Ok(());
        }
        let reason =
            "an extent that was intact a moment ago is not any more: the image is being changed, or its disk fails";
        Err(Error::new(ErrorKind::Mismatch, "read the image again to restore it", reason).at(offset))
    }
}

impl Writing<'_> {
    fn zero(&self, offset: u64, part: std::ops::Range<usize>) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        self.target.zero(ByteRange { start: offset + part.start as u64, end: offset + part.end as u64 })
    }
}
