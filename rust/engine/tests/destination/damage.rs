//! Damage by the thousand: every bit of manifests, random bits of images, bursts, swapped and lost extents, wrong sizes.
//!
//! All of it is found by `verify` and by `restore`, named by the extents that have it, and no target is touched. Which
//! extents those are is told by comparing bytes.

use std::fs::{self, File};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockcow_engine::digest::{DigestTable, digest_of};
use blockcow_engine::error::{Error, ErrorKind};
use blockcow_engine::geometry::Geometry;
use blockcow_engine::manifest::Manifest;
use blockcow_engine::restore::{RestoreOptions, restore};
use blockcow_engine::verify::verify;
use blockcow_proof::Tally;
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tempfile::TempDir;

use crate::backup::on;
use crate::shapes::{Shape, shapes};

/// A backup of some shape, published in a folder of its own, and what may be restored to.
struct Published {
    folder: TempDir,
    geometry: Geometry,
    content: Vec<u8>,
    sheet: Vec<u8>,
    /// See `touched`.
    made: i64,
}

impl Published {
    fn new(shape: Shape, rng: &mut TestRng) -> Self {
        let (size, block, extent) = shape.sizes;
        let geometry = Geometry::recorded(size, block, extent).unwrap();
        let mut content = vec![0; size as usize];
        let digests = DigestTable::new(geometry.extent_count());
        for extent in shape.data {
            let range = geometry.bytes_of_extent(extent);
            let part = &mut content[range.start as usize..range.end as usize];
            rng.fill(part);
            digests.set(extent, &digest_of(part));
        }
        let list = shape.list.into_iter().flat_map(|(first, count)| first..first + count).collect();
        let manifest = Manifest::new(geometry, shape.particulars, list, Arc::new(digests)).unwrap();
        let mut sheet = Vec::new();
        manifest.write_to(&mut sheet).unwrap();
        let mut published = Self { folder: tempfile::tempdir().unwrap(), geometry, content, sheet, made: 0 };
        fs::write(published.image(), &published.content).unwrap();
        fs::write(published.manifest(), &published.sheet).unwrap();
        fs::write(published.existing(), published.content.iter().map(|byte| !byte).collect::<Vec<_>>()).unwrap();
        published.made = published.touched();
        published.is_right();
        published
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn manifest(&self) -> PathBuf {
        self.folder.path().join("image.manifest")
    }

    /// A file that is there already, as large as the image.
    fn existing(&self) -> PathBuf {
        self.folder.path().join("existing")
    }

    /// When that was written to, in nanoseconds.
    fn touched(&self) -> i64 {
        let found = fs::metadata(self.existing()).unwrap();
        found.mtime() * 1_000_000_000 + found.mtime_nsec()
    }

    /// Whether it holds what it held, not one byte of which is the image's.
    fn is_untouched(&self) -> bool {
        let found = fs::read(self.existing()).unwrap();
        found.len() == self.content.len() && found.iter().zip(&self.content).all(|(is, image)| *is == !image)
    }

    fn restore_to(&self, target: &Path) -> Result<(), Error> {
        let go_on = |_, _, _| ControlFlow::Continue(());
        restore(&self.image(), &self.manifest(), target, RestoreOptions::default(), &go_on).map(|_| ())
    }

    /// Undamaged it is found intact, and restored; what it was refused to be restored to holds what it held.
    fn is_right(&self) {
        assert!(self.is_untouched());
        assert!(verify(&self.image(), &self.manifest(), &on).unwrap().damaged.is_empty());
        let target = self.folder.path().join("restored");
        self.restore_to(&target).unwrap();
        assert!(fs::read(&target).unwrap() == self.content);
        fs::remove_file(target).unwrap();
    }

    /// The refusal to restore, to a file that exists or to a new one. Nothing came of it.
    fn refused(&self, to_new: bool) -> Error {
        let target = if to_new { self.folder.path().join("new") } else { self.existing() };
        let error = self.restore_to(&target).unwrap_err();
        assert_eq!(self.touched(), self.made, "the target was touched: {error}");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 3, "a new file is left: {error}");
        error
    }

    /// The offsets of the extents in which `bytes` differ.
    fn differing(&self, bytes: &[u8]) -> Vec<u64> {
        let step = self.geometry.extent_size() as usize;
        let pairs = self.content.chunks(step).zip(bytes.chunks(step)).enumerate();
        pairs.filter(|(_, (was, is))| was != is).map(|(extent, _)| (extent * step) as u64).collect()
    }

    /// Makes the image `to` where it differs from `from`.
    fn change(&self, from: &[u8], to: &[u8]) {
        let file = File::options().write(true).open(self.image()).unwrap();
        file.set_len(to.len() as u64).unwrap();
        let step = 4096;
        for (index, part) in to.chunks(step).enumerate() {
            if from.chunks(step).nth(index) != Some(part) {
                file.write_all_at(part, (index * step) as u64).unwrap();
            }
        }
    }

    /// Puts `bytes` in the image's place, looks at it, and puts the image back.
    fn check(&self, bytes: &[u8], to_new: bool) {
        self.change(&self.content, bytes);
        let (found, refusal) = (verify(&self.image(), &self.manifest(), &on), self.refused(to_new));
        assert_eq!(refusal.kind, ErrorKind::Mismatch);
        if bytes.len() == self.content.len() {
            let expected = self.differing(bytes);
            assert_eq!(found.unwrap().damaged, expected);
            assert_eq!(refusal.offset, expected.first().copied());
        } else {
            for error in [found.unwrap_err(), refusal] {
                assert_eq!(error.kind, ErrorKind::Mismatch);
                let sizes = [bytes.len(), self.content.len()].map(|size| size.to_string());
                assert!(sizes.iter().all(|size| error.reason.contains(size)), "{error}");
            }
        }
        self.change(bytes, &self.content);
    }

