//! BLAKE3 of a stream: the whole, and each 16 MiB chunk, in one pass.

use rackwright_wire::manifest::{CHUNK_BYTES, File};

/// Hashes bytes as they come.
#[derive(Debug, Default)]
pub struct StreamHasher {
    whole: blake3::Hasher,
    chunk: blake3::Hasher,
    in_chunk: u64,
    chunks: Vec<blake3::Hash>,
    bytes: u64,
}

impl StreamHasher {
    /// Adds the next bytes.
    pub fn update(&mut self, mut data: &[u8]) {
        self.whole.update(data);
        self.bytes += data.len() as u64;
        while !data.is_empty() {
            let room = usize::try_from(CHUNK_BYTES - self.in_chunk).unwrap_or(usize::MAX);
            let (now, later) = data.split_at(room.min(data.len()));
            self.chunk.update(now);
            self.in_chunk += now.len() as u64;
            if self.in_chunk == CHUNK_BYTES {
                self.end_chunk();
            }
            data = later;
        }
    }

    /// Bytes seen so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was hashed, as an entry of a manifest.
    pub fn finish(mut self, path: impl Into<String>) -> File {
        if self.in_chunk > 0 {
            self.end_chunk();
        }
        File {
            path: path.into(),
            bytes: self.bytes,
            blake3: self.whole.finalize().to_hex().to_string(),
            chunks: self.chunks.iter().map(|hash| hash.to_hex().to_string()).collect(),
        }
    }

    fn end_chunk(&mut self) {
        self.chunks.push(self.chunk.finalize());
        self.chunk.reset();
        self.in_chunk = 0;
    }
}

/// Hashes a reader to its end, as a file of a sealed set or of a test.
///
/// # Errors
/// The reader's.
pub fn hash_reader(path: impl Into<String>, mut reader: impl std::io::Read) -> std::io::Result<File> {
    let mut hasher = StreamHasher::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish(path)),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_16_mib_however_the_bytes_arrive() {
        let data = vec![7u8; usize::try_from(CHUNK_BYTES).unwrap() + 5];
        let whole = hash_reader("a", data.as_slice()).unwrap();
        let mut hasher = StreamHasher::default();
        data.chunks(1_000_003).for_each(|part| hasher.update(part));
        assert_eq!(hasher.finish("a"), whole);
        assert_eq!(whole.chunks.len(), 2);
        assert_eq!(whole.chunks[1], blake3::hash(&[7; 5]).to_hex().to_string());
        assert_eq!(whole.blake3, blake3::hash(&data).to_hex().to_string());
    }

    #[test]
    fn an_empty_file_has_no_chunks() {
        assert!(hash_reader("a", [].as_slice()).unwrap().chunks.is_empty());
    }
}
