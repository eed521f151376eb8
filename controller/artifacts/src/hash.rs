//! SHA-256 of bytes and files, as lower-case hex.

use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};
use std::path::Path;

/// SHA-256 of bytes, as hex.
pub(crate) fn hex_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 of a file, as hex, and its size in bytes.
pub(crate) fn hex_of_file(path: &Path) -> io::Result<(String, u64)> {
    let mut sink = HashingWriter::new(io::sink());
    io::copy(&mut io::BufReader::with_capacity(1 << 20, std::fs::File::open(path)?), &mut sink)?;
    let (_, sha256, size) = sink.finish();
    Ok((sha256, size))
}

/// Whether this is a sha256 as we write it: 64 lower-case hex digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Hashes what passes through it.
pub(crate) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// The writer below, the sha256 of everything written, and how many bytes that was.
    pub(crate) fn finish(self) -> (W, String, u64) {
        (self.inner, hex::encode(self.hasher.finalize()), self.bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(buffer.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads everything, and keeps what was read hashed.
pub(crate) fn copy_hashed(reader: &mut impl Read, writer: impl Write) -> io::Result<(String, u64)> {
    let mut sink = HashingWriter::new(writer);
    io::copy(reader, &mut sink)?;
    sink.flush()?;
    let (_, sha256, size) = sink.finish();
    Ok((sha256, size))
}
