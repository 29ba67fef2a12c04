//! `FuseExport`: a device as a file, served on threads that never touch Python.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_frontends::fuse::{Export, Options};
use pyo3::prelude::*;

use crate::backup::duration;
use crate::device::Device;
use crate::error::{detached, raise};

/// See the stub.
#[pyclass(frozen, module = "blockcow._blockcow")]
pub struct FuseExport(Export);

#[pymethods]
impl FuseExport {
    #[staticmethod]
    #[pyo3(signature = (device, mountpoint, *, threads = 4, allow_other = true))]
    fn mount(
        py: Python<'_>,
        device: &Device,
        mountpoint: PathBuf,
        threads: usize,
        allow_other: bool,
    ) -> PyResult<Self> {
        let options = Options { threads, allow_other, read_only: device.is_read_only() };
        detached(py, || Ok(Self(Export::mount(device.share_driver()?, &mountpoint, options)?)))
    }

    #[staticmethod]
    fn adopt(py: Python<'_>, device: &Device, descriptors: Vec<RawFd>, note: &str) -> PyResult<Self> {
        let ours = descriptors.into_iter().map(duplicate).collect::<Result<_>>().map_err(|error| raise(py, &error))?;
        detached(py, || Ok(Self(Export::adopt(device.share_driver()?, ours, note)?)))
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.0.descriptors().map(|descriptor| descriptor.as_raw_fd()).collect()
    }

    fn note(&self) -> String {
        self.0.note()
    }

    #[getter]
    fn can_resend(&self) -> bool {
        self.0.can_resend()
    }

    #[getter]
    fn mountpoint(&self) -> PathBuf {
        self.0.mountpoint()
    }

    #[pyo3(signature = (timeout = 30.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        detached(py, || self.0.close(duration(timeout)?))
    }
}

fn duplicate(number: RawFd) -> Result<OwnedFd> {
    let operation = "take over a FUSE connection";
    if number < 0 {
        return Err(Error::new(ErrorKind::Invalid, operation, "no descriptor is negative"));
    }
    // SAFETY: the number is not -1. It is only duplicated, during this call; should nothing be open under it, or another
    // thread close it meanwhile, that fails or duplicates what is open by then, and harms no memory.
    let copy = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned();
    copy.map_err(|error| Error::io(ErrorKind::Invalid, operation, &error))
}
