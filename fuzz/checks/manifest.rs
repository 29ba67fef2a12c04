//! What must hold of any bytes that are read as a manifest.

use std::collections::BTreeMap;

use blockcow_engine::digest::to_hex;
use blockcow_engine::error::ErrorKind;
use blockcow_engine::manifest::Manifest;
use serde_json::Value;

/// The bytes are refused, or mean what another reading finds in them. Most changes break the seal; so the lines are looked
/// at again under one that fits.
pub fn check(data: &[u8]) {
    look(data);
    let body = data.strip_suffix(b"\n").unwrap_or(data);
    let body = &data[..body.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)];
    look(&[body, format!("{{\"blake3\":\"{}\"}}\n", blake3::hash(body).to_hex()).as_bytes()].concat());
}

fn look(bytes: &[u8]) {
    let manifest = match Manifest::read_from(bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Manifest);
            assert!(error.reason.starts_with("line ") && error.reason.len() < 128 << 10, "{error}");
            return;
        }
    };
    let text = std::str::from_utf8(bytes).expect("a manifest is text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (header, found) = (&lines[0], manifest.header());
    assert_eq!(header["size"].as_u64(), Some(manifest.geometry().device_bytes()));
    assert_eq!(header["block_size"].as_u64(), Some(manifest.geometry().block_size()));
    assert_eq!(header["extent_size"].as_u64(), Some(manifest.geometry().extent_size()));
    for (key, text) in [("cut_at", &found.cut_at), ("digest", &found.digest), ("version", &found.version)] {
        assert_eq!(header[key].as_str(), Some(text.as_str()));
    }
    assert_eq!(header["identity"], serde_json::json!(found.identity));

    let (mut blocks, mut digests) = (0, BTreeMap::new());
    for line in &lines[1..lines.len() - 1] {
        for run in line["list"].as_array().into_iter().flatten() {
            let (first, count) = (run[0].as_u64().expect("a block"), run[1].as_u64().expect("a count"));
            assert!(first + count <= u64::from(manifest.geometry().block_count()));
            assert!(manifest.list().contains(first as u32) && manifest.list().contains((first + count - 1) as u32));
            blocks += count;
        }
        for (index, digest) in line["digests"].as_array().into_iter().flatten().enumerate() {
            let extent = line["extent"].as_u64().expect("an extent") + index as u64;
            digests.insert(extent as u32, digest.as_str().expect("a digest").to_lowercase());
        }
    }
    assert_eq!((blocks, Some(blocks)), (manifest.list().len(), header["list_blocks"].as_u64()));
    for (extent, digest) in &digests {
        assert_eq!(to_hex(&manifest.digests().get(*extent)), *digest);
    }

    let mut again = Vec::new();
    manifest.write_to(&mut again).expect("what was read can be written");
    let again = Manifest::read_from(&again[..]).expect("and read");
    assert_eq!((again.list(), &again.header().digest), (manifest.list(), &found.digest));
}
