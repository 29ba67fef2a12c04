//! The manifest of a backup: what the image beside it must be, and how that is known. `docs/formats.md` has the bytes.
//!
//! Turns manifests into bytes and back, strictly. Does not name, place or publish files; `destination` does.

mod read;
mod sealed;
mod write;

use std::collections::BTreeMap;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::{DigestTable, to_hex};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::sync::Arc;

const FORMAT: &str = "blockcow-manifest";
const STATUS: &str = "complete";
/// The newest schema that this version writes and reads.
const SCHEMA: u64 = 1;
/// No line of a manifest is longer than this many bytes, so that reading one takes bounded memory.
const MAX_LINE: usize = 64 << 10;

/// The first line of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Always `blockcow-manifest`.
    pub format: String,
    /// The version of the format.
    pub schema: u64,
    /// The version of blockcow that made the backup.
    pub version: String,
    /// Always `complete`: no other backup has a manifest.
    pub status: String,
    /// Size of the device, and so of the image, in bytes.
    pub size: u64,
    /// Size of a block in bytes.
    pub block_size: u64,
    /// Size of an extent in bytes.
    pub extent_size: u64,
    /// The instant of the cut, RFC 3339 in UTC.
    pub cut_at: String,
    /// The digest of the backup, in hexadecimal: the root of the digests of its extents.
    pub digest: String,
    /// What the device was known by: its path, model, serial number and the like.
    pub identity: BTreeMap<String, String>,
    /// Figures of the backup, for people.
    pub figures: Map<String, Value>,
    /// Number of blocks on the list.
    pub list_blocks: u64,
}

/// What only the caller of a backup knows and its manifest records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Particulars {
    /// The instant of the cut, RFC 3339 in UTC.
    pub cut_at: String,
    /// What the device is known by.
    pub identity: BTreeMap<String, String>,
    /// Figures of the backup.
    pub figures: Map<String, Value>,
}

/// A whole manifest.
pub struct Manifest {
    header: Header,
    geometry: Geometry,
    list: RoaringBitmap,
    digests: Arc<DigestTable>,
}

impl Manifest {
    /// The manifest of a complete backup. No digest may be set after this.
    ///
    /// # Errors
    /// `Invalid` if the list or the digests are not of a device of this geometry.
    pub fn new(
        geometry: Geometry,
        particulars: Particulars,
        list: RoaringBitmap,
        digests: Arc<DigestTable>,
    ) -> Result<Self> {
        if digests.extents() != geometry.extent_count() || list.max().is_some_and(|last| last >= geometry.block_count())
        {
            let reason = "the list or the digests are of another device";
            return Err(Error::new(ErrorKind::Invalid, "make the manifest", reason));
        }
        let header = Header {
            format: FORMAT.into(),
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            status: STATUS.into(),
            size: geometry.device_bytes(),
            block_size: geometry.block_size(),
            extent_size: geometry.extent_size(),
            cut_at: particulars.cut_at,
            digest: to_hex(&digests.root()),
            identity: particulars.identity,
            figures: particulars.figures,
            list_blocks: list.len(),
        };
        Ok(Self { header, geometry, list, digests })
    }

    /// The first line.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The size of the image, its blocks and its extents.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The blocks that were subject to the backup. All others are zero in the image.
    pub fn list(&self) -> &RoaringBitmap {
        &self.list
    }

    /// The digests of the extents of the image.
    pub fn digests(&self) -> &DigestTable {
        &self.digests
    }
}
