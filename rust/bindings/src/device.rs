//! `Device`: a file or block device that is held exclusively, with the engine's driver in front of it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};

use blockcow_engine::Policy;
use blockcow_engine::destination::Destination;
use blockcow_engine::driver::{Driver, Listing, Remains, Spec};
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::storage::{Access, FileStorage, Storage};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::collections::BTreeMap;

use crate::backup::{Backup, duration};
use crate::container::{Description, byte_ranges};
use crate::error::{detached, raise};

/// See the stub.
#[pyclass(subclass, module = "blockcow._blockcow")]
pub struct Device {
    path: PathBuf,
    size: u64,
    logical_block: u64,
    direct: bool,
    read_only: bool,
    /// Operations hold this for reading; closing takes the driver out.
    driver: RwLock<Option<Arc<Driver>>>,
    /// The same storage that the driver stands before, for its descriptors.
    storage: Weak<FileStorage>,
}

type Result<T> = std::result::Result<T, Error>;

impl Device {
    fn driver(&self) -> RwLockReadGuard<'_, Option<Arc<Driver>>> {
        self.driver.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver, for a front-end. The device stays held until the front-end lets go of it, even if it is closed here.
    pub(crate) fn share_driver(&self) -> Result<Arc<Driver>> {
        self.driver().clone().ok_or_else(|| self.closed())
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::State, format!("use {}", self.path.display()), "the device is closed")
    }

    /// Runs an operation on the open device without the GIL.
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&Arc<Driver>) -> Result<T> + Send) -> PyResult<T> {
        detached(py, || match &*self.driver() {
            Some(driver) => work(driver),
            None => Err(self.closed()),
        })
    }

    fn writable(&self, py: Python<'_>) -> PyResult<()> {
        if !self.read_only {
            return Ok(());
        }
        let operation = format!("write to {}", self.path.display());
        Err(raise(py, &Error::new(ErrorKind::State, operation, "the device was opened read-only")))
    }
}

#[pymethods]
impl Device {
    #[new]
    #[pyo3(signature = (path, *, read_only = false, descriptors = None))]
    fn new(py: Python<'_>, path: PathBuf, read_only: bool, descriptors: Option<Vec<RawFd>>) -> PyResult<Self> {
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let storage = Arc::new(detached(py, || match descriptors {
            None => FileStorage::open(&path, access, ErrorKind::Device),
            Some(descriptors) => adopt(&descriptors),
        })?);
        let (size, logical_block, direct) = (storage.size(), storage.logical_block(), storage.direct());
        let weak = Arc::downgrade(&storage);
        let driver = RwLock::new(Some(Driver::new(storage)));
        Ok(Self { path, size, logical_block, direct, read_only, driver, storage: weak })
    }

    fn descriptors(&self, py: Python<'_>) -> PyResult<Vec<RawFd>> {
        self.with(py, |_| {
            let storage = self.storage.upgrade();
            let (buffered, direct) = storage.as_ref().map(|storage| storage.descriptors()).unzip();
            Ok(buffered.into_iter().chain(direct.flatten()).map(|descriptor| descriptor.as_raw_fd()).collect())
        })
    }

    fn counters(&self, py: Python<'_>) -> PyResult<BTreeMap<String, u64>> {
        self.with(py, |driver| Ok(driver.counters().named().into_iter().collect()))
    }

    #[getter]
    fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    #[getter]
    fn logical_block_size(&self) -> u64 {
        self.logical_block
    }

    #[getter]
    fn direct_io(&self) -> bool {
        self.direct
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.read_only
    }

