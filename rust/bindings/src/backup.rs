//! `Backup`: one backup of one device.

use std::collections::BTreeMap;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use blockcow_engine::backup;
use blockcow_engine::driver::{self, Driver};
use blockcow_engine::error::{Error, ErrorKind};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::error::{detached, raise};
use crate::image::from_json;

/// How long a wait lasts before Python's signals are looked at.
const SLICE: Duration = Duration::from_millis(50);
/// Events handed to Python at a time.
const MOST_EVENTS: usize = 4096;

/// See the stub.
#[pyclass(module = "blockcow._blockcow")]
pub struct Backup {
    backup: backup::Backup,
    driver: Weak<Driver>,
}

impl Backup {
    /// A prepared backup of the driver's device.
    pub fn new(backup: backup::Backup, driver: &Arc<Driver>) -> Self {
        Self { backup, driver: Arc::downgrade(driver) }
    }
}

#[pymethods]
impl Backup {
    fn cut(&self, py: Python<'_>, timeout: f64) -> PyResult<f64> {
        let held = detached(py, || {
            let timeout = duration(timeout)?;
            let closed = || Error::new(ErrorKind::State, "make the cut", "the device is closed");
            self.driver.upgrade().ok_or_else(closed)?.cut(&self.backup, timeout)
        })?;
        Ok(held.as_secs_f64())
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = timeout.map(duration).transpose().map_err(|error| raise(py, &error))?;
        let start = Instant::now();
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            if py.detach(|| self.backup.wait(Some(slice))) {
                return Ok(true);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }

    #[getter]
    fn at_rest(&self, py: Python<'_>) -> bool {
        py.detach(|| self.backup.at_rest())
    }

    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.backup.cancel());
    }

    fn raise_for_state(&self, py: Python<'_>) -> PyResult<()> {
        match self.backup.cause() {
            Some(cause) => Err(raise(py, &cause)),
            None => Ok(()),
        }
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.backup.status());
        Ok(from_json(py, &status)?.cast_into::<PyDict>()?)
    }

    fn next_events<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Option<Bound<'py, PyList>>> {
        let timeout = duration(timeout).map_err(|error| raise(py, &error))?;
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match py.detach(|| self.backup.next_events(left.min(SLICE), MOST_EVENTS)) {
                None => return Ok(None),
                Some(events) if events.is_empty() && !left.is_zero() => py.check_signals()?,
                Some(events) => return Ok(Some(from_json(py, &events)?.cast_into::<PyList>()?)),
            }
        }
    }

    fn kept(&self, py: Python<'_>) -> PyResult<(BTreeMap<String, RawFd>, String)> {
        let kept = detached(py, || self.backup.kept())?;
        Ok((kept.descriptors.into_iter().map(|(name, copy)| (name, copy.into_raw_fd())).collect(), kept.note))
    }

    fn block_map(&self, py: Python<'_>, cells: u32) -> Vec<(u64, u64, u64, u64)> {
        let cells = py.detach(|| self.backup.block_map(cells));
        cells.iter().map(|cell| (cell.to_do, cell.in_container, cell.copied_before_write, cell.swept)).collect()
    }
}

/// See the stub.
#[pyfunction]
pub fn cut_together(py: Python<'_>, backups: Vec<PyRef<'_, Backup>>, timeout: f64) -> PyResult<f64> {
    let backups: Vec<&Backup> = backups.iter().map(|backup| &**backup).collect();
    let held = detached(py, || {
        let timeout = duration(timeout)?;
        let closed = || Error::new(ErrorKind::State, "make the cut", "a device is closed");
        let drivers: Vec<_> = backups
            .iter()
            .map(|backup| backup.driver.upgrade().ok_or_else(closed))
            .collect::<Result<_, _>>()
            .inspect_err(|_| backups.iter().for_each(|backup| backup.backup.cancel()))?;
        let group: Vec<_> = drivers.iter().zip(&backups).map(|(driver, backup)| (&**driver, &backup.backup)).collect();
        driver::cut_together(&group, timeout)
    })?;
    Ok(held.as_secs_f64())
}

/// A number of seconds that Python gave.
pub fn duration(seconds: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| Error::new(ErrorKind::Invalid, "time limit", format!("{seconds} seconds: {error}")))
}
