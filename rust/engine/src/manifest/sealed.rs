//! Lines of JSON under a seal: the last line holds the BLAKE3 of all bytes before it. Knows nothing of what lines mean.

use std::io::{self, BufRead, Read, Write};

use serde::Serialize;

use super::MAX_LINE;

/// Writes lines and, at the end, the seal.
pub(super) struct SealingWriter<W> {
    out: W,
    hasher: blake3::Hasher,
    line: Vec<u8>,
}

impl<W: Write> SealingWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, hasher: blake3::Hasher::new(), line: Vec::new() }
    }

    /// Writes one line.
    pub(super) fn line(&mut self, content: &impl Serialize) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, content)?;
        self.line.push(b'\n');
        if self.line.len() > MAX_LINE {
            let reason = format!("a line of {} bytes; {MAX_LINE} are allowed", self.line.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        self.hasher.update(&self.line);
        self.out.write_all(&self.line)
    }

    /// Writes the seal and flushes.
    pub(super) fn seal(mut self) -> io::Result<()> {
        self.out.write_all(&seal_line(&self.hasher))?;
        self.out.flush()
    }
}

fn seal_line(hasher: &blake3::Hasher) -> Vec<u8> {
    format!("{{\"blake3\":\"{}\"}}\n", hasher.finalize().to_hex()).into_bytes()
}

/// What is wrong, and in which line, counted from 1.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) line: u64,
    pub(super) reason: String,
    /// Set if the bytes could not be read at all.
    pub(super) errno: Option<i32>,
}

impl Flaw {
    pub(super) fn new(line: u64, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into(), errno: None }
    }
}

/// How the bytes stand to their seal.
pub(super) enum Seal {
    /// They are those that were written.
    Intact,
    /// There is a seal, and they are not.
    Broken(Flaw),
    /// They do not end with a seal.
    Missing(Flaw),
}

/// Reads lines of bounded length, one ahead, because the last one is the seal.
pub(super) struct SealedReader<R> {
    input: R,
    hasher: blake3::Hasher,
    current: Vec<u8>,
    ahead: Vec<u8>,
    lines_read: u64,
}

impl<R: BufRead> SealedReader<R> {
    pub(super) fn new(input: R) -> Result<Self, Flaw> {
        let mut reader =
            Self { input, hasher: blake3::Hasher::new(), current: Vec::new(), ahead: Vec::new(), lines_read: 0 };
        reader.read_ahead()?;
        Ok(reader)
    }

    /// The number of the line that `next` gave last, counted from 1; one line is read ahead of it.
    pub(super) fn number(&self) -> u64 {
        self.lines_read.saturating_sub(1)
    }

    /// The next line without its newline; `None` when only the seal is left.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Flaw> {
        std::mem::swap(&mut self.current, &mut self.ahead);
        self.read_ahead()?;
        if self.ahead.is_empty() {
            std::mem::swap(&mut self.current, &mut self.ahead);
            return Ok(None);
        }
        self.hasher.update(&self.current);
        Ok(Some(&self.current[..self.current.len() - 1]))
    }

    /// Reads what is left and compares the seal.
    pub(super) fn seal(mut self) -> Seal {
        loop {
            match self.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(flaw) => return Seal::Missing(flaw),
            }
        }
        let line = self.lines_read.max(1);
        let expected = seal_line(&self.hasher);
        if self.ahead == expected {
            return Seal::Intact;
        }
        if self.ahead.len() == expected.len() && self.ahead.starts_with(b"{\"blake3\":\"") {
            return Seal::Broken(Flaw::new(line, "the checksum does not match the lines above it"));
        }
        Seal::Missing(Flaw::new(line, "this should be the last line, which holds the checksum, and is not"))
    }

    fn read_ahead(&mut self) -> Result<(), Flaw> {
        self.ahead.clear();
        let line = self.lines_read + 1;
        let mut bounded = self.input.by_ref().take(MAX_LINE as u64);
        if let Err(e) = bounded.read_until(b'\n', &mut self.ahead) {
            return Err(Flaw { line, reason: e.to_string(), errno: e.raw_os_error() });
        }
        if self.ahead.is_empty() {
            return Ok(());
        }
        self.lines_read = line;
        if self.ahead.ends_with(b"\n") {
            return Ok(());
        }
        if self.ahead.len() == MAX_LINE {
            return Err(Flaw::new(line, format!("it is longer than {MAX_LINE} bytes")));
        }
        Err(Flaw::new(line, "it ends in the middle of the line: the rest is missing"))
    }
}
