//! Digests of extents: BLAKE3 of the bytes of an extent as they stand in the image, and the digest over all of them.
//!
//! Does not read or write anything; whoever moves an extent computes its digest and sets it here.

use std::ops::DerefMut;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;
use crate::zeroes::is_zero;

/// BLAKE3 of an extent's bytes, or [`ZERO_EXTENT`].
pub type Digest = [u8; DIGEST_BYTES];

/// Stands for an extent that is all zeroes in the image, be it zero on the device or not in the backup.
pub const ZERO_EXTENT: Digest = [0; DIGEST_BYTES];

const DIGEST_BYTES: usize = 32;

/// The digest of an extent's bytes: [`ZERO_EXTENT`] if all are zero, else their BLAKE3.
pub fn digest_of(bytes: &[u8]) -> Digest {
    if is_zero(bytes) {
        return ZERO_EXTENT;
    }
    *blake3::hash(bytes).as_bytes()
}

/// The digest of an extent whose bytes come in pieces, in order.
#[derive(Default)]
pub struct ExtentHasher {
    hasher: blake3::Hasher,
    has_data: bool,
}

impl ExtentHasher {
    /// Adds a piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.has_data = self.has_data || !is_zero(bytes);
        self.hasher.update(bytes);
    }

    /// The same as `digest_of` all pieces together.
    pub fn finish(&self) -> Digest {
        if self.has_data { *self.hasher.finalize().as_bytes() } else { ZERO_EXTENT }
    }
}

/// A digest as 64 lower-case hexadecimal digits.
pub fn to_hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// The digest that 64 hexadecimal digits stand for.
///
/// # Errors
/// `Invalid` if the text is anything else.
pub fn from_hex(text: &str) -> Result<Digest> {
    match blake3::Hash::from_hex(text) {
        Ok(hash) => Ok(*hash.as_bytes()),
        Err(e) => Err(Error::new(ErrorKind::Invalid, "read a digest", format!("{text:?} is none: {e}"))),
    }
}

/// One digest for each extent of an image, [`ZERO_EXTENT`] until it is set. Extents may be set from several threads.
pub struct DigestTable {
    bytes: Mutex<Box<dyn DerefMut<Target = [u8]> + Send>>,
    extents: u32,
}

impl DigestTable {
    /// A table of `extents` zero extents.
    pub fn new(extents: u32) -> Self {
        // Flat bytes, because the allocator hands them out as zero pages that cost no memory until a digest is set there; a
        // vector of 32-byte arrays would be filled by hand.
        Self::over(vec![0; extents as usize * DIGEST_BYTES])
    }

    /// A table over memory that has the digests already, 32 bytes each.
    pub fn over(bytes: impl DerefMut<Target = [u8]> + Send + 'static) -> Self {
        let extents = (bytes.len() / DIGEST_BYTES) as u32;
        Self { bytes: Mutex::new(Box::new(bytes)), extents }
    }

    /// Number of extents.
    pub fn extents(&self) -> u32 {
        self.extents
    }

    /// Records the digest of an extent, which must be in the table.
    pub fn set(&self, extent: u32, digest: &Digest) {
        let at = extent as usize * DIGEST_BYTES;
        self.bytes.lock()[at..at + DIGEST_BYTES].copy_from_slice(digest);
    }

    /// The digest of an extent, which must be in the table.
    pub fn get(&self, extent: u32) -> Digest {
        let at = extent as usize * DIGEST_BYTES;
        let mut digest = ZERO_EXTENT;
        digest.copy_from_slice(&self.bytes.lock()[at..at + DIGEST_BYTES]);
        digest
    }

    /// The `digest` of the backup: BLAKE3 over the digests of all extents in order, those of zero extents included.
    pub fn root(&self) -> Digest {
        *blake3::hash(&self.bytes.lock()).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_covers_every_digest_in_order() {
        let (a, b) = (DigestTable::new(3), DigestTable::new(3));
        a.set(0, &digest_of(b"first"));
        a.set(2, &digest_of(b"third"));
        b.set(0, &digest_of(b"third"));
        b.set(2, &digest_of(b"first"));
        let flat = [digest_of(b"first"), ZERO_EXTENT, digest_of(b"third")].concat();
        assert_eq!(a.root(), *blake3::hash(&flat).as_bytes());
        assert_ne!(a.root(), b.root());
    }

    #[test]
    fn pieces_have_the_digest_of_the_whole() {
        for whole in [vec![0; 300], [vec![0; 200], vec![7; 100]].concat()] {
            let mut hasher = ExtentHasher::default();
            whole.chunks(64).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), digest_of(&whole));
        }
    }

    #[test]
    fn zeroes_have_the_zero_digest_and_hex_goes_both_ways() {
        assert_eq!(digest_of(&[0; 4096]), ZERO_EXTENT);
        let digest = digest_of(b"x");
        assert_eq!(from_hex(&to_hex(&digest)).unwrap(), digest);
        for text in ["", "ab", &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(from_hex(text).unwrap_err().kind, ErrorKind::Invalid);
        }
    }
}
