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

/// Reads all of an image in a file or on a block device and compares it with its manifest.
///
/// # Errors
/// Those of [`Image::open`] (an interrupted backup is named as such) and of [`verify_image`].
pub fn verify(image: &Path, manifest: &Path, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<VerifyReport> {
    verify_image(&Image::open(image, manifest)?, progress)
}

/// Reads all of an image and compares it with its manifest. `progress` is told the bytes done and in all about five
/// times a second, on the calling thread, and may break off.
///
/// # Errors
/// `Destination` with the offset if the image cannot be read, `Cancelled`. Damage is no error but in the report.
pub fn verify_image(image: &Image, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<VerifyReport> {
    let findings = Findings::default();
    image.scan(&findings, progress)?;
    let mut damaged = findings.damaged.into_inner();
    damaged.sort_unstable();
    let header = image.manifest().header();
    Ok(VerifyReport { bytes: header.size, digest: header.digest.clone(), damaged })
}

/// Collects damage.
#[derive(Default)]
struct Findings {
    damaged: Mutex<Vec<u64>>,
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
