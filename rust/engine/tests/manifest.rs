//! The manifest's bytes: what is written is read back, and nothing else is taken for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockcow_engine::digest::{DigestTable, digest_of, to_hex};
use blockcow_engine::error::{Error, ErrorKind, Result};
use blockcow_engine::geometry::Geometry;
use blockcow_engine::manifest::{Manifest, Particulars};
use proptest::prelude::*;
use roaring::RoaringBitmap;

fn manifest(geometry: Geometry, list: RoaringBitmap, data_extents: &[u32]) -> Manifest {
    let digests = DigestTable::new(geometry.extent_count());
    for &extent in data_extents {
        digests.set(extent, &digest_of(&(extent + 1).to_le_bytes()));
    }
    let particulars = Particulars {
        cut_at: "2026-01-02T03:04:05.678Z".into(),
        identity: BTreeMap::from([("path".into(), "/dev/sdb1".into()), ("serial".into(), "a\"b\n\u{fc}".into())]),
        figures: serde_json::from_str(r#"{"drains":3,"suspended_us":{"p50":1}}"#).unwrap(),
    };
    Manifest::new(geometry, particulars, list, Arc::new(digests)).unwrap()
}

fn small() -> Manifest {
    let geometry = Geometry::new((5 << 20) + 512, None, 512).unwrap();
    manifest(geometry, (0..300).chain(700..1281).collect(), &[0, 1, 5])
}

fn bytes_of(manifest: &Manifest) -> Vec<u8> {
    let mut bytes = Vec::new();
    manifest.write_to(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Manifest> {
    Manifest::read_from(bytes)
}

fn refusal(bytes: &[u8]) -> Error {
    let error = read(bytes).err().unwrap_or_else(|| panic!("taken as whole: {}", String::from_utf8_lossy(bytes)));
    assert_eq!(error.kind, ErrorKind::Manifest);
    assert!(error.reason.starts_with("line "), "{error}");
    error
}

/// Replaces text in the body and seals again, as faulty or newer software would.
fn resealed(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes_of(&small())).unwrap();
    let body = &text[..text[..text.len() - 1].rfind('\n').unwrap() + 1];
    let changed = body.replacen(from, to, 1);
    assert_ne!(body, changed, "{from} is not in the manifest");
    let seal = blake3::hash(changed.as_bytes()).to_hex();
    format!("{changed}{{\"blake3\":\"{seal}\"}}\n").into_bytes()
}

fn assert_same(a: &Manifest, b: &Manifest) {
    assert_eq!(a.header(), b.header());
    assert_eq!(a.geometry(), b.geometry());
    assert_eq!(a.list(), b.list());
    for extent in 0..a.geometry().extent_count() {
        assert_eq!(a.digests().get(extent), b.digests().get(extent));
    }
}

#[test]
fn what_is_written_is_read() {
    let written = small();
    let read = read(&bytes_of(&written)).unwrap();
    assert_same(&written, &read);
    assert_eq!(read.header().digest, to_hex(&written.digests().root()));
    assert_eq!(read.header().list_blocks, 881);
}

#[test]
fn the_example_of_the_format_document_is_a_manifest() {
    let document = include_str!("../../../docs/formats.md");
    let example = document.split_once("```json\n").unwrap().1.split_once("```").unwrap().0;
    let digests = small();
    let read = read(example.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read.header().digest, digests.header().digest);
    assert_eq!(read.list(), digests.list());
}

#[test]
fn every_flipped_bit_is_found() {
    let mut bytes = bytes_of(&small());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            refusal(&bytes);
            bytes[at] ^= 1 << bit;
        }
    }
    read(&bytes).unwrap();
}

#[test]
fn every_truncation_and_addition_is_found() {
    let bytes = bytes_of(&small());
    for length in 0..bytes.len() {
        refusal(&bytes[..length]);
    }
    for addition in ["\n", " ", "x", "{}\n", "{\"list\":[]}\n"] {
        refusal(&[&bytes, addition.as_bytes()].concat());
    }
    refusal(&[&bytes[..], &bytes[..]].concat());
}

#[test]
fn a_missing_or_repeated_line_is_found() {
    let bytes = bytes_of(&small());
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
    for at in 0..lines.len() {
        let (mut without, mut twice) = (lines.clone(), lines.clone());
        without.remove(at);
        twice.insert(at, lines[at]);
        refusal(&without.concat());
        refusal(&twice.concat());
    }
}

#[test]
fn a_newer_schema_is_named_as_such() {
    let newer = resealed("\"schema\":1", "\"schema\":2,\"compression\":\"zstd\"");
    for bytes in
        [&newer[..], &newer[..newer.len() - 10], b"{\"format\":\"blockcow-manifest\",\"schema\":7}\nanything\n"]
    {
        let reason = refusal(bytes).reason;
        assert!(reason.contains("newer blockcow") && reason.contains("upgrade"), "{reason}");
    }
    let mut damaged = bytes_of(&small());
    let at = damaged.windows(10).position(|w| w == b"\"schema\":1").unwrap() + 9;
    damaged[at] = b'3';
    let reason = refusal(&damaged).reason;
    assert!(reason.contains("checksum does not match"), "damage must not pass for a newer version: {reason}");
}

