//! Reading a manifest in one pass and bounded memory, so strictly that no change to its bytes goes unnoticed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use roaring::RoaringBitmap;
use serde::Deserialize;

use super::sealed::{Flaw, Seal, SealedReader};
use super::{FORMAT, Header, Manifest, SCHEMA, STATUS};
use crate::digest::{DigestTable, ZERO_EXTENT, from_hex, to_hex};
use crate::error::{self, Error, ErrorKind};
use crate::geometry::Geometry;
use crate::sync::Arc;

/// What every schema, known or not, has in its first line.
#[derive(Deserialize)]
struct Opening {
    format: String,
    schema: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListLine {
    list: Vec<(u32, u32)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestLine<'a> {
    extent: u32,
    #[serde(borrow)]
    digests: Vec<&'a str>,
}

impl Manifest {
    /// Reads the manifest in the file at `path`.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Manifest` with the line and the reason if it is not whole and unchanged or its
    /// schema is newer than this version.
    pub fn load(path: &Path) -> error::Result<Self> {
        let operation = format!("read the manifest {}", path.display());
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::io(ErrorKind::NotFound, &operation, &e).hint(
                "without its manifest nothing tells whether an image is complete; name the manifest if it is elsewhere",
            ),
            _ => Error::io(ErrorKind::Manifest, &operation, &e),
        })?;
        Self::read_from(BufReader::with_capacity(1 << 20, file)).map_err(|e| Error { operation, ..e })
    }

    /// Reads a manifest to the end of `input`.
    ///
    /// # Errors
    /// `Manifest`, as for `load`.
    pub fn read_from(input: impl BufRead) -> error::Result<Self> {
        read(input).map_err(|flaw| Error {
            errno: flaw.errno,
            ..Error::new(ErrorKind::Manifest, "read the manifest", format!("line {}: {}", flaw.line, flaw.reason))
        })
    }
}

fn read(input: impl BufRead) -> Result<Manifest, Flaw> {
    let mut lines = SealedReader::new(input)?;
    let parsed = parse(&mut lines);
    match (parsed, lines.seal()) {
        (Ok(manifest), Seal::Intact) => consistent(manifest),
        (Ok(_), Seal::Broken(flaw) | Seal::Missing(flaw)) => Err(flaw),
        (Err(first), Seal::Broken(seal)) => {
            let reason = format!("{}; first it goes wrong in line {}: {}", seal.reason, first.line, first.reason);
            Err(Flaw::new(seal.line, reason))
        }
        (Err(first), Seal::Intact | Seal::Missing(_)) => Err(first),
    }
}

fn parse(lines: &mut SealedReader<impl BufRead>) -> Result<Manifest, Flaw> {
    let first = lines.next()?.ok_or_else(|| Flaw::new(1, "it is empty, or holds nothing but a checksum"))?;
    let (header, geometry) = parse_header(first).map_err(|reason| Flaw::new(1, reason))?;
    let mut body = Body { geometry, list: RoaringBitmap::new(), digests: DigestTable::new(geometry.extent_count()) };
    let (mut next_block, mut next_extent) = (0, 0);
    while let Some(line) = lines.next()? {
        let done = if line.starts_with(b"{\"list\"") && next_extent == 0 {
            body.take_list(line, &mut next_block)
        } else {
            body.take_digests(line, &mut next_extent)
        };
        done.map_err(|reason| Flaw::new(lines.number(), reason))?;
    }
    Ok(Manifest { header, geometry, list: body.list, digests: Arc::new(body.digests) })
}

fn parse_header(line: &[u8]) -> Result<(Header, Geometry), String> {
    let opening: Opening = serde_json::from_slice(line).map_err(|e| format!("no header of a manifest: {e}"))?;
    if opening.format != FORMAT {
        return Err(format!("its format is {:?}, not {FORMAT:?}", opening.format));
    }
    if opening.schema > SCHEMA {
        return Err(format!(
            "its schema is {}, and this version knows up to {SCHEMA}: the backup was made by a newer blockcow; upgrade \
             blockcow to use it",
            opening.schema
        ));
    }
    if opening.schema < SCHEMA {
        return Err(format!("there is no schema {}", opening.schema));
    }
    let header: Header = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    if header.status != STATUS {
        return Err(format!("its status is {:?}, not {STATUS:?}", header.status));
    }
    let geometry = Geometry::recorded(header.size, header.block_size, header.extent_size).map_err(|e| e.to_string())?;
    Ok((header, geometry))
}

/// What the lines between header and seal add up to.
struct Body {
    geometry: Geometry,
    list: RoaringBitmap,
    digests: DigestTable,
}

impl Body {
    fn take_list(&mut self, line: &[u8], next: &mut u32) -> Result<(), String> {
        let ListLine { list } = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        for (first, count) in list {
            let end = first.checked_add(count).filter(|end| *end <= self.geometry.block_count());
            let Some(end) = end else {
                return Err(format!("{count} blocks from {first} reach beyond the device"));
            };
            if first < *next || count == 0 {
                return Err(format!("the run of {count} blocks from {first} is empty or out of order"));
            }
            self.list.insert_range(first..end);
            *next = end;
        }
        Ok(())
    }

    fn take_digests(&mut self, line: &[u8], next: &mut u32) -> Result<(), String> {
        let DigestLine { extent, digests } = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        if extent < *next || digests.is_empty() {
            return Err(format!("the digests from extent {extent} on are none or out of order"));
        }
        if digests.len() as u64 > u64::from(self.geometry.extent_count().saturating_sub(extent)) {
            return Err(format!("{} digests from extent {extent} on reach beyond the device", digests.len()));
        }
        *next = extent;
        for text in digests {
            let digest = from_hex(text).map_err(|e| e.reason)?;
            if digest == ZERO_EXTENT {
                return Err(format!("the digest of extent {next} is that of zeroes, which are not listed"));
            }
            self.digests.set(*next, &digest);
            *next += 1;
        }
        Ok(())
    }
}

/// What the lines say must agree with what the header says of them.
fn consistent(manifest: Manifest) -> Result<Manifest, Flaw> {
    let header = &manifest.header;
    if manifest.list.len() != header.list_blocks {
        let reason =
            format!("it announces {} listed blocks, and {} are listed", header.list_blocks, manifest.list.len());
        return Err(Flaw::new(1, reason));
    }
    let root = to_hex(&manifest.digests.root());
    if root != header.digest {
        let reason = format!("its digest {} is not that of the extents, {root}", header.digest);
        return Err(Flaw::new(1, reason));
    }
    Ok(manifest)
}
