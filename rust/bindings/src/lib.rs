//! The Python extension `blockcow._blockcow`: thin classes over the engine, one file a class. No decisions are made
//! here.

use pyo3::prelude::*;

mod backup;
mod container;
mod device;
mod error;
mod fuse;
mod image;
mod nbd;

/// Devices, backups, verify and restore.
#[pymodule]
fn _blockcow(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    module.add_class::<device::Device>()?;
    module.add_class::<backup::Backup>()?;
    module.add_class::<fuse::FuseExport>()?;
    module.add_function(wrap_pyfunction!(backup::cut_together, module)?)?;
    module.add_class::<nbd::NbdServer>()?;
    module.add_function(wrap_pyfunction!(image::verify, module)?)?;
    module.add_function(wrap_pyfunction!(image::restore, module)?)?;
    module.add_function(wrap_pyfunction!(image::read_manifest, module)?)
}
