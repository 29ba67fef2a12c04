//! `NbdExport`: an export of an NBD server, looked at before a backup takes it, over the same connections.

use std::sync::{Arc, Mutex, PoisonError};

use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::storage::{Access, Storage};
use blockcow_frontends::nbd::client::{NbdStorage, Uri};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::backup::duration;
use crate::error::{detached, raise};
use crate::place;

/// See the stub.
#[pyclass(frozen, module = "blockcow._blockcow")]
pub struct NbdExport {
    uri: String,
    identity: String,
    size: u64,
    can_sync: bool,
    storage: Mutex<Option<Arc<NbdStorage>>>,
}

impl NbdExport {
    /// Takes the connections away, for a backup that lets go of them at its end.
    pub fn take(&self) -> Result<Arc<NbdStorage>> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| self.gone())
    }

    fn borrow(&self) -> Result<Arc<NbdStorage>> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| self.gone())
    }

    fn gone(&self) -> Error {
        let reason = "its connections are closed, or a backup has them; open it again";
        Error::new(ErrorKind::State, format!("use {}", self.uri), reason)
    }
}

#[pymethods]
impl NbdExport {
    #[new]
    #[pyo3(signature = (uri, role, *, timeout))]
    fn new(py: Python<'_>, uri: &str, role: &str, timeout: f64) -> PyResult<Self> {
        let role = match role {
            "container" => ErrorKind::Container,
            _ => ErrorKind::Destination,
        };
        detached(py, || {
            let storage = place::open(&Uri::parse(uri)?, Access::ReadWrite, Some(duration(timeout)?), role)?;
            Ok(Self {
                uri: storage.uri().to_string(),
                identity: storage.identity(),
                size: storage.size(),
                can_sync: storage.can_sync(),
                storage: Mutex::new(Some(Arc::new(storage))),
            })
        })
    }

    #[getter]
    fn uri(&self) -> &str {
        &self.uri
    }

    #[getter]
    fn identity(&self) -> &str {
        &self.identity
    }

    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    #[getter]
    fn can_sync(&self) -> bool {
        self.can_sync
    }

    fn pread<'py>(&self, py: Python<'py>, length: usize, offset: u64) -> PyResult<Bound<'py, PyBytes>> {
        let operation = || format!("read {}", self.uri);
        if length as u64 > self.size {
            let reason = format!("{length} bytes are more than it has");
            return Err(raise(py, &Error::new(ErrorKind::Invalid, operation(), reason).at(offset)));
        }
        let failed = |error| Error::io(ErrorKind::Device, operation(), &error).at(offset);
        PyBytes::new_with(py, length, |bytes| detached(py, || self.borrow()?.read_at(bytes, offset).map_err(failed)))
    }

    fn close(&self, py: Python<'_>) {
        // Closed already is closed.
        py.detach(|| self.take().map(drop).unwrap_or_default());
    }
}
