//! `verify`, `restore` and `read_manifest`: functions on images and manifests.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::PathBuf;

use blockcow_engine::error::Error;
use blockcow_engine::manifest::Manifest;
use blockcow_engine::restore::{RestoreOptions, RestorePhase, Target, restore_image};
use blockcow_engine::verify::verify_image;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;

use crate::error::{detached, raise};
use crate::place;

/// A Python value made of what serialises to JSON.
pub fn from_json<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text =
        serde_json::to_string(value).map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}

/// Calls Python's progress function from engine work that runs without the GIL, and keeps what it raised.
struct Progress {
    callback: Option<Py<PyAny>>,
    raised: RefCell<Option<PyErr>>,
}

impl Progress {
    fn new(callback: Option<Py<PyAny>>) -> Self {
        Self { callback, raised: RefCell::new(None) }
    }

    fn tell<'a>(&self, arguments: impl for<'py> pyo3::call::PyCallArgs<'py> + 'a) -> ControlFlow<()> {
        let outcome = Python::attach(|py| {
            py.check_signals()?;
            self.callback.as_ref().map_or(Ok(()), |callback| callback.call1(py, arguments).map(drop))
        });
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.raised.replace(Some(error));
                ControlFlow::Break(())
            }
        }
    }

    /// The work's result, or what the progress function raised.
    fn settle<T>(self, py: Python<'_>, outcome: Result<T, Error>) -> PyResult<T> {
        match self.raised.into_inner() {
            Some(raised) => Err(raised),
            None => outcome.map_err(|error| raise(py, &error)),
        }
    }
}

/// See the stub.
#[pyfunction]
#[pyo3(signature = (image, manifest, progress = None))]
pub fn verify<'py>(
    py: Python<'py>,
    image: PathBuf,
    manifest: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (outcome, progress) = py.detach(move || {
        let progress = Progress::new(progress);
        let tell = |done, total| progress.tell((done, total));
        let outcome = place::image(&image, &manifest).and_then(|image| verify_image(&image, &tell));
        (outcome, progress)
    });
    let report = progress.settle(py, outcome)?;
    let result = PyDict::new(py);
    result.set_item("bytes", report.bytes)?;
    result.set_item("digest", report.digest)?;
    result.set_item("damaged", report.damaged)?;
    Ok(result)
}

/// See the stub.
#[pyfunction]
#[pyo3(signature = (image, manifest, device, *, force_damaged = false, force_mounted = false, progress = None))]
pub fn restore<'py>(
    py: Python<'py>,
    image: PathBuf,
    manifest: PathBuf,
    device: PathBuf,
    force_damaged: bool,
    force_mounted: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = RestoreOptions { force_damaged, force_mounted };
    let (outcome, progress) = py.detach(move || {
        let progress = Progress::new(progress);
        let tell = |phase, done, total| {
            let phase = if phase == RestorePhase::Verifying { "verify" } else { "restore" };
            progress.tell((phase, done, total))
        };
        let outcome = match (place::uri_of(&image), place::target(&device)) {
            (Ok(None), Ok(None)) => blockcow_engine::restore::restore(&image, &manifest, &device, options, &tell),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (_, Ok(target)) => place::image(&image, &manifest).and_then(|image| {
                let target = match target {
                    Some(target) => target,
                    None => Target::open(&device, image.manifest().header().size, force_mounted)?,
                };
                restore_image(&image, target, force_damaged, &tell)
            }),
        };
        (outcome, progress)
    });
    let report = progress.settle(py, outcome)?;
    let result = PyDict::new(py);
    result.set_item("bytes", report.verified.bytes)?;
    result.set_item("digest", report.verified.digest)?;
    result.set_item("damaged", report.verified.damaged)?;
    result.set_item("written_bytes", report.written_bytes)?;
    result.set_item("zero_bytes", report.zero_bytes)?;
    Ok(result)
}

/// See the stub.
#[pyfunction]
pub fn read_manifest<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyDict>> {
    let manifest = detached(py, || Manifest::load(&path))?;
    Ok(from_json(py, manifest.header())?.cast_into::<PyDict>()?)
}
