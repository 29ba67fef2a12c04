//! The backup storage: takes an image in any order and publishes it with its manifest, or leaves nothing that looks
//! whole.
//!
//! An image file is written as `<path>.partial` and renamed when it is complete; a block device, or any other storage, is
//! written in place, and only a manifest says that it is complete. Does not decide what is written, nor read it back.

mod remembered;

pub use remembered::Remembered;

use std::ffi::OsString;
use std::fs::FileType;
use std::io::{self, BufWriter};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::manifest::Manifest;
use crate::mutant::planted;
use crate::partial::{PartialFile, folder_of, refuse_among_devices, remove_durably};
use crate::storage::{Access, FileStorage, Storage, Zeroing};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};

const ROLE: ErrorKind = ErrorKind::Destination;

/// Where the manifest of an image lies unless somebody says otherwise: `<image>.manifest`.
pub fn manifest_path_for(image: &Path) -> PathBuf {
    let mut name = OsString::from(image);
    name.push(".manifest");
    name.into()
}

/// One image under way. Held exclusively until it is dropped; dropped unpublished, it is abandoned.
pub struct Destination {
    storage: Arc<dyn Storage>,
    name: String,
    manifest_path: PathBuf,
    overwrite: bool,
    /// The file that is to be renamed; `None` for what is written in place.
    file: Option<PartialFile>,
    replaced_leftover: bool,
    /// Whether a dead process began it, which may have left its half-written manifest too.
    resumed: bool,
    written: AtomicU64,
    zeroed: AtomicU64,
    /// Whether it has been published or abandoned, or one of both was tried.
    settled: Mutex<bool>,
}

impl Destination {
    /// A block device if `path` is one, else a file.
    ///
    /// # Errors
    /// Those of `block_device` and `file`.
    pub fn open(path: &Path, manifest_path: &Path, size: u64, overwrite: bool) -> Result<Self> {
        match file_type(path)? {
            Some(found) if found.is_block_device() => Self::block_device(path, manifest_path, size, overwrite),
            _ => Self::file(path, manifest_path, size, overwrite),
        }
    }

    /// A new image file of `size` bytes, sparse. An image or manifest that stands there is replaced when this one is
    /// published, and only then, if `overwrite` allows it.
    ///
    /// # Errors
    /// `Exists`, `Busy` if another backup is writing there, `Invalid` for what is no file, `NotFound` if a folder is
    /// missing, `Destination` if the file cannot be created.
    pub fn file(path: &Path, manifest_path: &Path, size: u64, overwrite: bool) -> Result<Self> {
        check_names(path, manifest_path)?;
        match file_type(path)? {
            Some(found) if !(found.is_file() || found.is_symlink()) => {
                let reason = "it is neither a regular file nor a block device; name a new file or a block device";
                return Err(Error::new(ErrorKind::Invalid, format!("create the image {}", path.display()), reason));
            }
            Some(_) if !overwrite => return Err(exists("image", path)),
            _ => {}
        }
        check_manifest(manifest_path, overwrite)?;
        let (file, storage, replaced_leftover) = PartialFile::create(path, size, ROLE)?;
        let mut destination = Self::held(Arc::new(storage), path.display().to_string(), manifest_path, overwrite);
        destination.file = Some(file);
        destination.replaced_leftover = replaced_leftover;
        Ok(destination)
    }

    /// A block device of at least `size` bytes. A manifest that stands there is removed now, if `overwrite` allows it,
    /// because what it says ends with the first write.
    ///
    /// # Errors
    /// `Exists` for the manifest, `Busy` if the device is mounted or in use, `Invalid` if it is too small or no block
    /// device, `NotFound`, `Destination`.
    pub fn block_device(path: &Path, manifest_path: &Path, size: u64, overwrite: bool) -> Result<Self> {
        check_names(path, manifest_path)?;
        check_manifest(manifest_path, overwrite)?;
        let storage = FileStorage::open(path, Access::ReadWrite, ROLE)?;
        if !storage.is_block_device() {
            return Err(Error::new(ErrorKind::Invalid, format!("use {}", path.display()), "it is no block device"));
        }
        Self::storage(Arc::new(storage), path.display().to_string(), manifest_path, size, overwrite)
    }

