//! Whether an image is, byte for byte, what its manifest says. Changes nothing.

use std::ops::ControlFlow;
use std::path::Path;

use crate::error::Result;
use crate::geometry::ByteRange;
use crate::scan::{Image, Sink};
use crate::sync::Mutex;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bytes that were verified: the size of the image.
    pub bytes: u64,
    /// The backup's digest, in hexadecimal.
    pub digest: String,
    /// The offsets of the extents that differ from the manifest, in bytes, ascending. Empty: the image is intact.
    pub damaged: Vec<u64>,
}

/// Reads all of an image and compares it with its manifest. `progress` is told the bytes done and in all about five
/// times a second, on the calling thread, and may break off.
///
/// # Errors
/// `NotFound` if image or manifest is missing (an interrupted backup is named as such), `Busy` if a program may be
/// writing to the image, `Manifest`, `Mismatch` if the image's size is not what the manifest says, `Destination` with
/// the offset if the image cannot be read, `Cancelled`. Damage is no error but in the report.
pub fn verify(image: &Path, manifest: &Path, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<VerifyReport> {
    Findings::of(&Image::open(image, manifest)?, progress)
}

/// Collects damage.
#[derive(Default)]
pub(crate) struct Findings {
    damaged: Mutex<Vec<u64>>,
}

impl Findings {
    /// Scans an open image.
    pub(crate) fn of(image: &Image, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<VerifyReport> {
        let findings = Self::default();
        image.scan(&findings, progress)?;
        let mut damaged = findings.damaged.into_inner();
        damaged.sort_unstable();
        let header = image.manifest().header();
        Ok(VerifyReport { bytes: header.size, digest: header.digest.clone(), damaged })
    }
}

impl Sink for Findings {
    fn data(&self, _bytes: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn hole(&self, _range: ByteRange) -> Result<()> {
        Ok(())
    }

    fn damaged(&self, offset: u64) -> Result<()> {
        self.damaged.lock().push(offset);
        Ok(())
    }
}