    #[getter]
    fn state(&self) -> &'static str {
        self.driver().as_ref().map_or("passing", |driver| driver.state())
    }

    fn pread<'py>(&self, py: Python<'py>, length: usize, offset: u64) -> PyResult<Bound<'py, PyBytes>> {
        if length as u64 > self.size {
            let reason = format!("{length} bytes are more than the device has");
            return Err(raise(py, &Error::new(ErrorKind::Invalid, "read from the device", reason).at(offset)));
        }
        PyBytes::new_with(py, length, |bytes| self.with(py, |driver| driver.read(bytes, offset)))
    }

    fn pwrite(&self, py: Python<'_>, data: &Bound<'_, PyAny>, offset: u64) -> PyResult<usize> {
        self.writable(py)?;
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            self.with(py, |driver| driver.write(bytes, offset))?;
            return Ok(bytes.len());
        }
        // Another thread may change a mutable buffer while the GIL is released: write a copy.
        let copy = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        self.with(py, |driver| driver.write(&copy, offset))?;
        Ok(copy.len())
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |driver| driver.flush())
    }

    fn discard(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.writable(py)?;
        self.with(py, |driver| driver.discard(offset, length))
    }

    fn zero(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.writable(py)?;
        self.with(py, |driver| driver.zero(offset, length))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let Some(driver) = self.driver().clone() else { return };
            driver.settle();
            drop(driver);
            self.driver.write().unwrap_or_else(PoisonError::into_inner).take();
        });
    }

    #[pyo3(signature = (*, dest, manifest, dest_overwrite, container_kind, container_path,
        container_sections, container_bytes, staging_bytes, capacity_bytes, drain_bytes, block_size, cbw_timeout, fail_write, limit_read,
        ranges, identity, keep = false))]
    #[allow(clippy::too_many_arguments, reason = "one keyword argument for each thing a backup is made from")]
    fn _prepare(
        &self,
        py: Python<'_>,
        dest: PathBuf,
        manifest: PathBuf,
        dest_overwrite: bool,
        container_kind: String,
        container_path: Option<PathBuf>,
        container_sections: Vec<(u64, u64)>,
        container_bytes: u64,
        staging_bytes: u64,
        capacity_bytes: u64,
        drain_bytes: u64,
        block_size: Option<u64>,
        cbw_timeout: f64,
        fail_write: bool,
        limit_read: Option<u64>,
        ranges: Option<Vec<(u64, u64)>>,
        identity: BTreeMap<String, String>,
        keep: bool,
    ) -> PyResult<Backup> {
        let description = Description {
            kind: container_kind,
            path: container_path,
            sections: container_sections,
            bytes: container_bytes,
        };
        let backup = self.with(py, move |driver| {
            let cbw_timeout = duration(cbw_timeout)?;
            let listing = match ranges {
                Some(pairs) => Listing::Ranges(byte_ranges(&pairs)?),
                None => Listing::Device,
            };
            let container = description.open()?;
            let destination = Destination::open(&dest, &manifest, self.size, dest_overwrite)?;
            let backup = driver.prepare(Spec {
                block_size,
                logical_block: self.logical_block,
                container,
                staging_bytes,
                capacity_bytes,
                drain_bytes,
                destination,
                listing,
                policy: Policy { cbw_timeout, fail_write },
                limit_read,
                identity,
                keep,
            })?;
            Ok(Backup::new(backup, driver))
        })?;
        Ok(backup)
    }

    fn _resume(&self, py: Python<'_>, kept: BTreeMap<String, RawFd>, note: String) -> PyResult<Backup> {
        self.with(py, |driver| {
            let copies = kept.into_iter().map(|(name, descriptor)| Ok((name, duplicate(descriptor)?)));
            let remains = Remains::adopt(copies.collect::<Result<_>>()?, note, None, None)?;
            Ok(Backup::new(driver.resume(remains)?, driver))
        })
    }
}

const TAKE_OVER: &str = "take over the descriptors of another process";

fn duplicate(descriptor: RawFd) -> Result<OwnedFd> {
    if descriptor < 0 {
        return Err(Error::new(ErrorKind::Invalid, TAKE_OVER, format!("{descriptor} is no descriptor")));
    }
    // SAFETY: it is borrowed only for the call of dup; a number that is not open gives EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    borrowed.try_clone_to_owned().map_err(|error| Error::io(ErrorKind::Device, TAKE_OVER, &error))
}

/// A storage over duplicates of the descriptors that another process had.
fn adopt(descriptors: &[RawFd]) -> Result<FileStorage> {
    let mut copies =
        descriptors.iter().map(|&descriptor| duplicate(descriptor)).collect::<Result<Vec<_>>>()?.into_iter();
    match (copies.next(), copies.next(), copies.next()) {
        (Some(buffered), direct, None) => FileStorage::adopt(buffered, direct, ErrorKind::Device),
        _ => Err(Error::new(ErrorKind::Invalid, TAKE_OVER, "give the one or two descriptors that were given away")),
    }
}