    /// Flips bits of the manifest, those that are `kept` of each byte, and looks at it with verify and restore; the reader
    /// is shown all eight.
    fn flip_manifest(&self, tally: &Tally, kept: impl Fn(usize) -> Range<u8>) {
        let mut bytes = self.sheet.clone();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let error = Manifest::read_from(&bytes[..]).err().unwrap_or_else(|| panic!("byte {at}, bit {bit}"));
                assert!(error.kind == ErrorKind::Manifest && error.reason.starts_with("line "), "{error}");
                if kept(at).contains(&bit) {
                    fs::write(self.manifest(), &bytes).unwrap();
                    assert_eq!(verify(&self.image(), &self.manifest(), &on).unwrap_err().kind, ErrorKind::Manifest);
                    assert_eq!(self.refused(at % 2 == 0).kind, ErrorKind::Manifest);
                }
                bytes[at] ^= 1 << bit;
                tally.executed(1);
            }
        }
        fs::write(self.manifest(), &self.sheet).unwrap();
        self.is_right();
    }
}

fn rng(seed: u8) -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])
}

fn published(rng: &mut TestRng) -> Vec<Published> {
    shapes().into_iter().map(|shape| Published::new(shape, rng)).collect()
}

/// A manifest's bytes that differ from the right ones in another way than by one bit are found as well, see
/// `tests/manifest.rs`.
#[test]
#[ignore = "run by make proof"]
fn every_bit_of_every_manifest() {
    let tally = Tally::new("damage", "every_bit_of_every_manifest", 190_000);
    for published in published(&mut rng(1)) {
        published.flip_manifest(&tally, |at| (at % 8) as u8..(at % 8) as u8 + 1);
    }
}

#[test]
fn every_bit_of_a_small_manifest() {
    let tally = Tally::new("damage", "every_bit_of_a_small_manifest", 2_000);
    let small = Published::new(shapes().remove(0), &mut rng(1));
    small.flip_manifest(&tally, |at| if at % 16 == 0 { 0..1 } else { 0..0 });
}

/// Does one kind of harm; the bytes differ afterwards, or are more or fewer.
fn harm(bytes: &mut Vec<u8>, extent: usize, rng: &mut TestRng) {
    let length = bytes.len();
    let extents = length.div_ceil(extent);
    let place = |rng: &mut TestRng| {
        let first = rng.random_range(0..length);
        first..(first + rng.random_range(1..=3 * extent)).min(length)
    };
    match rng.random_range(0..7) {
        // A burst of noise, which may cross extents.
        0 => {
            let place = place(rng);
            rng.fill(&mut bytes[place]);
        }
        // A write that was lost, and one that came where none was.
        1 => bytes[place(rng)].fill(0),
        2 => bytes[place(rng)].fill(rng.random()),
        // Two extents in each other's place.
        3 if extents > 2 => {
            let (a, b) = (rng.random_range(0..extents - 1), rng.random_range(0..extents - 1));
            let (a, b) = (a.min(b) * extent, a.max(b) * extent);
            let (low, high) = bytes.split_at_mut(b);
            if a != b {
                low[a..a + extent].swap_with_slice(&mut high[..extent]);
            }
        }
        // Bytes that slipped.
        4 => {
            let place = place(rng);
            bytes[place].rotate_left(1);
        }
        5 => bytes.truncate(rng.random_range(0..length)),
        _ => bytes.resize(length + rng.random_range(1..=2 * extent), rng.random()),
    }
}

fn look_at_images(tally: &Tally, bits: u64, harms: u64, rng: &mut TestRng) {
    let mut images = published(rng);
    images.retain(|published| published.content.len() <= 300_000);
    // Sizes differ: each image gets the same number of flips.
    for turn in 0..bits {
        let published = &images[turn as usize % images.len()];
        let mut bytes = published.content.clone();
        let bit = rng.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        published.check(&bytes, turn % 2 == 0);
        tally.executed(1);
    }
    let mut done = 0;
    while done < harms {
        let published = &images[done as usize % images.len()];
        let mut bytes = published.content.clone();
        harm(&mut bytes, published.geometry.extent_size() as usize, rng);
        // Extents of zeroes may change places, and noise may be what was there.
        if bytes == published.content {
            continue;
        }
        published.check(&bytes, done % 2 == 0);
        tally.executed(1);
        done += 1;
    }
    images.iter().for_each(Published::is_right);
}

#[test]
#[ignore = "run by make proof"]
fn ten_thousand_bits_of_images_and_two_thousand_harms() {
    let tally = Tally::new("damage", "ten_thousand_bits_of_images_and_two_thousand_harms", 12_000);
    look_at_images(&tally, 10_000, 2_000, &mut rng(2));
}

#[test]
fn some_bits_of_images_and_some_harms() {
    let tally = Tally::new("damage", "some_bits_of_images_and_some_harms", 400);
    look_at_images(&tally, 250, 150, &mut rng(3));
}

/// What a test of the image alone would miss: a manifest of another backup of the same device.
#[test]
fn another_backups_manifest_does_not_vouch_for_this_image() {
    let shape = || shapes().remove(2);
    let (one, other) = (Published::new(shape(), &mut rng(4)), Published::new(shape(), &mut rng(5)));
    fs::copy(other.manifest(), one.manifest()).unwrap();
    let step = one.geometry.extent_size();
    let expected: Vec<u64> = shape().data.into_iter().map(|extent| u64::from(extent) * step).collect();
    assert_eq!(verify(&one.image(), &one.manifest(), &on).unwrap().damaged, expected);
    assert_eq!(one.refused(true).offset, Some(0));
}
