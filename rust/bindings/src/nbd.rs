//! `NbdServer`: serves devices to NBD clients, on threads that never touch Python.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use blockcow_engine::error::{Error, ErrorKind};
use blockcow_frontends::nbd::server::{Export, Server};
use pyo3::prelude::*;

use crate::device::Device;
use crate::error::{detached, raise};

/// How long requests under way may take when the server is closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the stub.
#[pyclass(frozen, module = "blockcow._blockcow")]
pub struct NbdServer(Server);

#[pymethods]
impl NbdServer {
    #[new]
    fn new(py: Python<'_>, exports: Vec<(String, PyRef<'_, Device>)>) -> PyResult<Self> {
        let exports = exports
            .into_iter()
            .map(|(name, device)| Ok(Export::new(name, device.share_driver()?, device.is_read_only())))
            .collect::<Result<_, Error>>();
        let server = exports.and_then(Server::new).map_err(|error| raise(py, &error))?;
        Ok(Self(server))
    }

    fn serve(&self, py: Python<'_>, listener_fd: RawFd) -> PyResult<()> {
        let listener = (listener_fd >= 0).then(|| {
            // SAFETY: the number is not -1. It is only duplicated, during this call; should nothing be open under it, or
            // another thread close it meanwhile, that fails or duplicates what is open by then, and harms no memory.
            unsafe { BorrowedFd::borrow_raw(listener_fd) }.try_clone_to_owned()
        });
        detached(py, || match listener {
            Some(Ok(listener)) => self.0.serve(listener),
            Some(Err(error)) => Err(Error::io(ErrorKind::Invalid, "take a listening socket", &error)),
            None => Err(Error::new(ErrorKind::Invalid, "take a listening socket", "no descriptor is negative")),
        })
    }

    fn connections(&self) -> usize {
        self.0.connections()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close(PATIENCE));
    }
}