    /// Any storage of at least `size` bytes, which the caller keeps others out of; errors call it `name`. As for a block
    /// device, a manifest that stands there is removed now, if `overwrite` allows it.
    ///
    /// # Errors
    /// `Exists` for the manifest, `Invalid` if the storage is too small, `NotFound`, `Destination`.
    pub fn storage(
        storage: Arc<dyn Storage>,
        name: String,
        manifest_path: &Path,
        size: u64,
        overwrite: bool,
    ) -> Result<Self> {
        check_manifest(manifest_path, overwrite)?;
        if storage.size() < size {
            let reason = format!("it has {} bytes, and the image needs {size}; use a larger one", storage.size());
            return Err(Error::new(ErrorKind::Invalid, format!("use {name}"), reason));
        }
        remove_durably(manifest_path, ROLE)?;
        Ok(Self::held(storage, name, manifest_path, overwrite))
    }

    fn held(storage: Arc<dyn Storage>, name: String, manifest_path: &Path, overwrite: bool) -> Self {
        Self {
            storage,
            name,
            manifest_path: manifest_path.into(),
            overwrite,
            file: None,
            replaced_leftover: false,
            resumed: false,
            written: AtomicU64::new(0),
            zeroed: AtomicU64::new(0),
            settled: Mutex::new(false),
        }
    }

    /// Puts something before the storage, such as a fault or a throttle.
    #[must_use]
    pub fn decorate(mut self, decorator: impl FnOnce(Arc<dyn Storage>) -> Arc<dyn Storage>) -> Self {
        self.storage = decorator(Arc::clone(&self.storage));
        self
    }

    /// Whether the remains of an interrupted backup stood in the way and were removed.
    pub fn replaced_leftover(&self) -> bool {
        self.replaced_leftover
    }

    /// Whether it lies on this machine's disks or in its memory.
    pub fn is_local(&self) -> bool {
        self.storage.ends_with_its_process()
    }

    /// Bytes written so far, zeroes not counted.
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that were said to be zero so far.
    pub fn zero_bytes(&self) -> u64 {
        self.zeroed.load(Ordering::Relaxed)
    }

