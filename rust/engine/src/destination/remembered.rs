//! A destination that another process goes on with: what it must know beside the storage, and how publishing that was
//! cut short ends in truth.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Destination, ROLE};
use crate::buffer::AlignedBuf;
use crate::digest::{DigestTable, ZERO_EXTENT, digest_of};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::manifest::Manifest;
use crate::partial::{PartialFile, RememberedFile, lasting, partial_path, remove_durably, sync_folder_of};
use crate::storage::Storage;
use crate::sync::{Arc, Ordering};

/// What is kept of a destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    name: String,
    manifest_path: String,
    overwrite: bool,
    file: Option<RememberedFile>,
}

impl Destination {
    /// What another process needs to go on, beside the storage.
    ///
    /// # Errors
    /// `Invalid` for a path that is not UTF-8.
    pub fn remember(&self) -> Result<Remembered> {
        let file = self.file.as_ref().map(PartialFile::remember).transpose()?;
        let manifest_path = lasting(&self.manifest_path)?;
        Ok(Remembered { name: self.name.clone(), manifest_path, overwrite: self.overwrite, file })
    }

    /// Goes on with what a dead process left.
    pub fn resume(storage: Arc<dyn Storage>, remembered: Remembered) -> Self {
        let Remembered { name, manifest_path, overwrite, file } = remembered;
        let mut destination = Self::held(storage, name, Path::new(&manifest_path), overwrite);
        destination.file = file.map(|file| PartialFile::resume(file, ROLE));
        destination
    }

    /// So many bytes were written and found zero by the dead process.
    pub(crate) fn restore_figures(&self, written: u64, zeroed: u64) {
        self.written.store(written, Ordering::Relaxed);
        self.zeroed.store(zeroed, Ordering::Relaxed);
    }

    /// What the image lies on.
    pub fn holds(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Removes what a backup that does not go on has left, its half-written manifest too.
    ///
    /// # Errors
    /// `Destination` with the file that is left, `State` if it was settled before.
    pub fn clear_away(&self) -> Result<()> {
        // Without the image the rest has been removed before, and what is there now is another's.
        if self.file.as_ref().is_none_or(|file| file.is_there().unwrap_or(false)) {
            remove_durably(&partial_path(&self.manifest_path), ROLE)?;
        }
        self.abandon()
    }

    /// Nothing is left to do here: it was published before.
    pub(crate) fn leave(&self) {
        *self.settled.lock() = true;
    }

    /// Whether a dead process published this very backup: the image bears its name, and the manifest of the same cut and
    /// the same bytes lies beside it. If so, that is made durable, and nothing is left to do.
    ///
    /// # Errors
    /// `Destination` if the folder cannot be synced, `State` if it was settled before.
    pub fn was_published(&self, manifest: &Manifest) -> Result<bool> {
        let placed = self.file.as_ref().map_or(Ok(true), PartialFile::is_placed)?;
        let same = |found: Manifest| {
            let (found, ours) = (found.header(), manifest.header());
            (&found.cut_at, &found.digest, &found.identity) == (&ours.cut_at, &ours.digest, &ours.identity)
                && (found.size, found.block_size, found.list_blocks) == (ours.size, ours.block_size, ours.list_blocks)
        };
        if !placed || !Manifest::load(&self.manifest_path).is_ok_and(same) {
            return Ok(false);
        }
        self.settle("publish the backup")?;
        if let Some(file) = &self.file {
            file.sync_folder()?;
        }
        sync_folder_of(&self.manifest_path, ROLE)?;
        Ok(true)
    }

    /// Reads the image back and compares it with its digests. A process that died while it synced the image may have been
    /// told of an error that nobody is told again.
    ///
    /// # Errors
    /// `Destination` with the offset of what cannot be read, or is not what was written.
    pub fn read_back(&self, geometry: Geometry, digests: &DigestTable) -> Result<()> {
        self.storage.sync().map_err(|error| self.failed("sync", &error))?;
        for handle in self.storage.handles() {
            // What the page cache holds proves nothing. Where it cannot be emptied, it is all there is.
            let _ = rustix::fs::fadvise(handle, 0, None, rustix::fs::Advice::DontNeed);
        }
        let mut buffer = AlignedBuf::new(geometry.extent_size() as usize);
        for extent in 0..geometry.extent_count() {
            let (expected, bytes) = (digests.get(extent), geometry.bytes_of_extent(extent));
            if expected == ZERO_EXTENT {
                continue;
            }
            let data = &mut buffer[..bytes.len() as usize];
            self.storage
                .read_at(data, bytes.start)
                .map_err(|error| self.failed("read back what was written", &error).at(bytes.start))?;
            if digest_of(data) != expected {
                let operation = format!("read back what was written to the destination {}", self.name);
                let reason = "it is not what was written; the destination's disk may be failing";
                return Err(Error::new(ErrorKind::Destination, operation, reason).at(bytes.start));
            }
        }
        Ok(())
    }
}