#[test]
fn a_sealed_lie_is_found_and_its_line_named() {
    let cases = [
        ("blockcow-manifest", "other-manifest", "line 1: its format"),
        ("\"schema\":1", "\"schema\":0", "line 1: there is no schema 0"),
        ("\"status\":\"complete\"", "\"status\":\"broken\"", "line 1: its status"),
        ("\"block_size\":4096", "\"block_size\":3000", "line 1: block size"),
        ("\"extent_size\":1048576", "\"extent_size\":1000", "line 1: extent size"),
        ("\"size\":5243392", "\"size\":0", "line 1: "),
        ("\"size\":5243392", "\"size\":1048576", "line 2: "),
        ("\"list_blocks\":881", "\"list_blocks\":880", "line 1: it announces"),
        ("\"digest\":\"", "\"digest\":\"00", "line 1: its digest"),
        ("\"cut_at\"", "\"surprise\":1,\"cut_at\"", "line 1: unknown field"),
        ("[0,300]", "[0,701]", "line 2: the run of 581 blocks from 700"),
        ("[0,300]", "[0,0]", "line 2: the run of 0 blocks"),
        ("[700,581]", "[700,582]", "line 2: 582 blocks from 700 reach beyond"),
        ("[700,581]", "[700,4294967295]", "line 2: "),
        ("\"extent\":0", "\"extent\":5", "line 3: 2 digests from extent 5 on reach beyond"),
        ("\"extent\":5", "\"extent\":1", "line 4: the digests from extent 1 on are none or out of order"),
        ("\"digests\":[\"", "\"digests\":[\"zz", "line 3: "),
    ];
    for (from, to, expected) in cases {
        let reason = refusal(&resealed(from, to)).reason;
        assert!(reason.starts_with(expected), "{from} -> {to}: {reason}");
    }
    let zero = format!("{{\"extent\":3,\"digests\":[\"{}\"]}}\n{{\"extent\":5", "0".repeat(64));
    assert!(refusal(&resealed("{\"extent\":5", &zero)).reason.contains("that of zeroes"));
}

#[test]
fn an_endless_line_is_not_read_to_its_end() {
    let endless = std::io::BufReader::new(std::io::repeat(b'x'));
    assert!(Manifest::read_from(endless).err().unwrap().reason.contains("line 1: it is longer than"));
}

#[test]
fn figures_that_no_reader_would_take_are_not_written() {
    let geometry = Geometry::new(1 << 20, None, 512).unwrap();
    let figures = [("text".to_string(), "x".repeat(70_000).into())].into_iter().collect();
    let particulars = Particulars { figures, ..Particulars::default() };
    let manifest = Manifest::new(geometry, particulars, RoaringBitmap::new(), Arc::new(DigestTable::new(1))).unwrap();
    assert_eq!(manifest.write_to(Vec::new()).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn parts_of_different_devices_make_no_manifest() {
    let geometry = Geometry::new(2 << 20, None, 512).unwrap();
    let make = |list: RoaringBitmap, extents| {
        Manifest::new(geometry, Particulars::default(), list, Arc::new(DigestTable::new(extents))).err().map(|e| e.kind)
    };
    assert_eq!(make(RoaringBitmap::from([512]), 2), Some(ErrorKind::Invalid));
    assert_eq!(make(RoaringBitmap::from([511]), 3), Some(ErrorKind::Invalid));
    assert_eq!(make(RoaringBitmap::from([511]), 2), None);
}

#[test]
fn neighbouring_blocks_are_one_run_however_many() {
    let geometry = Geometry::new(1 << 40, None, 512).unwrap();
    let mut list = RoaringBitmap::new();
    list.insert_range(0..geometry.block_count());
    let written = manifest(geometry, list, &[]);
    let text = String::from_utf8(bytes_of(&written)).unwrap();
    assert!(text.contains(&format!("{{\"list\":[[0,{}]]}}\n", geometry.block_count())));
    assert_eq!(text.lines().count(), 3);
    assert_same(&written, &read(text.as_bytes()).unwrap());
}

#[test]
fn a_file_that_is_none_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let error = Manifest::load(&folder.path().join("x.manifest")).err().unwrap();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.operation.contains("x.manifest"));
    let error = Manifest::load(folder.path()).err().unwrap();
    assert_eq!((error.kind, error.errno), (ErrorKind::Manifest, Some(libc::EISDIR)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_backup_survives_the_round_trip(
        size in 1u64..200 << 20,
        runs in prop::collection::vec((0u32..60_000, 1u32..500), 0..3000),
        extents in prop::collection::vec(any::<bool>(), 200),
        figures in prop::collection::btree_map(".{0,12}", any::<i64>(), 0..8),
        identity in prop::collection::btree_map(".{0,12}", ".{0,40}", 0..8),
    ) {
        let geometry = Geometry::new(size, None, 512).unwrap();
        let mut list = RoaringBitmap::new();
        for (first, count) in runs {
            list.insert_range(first.min(geometry.block_count())..(first + count).min(geometry.block_count()));
        }
        let digests = DigestTable::new(geometry.extent_count());
        for extent in (0..geometry.extent_count()).filter(|e| extents[*e as usize]) {
            digests.set(extent, &digest_of(&(extent + 1).to_le_bytes()));
        }
        let figures = figures.into_iter().map(|(name, value)| (name, value.into())).collect();
        let particulars = Particulars { cut_at: "2026-01-02T03:04:05Z".into(), identity, figures };
        let written = Manifest::new(geometry, particulars, list, Arc::new(digests)).unwrap();
        let bytes = bytes_of(&written);
        prop_assert!(bytes.split(|&b| b == b'\n').all(|line| line.len() < 64 << 10));
        assert_same(&written, &read(&bytes).unwrap());
    }
}