    /// Writes all of `buf` at a byte offset of the image.
    ///
    /// # Errors
    /// `Destination`.
    pub fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        let range = ByteRange { start: offset, end: offset + buf.len() as u64 };
        self.storage.will_write(range).map_err(|e| self.failed("allocate", &e).at(offset))?;
        self.storage.write_at(buf, offset).map_err(|e| self.failed("write", &e).at(offset))?;
        self.written.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes bytes of the image zero that have not been written to. In a new file they are already.
    ///
    /// # Errors
    /// `Destination`.
    pub fn zero(&self, range: ByteRange) -> Result<()> {
        if self.file.is_some() {
            self.storage.stays_zero(range).map_err(|e| self.failed("punch a hole", &e).at(range.start))?;
        } else if !planted("zeroes-are-not-written-over-what-was-there") {
            self.storage.zero(range, Zeroing::ANY).map_err(|e| self.failed("write zeroes", &e).at(range.start))?;
        }
        self.zeroed.fetch_add(range.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes the image durable, gives it its name, and only then publishes the manifest that calls it complete.
    ///
    /// # Errors
    /// `Exists` if a file came to stand there meanwhile, `State` if it was settled before, else `Destination`. After an
    /// error neither image nor manifest is there, or the error says which could not be removed.
    pub fn publish(&self, manifest: &Manifest) -> Result<()> {
        self.settle("publish the backup")?;
        let published = self.write_manifest(manifest).and_then(|sheet| {
            let placed = self.place(&sheet);
            placed.map_err(|error| also(error, sheet.discard()))
        });
        published.map_err(|error| also(error, self.discard_image()))
    }

    /// Removes what was written, so that nothing bears the final name. What is written in place keeps what is on it,
    /// without a manifest.
    ///
    /// # Errors
    /// `Destination` with the file that is left, `State` if it was settled before.
    pub fn abandon(&self) -> Result<()> {
        self.settle("abandon the backup")?;
        self.discard_image()
    }

    /// Whether it has been published or abandoned, or one of both was tried: then nothing is left to do.
    pub fn is_settled(&self) -> bool {
        *self.settled.lock()
    }

    fn settle(&self, operation: &str) -> Result<()> {
        let mut settled = self.settled.lock();
        if std::mem::replace(&mut *settled, true) {
            return Err(Error::new(ErrorKind::State, operation, "it was published or abandoned before"));
        }
        Ok(())
    }

    fn write_manifest(&self, manifest: &Manifest) -> Result<PartialFile> {
        let synced = if planted("image-is-not-synced") { Ok(()) } else { self.storage.sync() };
        synced.map_err(|e| self.failed("sync", &e))?;
        let (sheet, file) = PartialFile::create_text(&self.manifest_path, ROLE)?;
        let mut out = BufWriter::new(&file);
        let written = manifest.write_to(&mut out).and_then(|()| file.sync_all());
        written.map(|()| drop(out)).map_err(|e| {
            let error = Error::io(ROLE, format!("write the manifest {}", self.manifest_path.display()), &e);
            also(with_advice(error), sheet.discard())
        })?;
        Ok(sheet)
    }

    fn place(&self, sheet: &PartialFile) -> Result<()> {
        if planted("manifest-gets-its-name-before-the-image") {
            sheet.place(self.overwrite)?;
        }
        if self.overwrite && !planted("old-manifest-stays-beside-a-new-image") {
            // An old manifest must never stand beside a new image.
            remove_durably(&self.manifest_path, ROLE)?;
        }
        if let Some(file) = &self.file {
            file.place(self.overwrite)?;
        }
        sheet.place(self.overwrite)
    }

    fn discard_image(&self) -> Result<()> {
        if planted("partial-image-is-left-behind") {
            return Ok(());
        }
        if self.resumed {
            self.discard_sheet()?;
        }
        self.file.as_ref().map_or(Ok(()), PartialFile::discard)
    }

    fn failed(&self, operation: &str, source: &io::Error) -> Error {
        with_advice(Error::io(ROLE, format!("{operation} to the destination {}", self.name), source))
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !*self.settled.get_mut() {
            // Nobody is left to be told of an error; what stays has no final name, and the next backup replaces it.
            let _ = self.discard_image();
        }
    }
}

fn file_type(path: &Path) -> Result<Option<FileType>> {
    // A link that leads nowhere is still a name that is taken.
    match std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path)) {
        Ok(found) => Ok(Some(found.file_type())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(ROLE, format!("look at {}", path.display()), &e)),
    }
}

fn check_names(path: &Path, manifest_path: &Path) -> Result<()> {
    if path == manifest_path {
        let reason = "image and manifest have the same name";
        return Err(Error::new(ErrorKind::Invalid, format!("create {}", path.display()), reason));
    }
    Ok(())
}

/// Finds now what would otherwise fail when all the work is done.
fn check_manifest(manifest_path: &Path, overwrite: bool) -> Result<()> {
    let operation = || format!("create the manifest {}", manifest_path.display());
    match file_type(manifest_path)? {
        Some(found) if !(found.is_file() || found.is_symlink()) => {
            return Err(Error::new(ErrorKind::Invalid, operation(), "it is there and no regular file; name another"));
        }
        Some(_) if !overwrite => return Err(exists("manifest", manifest_path)),
        _ => {}
    }
    refuse_among_devices(manifest_path)?;
    let folder = folder_of(manifest_path);
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).map_err(|e| {
        let source = io::Error::from(e);
        let kind = if source.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ROLE };
        Error::io(kind, operation(), &source).hint(&format!("{} must be a folder to write in", folder.display()))
    })
}

fn exists(what: &str, path: &Path) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!("create the {what} {}", path.display()),
        "it exists already; choose another destination, remove it, or allow overwriting",
    )
}

fn with_advice(error: Error) -> Error {
    match error.errno {
        Some(libc::ENOSPC | libc::EDQUOT) => error.hint("free space there, or choose another destination"),
        Some(libc::EIO) => error.hint("the destination's disk may be failing; check the kernel's log"),
        _ => error,
    }
}

/// The error, and what it left behind if that could not be removed.
fn also(error: Error, cleaned: Result<()>) -> Error {
    match cleaned {
        Ok(()) => error,
        Err(left) => error.hint(&format!("and what was written is left behind, incomplete: {left}")),
    }
}
