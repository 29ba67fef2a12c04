//! Writing a manifest, line after line. Reading is `read.rs`.

use std::io::{self, Write};

use roaring::RoaringBitmap;
use serde::Serialize;

use super::sealed::SealingWriter;
use super::{Manifest, SCHEMA};
use crate::digest::{DigestTable, ZERO_EXTENT, to_hex};

/// Bounds that keep every line far below the longest one allowed.
const RUNS_A_LINE: usize = 1024;
const DIGESTS_A_LINE: usize = 64;

#[derive(Serialize)]
struct ListLine<'a> {
    list: &'a [(u32, u32)],
}

#[derive(Serialize)]
struct DigestLine<'a> {
    extent: u32,
    digests: &'a [String],
}

impl Manifest {
    /// Writes all bytes of the manifest, the seal included, and flushes.
    ///
    /// # Errors
    /// Those of `out`, and `InvalidInput` if identity and figures make the header longer than a line may be.
    pub fn write_to(&self, out: impl Write) -> io::Result<()> {
        debug_assert_eq!(self.header.schema, SCHEMA);
        let mut lines = SealingWriter::new(out);
        lines.line(&self.header)?;
        write_list(&mut lines, &self.list)?;
        write_digests(&mut lines, &self.digests)?;
        lines.seal()
    }
}

fn write_list(lines: &mut SealingWriter<impl Write>, list: &RoaringBitmap) -> io::Result<()> {
    let mut runs: Vec<(u32, u32)> = Vec::with_capacity(RUNS_A_LINE);
    let mut blocks = list.iter();
    while let Some(run) = blocks.next_range() {
        let (first, count) = (*run.start(), run.end() - run.start() + 1);
        match runs.last_mut() {
            Some(last) if last.0 + last.1 == first => {
                last.1 += count;
                continue;
            }
            _ => {}
        }
        if runs.len() == RUNS_A_LINE {
            lines.line(&ListLine { list: &runs })?;
            runs.clear();
        }
        runs.push((first, count));
    }
    if runs.is_empty() {
        return Ok(());
    }
    lines.line(&ListLine { list: &runs })
}

fn write_digests(lines: &mut SealingWriter<impl Write>, table: &DigestTable) -> io::Result<()> {
    let mut digests: Vec<String> = Vec::with_capacity(DIGESTS_A_LINE);
    for extent in 0..table.extents() {
        let digest = table.get(extent);
        if digest != ZERO_EXTENT {
            digests.push(to_hex(&digest));
        }
        let run_ends = digest == ZERO_EXTENT || extent + 1 == table.extents();
        if digests.len() == DIGESTS_A_LINE || (run_ends && !digests.is_empty()) {
            let after = extent + u32::from(digest != ZERO_EXTENT);
            lines.line(&DigestLine { extent: after - digests.len() as u32, digests: &digests })?;
            digests.clear();
        }
    }
    Ok(())
}
