//! Opens what the container lies on, as Python describes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockcow_engine::driver::ContainerPlace;
use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::geometry::ByteRange;
use blockcow_engine::storage::{Access, FileStorage};
use blockcow_frontends::nbd::client::NbdStorage;

use crate::place;

/// A container's kind, its path or sections, and its size in bytes.
pub struct Description {
    /// `file`, `block`, `nbd`, `sections` or `memory`.
    pub kind: String,
    /// The file or block device.
    pub path: Option<PathBuf>,
    /// Offsets and lengths of the sections.
    pub sections: Vec<(u64, u64)>,
    /// The size; 0 takes the whole block device or export.
    pub bytes: u64,
    /// The export of an NBD server.
    pub export: Option<Arc<NbdStorage>>,
}

impl Description {
    /// Opens or creates it.
    pub fn open(self) -> Result<ContainerPlace> {
        if let Some(export) = self.export {
            return Ok(ContainerPlace::Storage(place::container(export, self.bytes)?));
        }
        match (self.kind.as_str(), &self.path) {
            ("memory", _) => Ok(ContainerPlace::Memory(self.bytes)),
            ("sections", _) => Ok(ContainerPlace::Sections(byte_ranges(&self.sections)?)),
            ("file", Some(path)) => Ok(ContainerPlace::Storage(Arc::new(create(path, self.bytes)?))),
            ("block", Some(path)) => {
                let storage = FileStorage::open(path, Access::ReadWrite, ErrorKind::Container)?;
                Ok(ContainerPlace::Storage(Arc::new(storage)))
            }
            (kind, _) => Err(Error::new(ErrorKind::Invalid, "container", format!("unknown kind {kind:?}, or no path"))),
        }
    }
}

/// The ranges that Python names as pairs of offset and length.
pub fn byte_ranges(pairs: &[(u64, u64)]) -> Result<Vec<ByteRange>> {
    pairs.iter().map(|&(offset, length)| ByteRange::at(offset, length)).collect()
}

/// A file that nothing else can reach and that vanishes with its last descriptor, so that no kill leaves it behind.
fn create(path: &Path, bytes: u64) -> Result<FileStorage> {
    let failed = |operation: &str, error| {
        Error::io(ErrorKind::Container, format!("{operation} the container {}", path.display()), &error)
    };
    let storage = FileStorage::create_unnamed(path, bytes, ErrorKind::Container)?;
    match storage.allocate() {
        Ok(()) => Ok(storage),
        // A file system that cannot allocate ahead may run out of space later; then the policy applies.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(storage),
        Err(error) => Err(failed("allocate", error).hint("free space there, or give a smaller --container-size")),
    }
}
