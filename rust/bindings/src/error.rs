//! Exceptions: one class for each kind of engine error, all under `BlockcowError`, with the error's fields as
//! attributes.

#![allow(missing_docs, reason = "the macro's types have no place for documentation; the stub documents them")]

use blockcow_engine::error::{Error, ErrorKind};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;

create_exception!(blockcow, BlockcowError, PyException, "Base of all failures.");
create_exception!(blockcow, BusyError, BlockcowError);
create_exception!(blockcow, ExistsError, BlockcowError);
create_exception!(blockcow, NotFoundError, BlockcowError);
create_exception!(blockcow, DeviceError, BlockcowError);
create_exception!(blockcow, ContainerError, BlockcowError);
create_exception!(blockcow, DestinationError, BlockcowError);
create_exception!(blockcow, ManifestError, BlockcowError);
create_exception!(blockcow, MismatchError, BlockcowError);
create_exception!(blockcow, TimeoutExpired, BlockcowError);
create_exception!(blockcow, TrespassError, BlockcowError);
create_exception!(blockcow, CancelledError, BlockcowError);
create_exception!(blockcow, StateError, BlockcowError);

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    for class in [
        py.get_type::<BlockcowError>(),
        py.get_type::<BusyError>(),
        py.get_type::<ExistsError>(),
        py.get_type::<NotFoundError>(),
        py.get_type::<DeviceError>(),
        py.get_type::<ContainerError>(),
        py.get_type::<DestinationError>(),
        py.get_type::<ManifestError>(),
        py.get_type::<MismatchError>(),
        py.get_type::<TimeoutExpired>(),
        py.get_type::<TrespassError>(),
        py.get_type::<CancelledError>(),
        py.get_type::<StateError>(),
    ] {
        module.add(class.name()?.extract::<String>()?.as_str(), class)?;
    }
    Ok(())
}

/// The Python exception for an engine error; what is invalid is a `ValueError`, as everywhere in Python.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let text = error.to_string();
    let raised = match error.kind {
        ErrorKind::Invalid => return PyValueError::new_err(text),
        ErrorKind::Busy => BusyError::new_err(text),
        ErrorKind::Exists => ExistsError::new_err(text),
        ErrorKind::NotFound => NotFoundError::new_err(text),
        ErrorKind::Device => DeviceError::new_err(text),
        ErrorKind::Container => ContainerError::new_err(text),
        ErrorKind::Destination => DestinationError::new_err(text),
        ErrorKind::Manifest => ManifestError::new_err(text),
        ErrorKind::Mismatch => MismatchError::new_err(text),
        ErrorKind::Timeout => TimeoutExpired::new_err(text),
        ErrorKind::Trespass => TrespassError::new_err(text),
        ErrorKind::Cancelled => CancelledError::new_err(text),
        ErrorKind::State => StateError::new_err(text),
        _ => BlockcowError::new_err(text),
    };
    match describe(raised.value(py), error) {
        Ok(()) => raised,
        Err(failure) => failure,
    }
}

fn describe(exception: &Bound<'_, PyAny>, error: &Error) -> PyResult<()> {
    exception.setattr("kind", error.kind.name())?;
    exception.setattr("operation", &error.operation)?;
    exception.setattr("errno", error.errno)?;
    exception.setattr("offset", error.offset)
}

/// Runs engine work without the GIL and turns its error into an exception.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Error> + Send) -> PyResult<T> {
    py.detach(work).map_err(|error| raise(py, &error))
}
