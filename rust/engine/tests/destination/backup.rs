//! A small backup made the way the sweep makes it, to be looked at by the tests.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockcow_engine::destination::{Destination, manifest_path_for};
use blockcow_engine::digest::{DigestTable, digest_of};
use blockcow_engine::error::Result;
use blockcow_engine::geometry::Geometry;
use blockcow_engine::manifest::{Manifest, Particulars};
use blockcow_engine::zeroes::is_zero;
use roaring::RoaringBitmap;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
/// Not a multiple of a block: five extents and a sector. Extents 1 and 4 are zero; 2 has zeroes inside.
pub const SIZE: u64 = 5 * MIB + 512;

pub fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let mib = MIB as usize;
    let mut random = blake3::Hasher::new().update(&[seed]).finalize_xof();
    for data in [0..mib, 2 * mib..2 * mib + 5000, 3 * mib - 300_000..4 * mib, 5 * mib..5 * mib + 512] {
        random.fill(&mut bytes[data]);
    }
    bytes
}

pub fn geometry() -> Geometry {
    Geometry::new(SIZE, None, 512).unwrap()
}

/// Writes all extents, last one first, and returns the manifest that is to be published.
pub fn fill(destination: &Destination, geometry: Geometry, bytes: &[u8]) -> Result<Manifest> {
    let digests = DigestTable::new(geometry.extent_count());
    for extent in (0..geometry.extent_count()).rev() {
        let range = geometry.bytes_of_extent(extent);
        let part = &bytes[range.start as usize..range.end as usize];
        if is_zero(part) {
            destination.zero(range)?;
        } else {
            destination.write(part, range.start)?;
        }
        digests.set(extent, &digest_of(part));
    }
    let list: RoaringBitmap = geometry.all_blocks().blocks().collect();
    let particulars = Particulars { cut_at: "2026-01-02T03:04:05Z".into(), ..Particulars::default() };
    Manifest::new(geometry, particulars, list, Arc::new(digests))
}

/// A published backup in a scratch folder.
pub struct Backup {
    pub folder: TempDir,
    pub image: PathBuf,
    pub manifest: PathBuf,
    pub content: Vec<u8>,
}

impl Backup {
    pub fn new() -> Self {
        Self::with(geometry())
    }

    pub fn with(geometry: Geometry) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let manifest = manifest_path_for(&image);
        let mut content = content(1);
        content.truncate(geometry.device_bytes() as usize);
        publish(&image, &manifest, geometry, &content);
        Self { folder, image, manifest, content }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Flips a bit of the image; flipping it again undoes it.
    pub fn flip(&self, bit: u64) {
        let file = File::options().read(true).write(true).open(&self.image).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], bit / 8).unwrap();
    }
}

pub fn publish(image: &Path, manifest: &Path, geometry: Geometry, bytes: &[u8]) {
    let destination = Destination::open(image, manifest, bytes.len() as u64, false).unwrap();
    let sheet = fill(&destination, geometry, bytes).unwrap();
    destination.publish(&sheet).unwrap();
}

/// The names in a folder.
pub fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub fn on(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
