//! SHA-256 of big files, remembered by (device, inode, size, mtime, ctime) so that a second check reads
//! nothing again.
//!
//! The memory is a file of JSON lines that is only appended to, so that processes which run at the same
//! time need no lock; a lost line costs one more hashing. ctime is part of the key: whatever wrote to the
//! file since, also a write that put mtime back, is seen.

use crate::durable;
use crate::host::lock;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The version of [`Line`] that this build writes.
const HASHES_VERSION: u32 = 1;
/// Smaller files are hashed anew: faster than remembering.
const WORTH_REMEMBERING: u64 = 256 * 1024;
/// Lines beyond this many times the living entries are compacted away.
const SLACK: usize = 8;

/// One remembered hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, HASHES_VERSION>")]
    version: u32,
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
    sha256: String,
}

impl Line {
    fn of(metadata: &Metadata, sha256: &str) -> Self {
        let nanos = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            version: HASHES_VERSION,
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime_ns: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanos(metadata.ctime(), metadata.ctime_nsec()),
            sha256: sha256.to_owned(),
        }
    }
}

type Known = BTreeMap<(u64, u64), Line>;

/// The memory.
#[derive(Debug)]
pub(crate) struct Hashes {
    file: PathBuf,
    known: Mutex<Loaded>,
}

/// What was read of the file, and how long it was then: other processes append while this one runs.
#[derive(Debug, Default)]
struct Loaded {
    lines: Known,
    length: u64,
}

impl Loaded {
    fn refresh(&mut self, file: &Path) {
        let length = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        if length != self.length {
            self.lines = load(file);
            // Loading may have compacted it.
            self.length = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        }
    }

    fn find(&self, metadata: &Metadata) -> Option<String> {
        let line = self.lines.get(&(metadata.dev(), metadata.ino()))?;
        (*line == Line::of(metadata, &line.sha256)).then(|| line.sha256.clone())
    }
}

impl Hashes {
    pub(crate) fn at(file: PathBuf) -> Self {
        Self { file, known: Mutex::default() }
    }

    /// SHA-256 (hex) of a file's content now; `None` when there is no such file.
    pub(crate) fn sha256(&self, path: &Path) -> io::Result<Option<String>> {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(sha256) = self.recall(&metadata) {
            return Ok(Some(sha256));
        }
        let sha256 = hash_file(path)?;
        // Only if it is still the file that was looked at before it was read.
        let after = std::fs::metadata(path)?;
        if Line::of(&after, &sha256) == Line::of(&metadata, &sha256) {
            self.remember(&after, &sha256);
        }
        Ok(Some(sha256))
    }

    /// Notes a hash that the caller knows to be this file's.
    pub(crate) fn note(&self, path: &Path, sha256: &str) {
        if let Ok(metadata) = std::fs::metadata(path) {
            self.remember(&metadata, sha256);
        }
    }

    /// What this or another process remembers; small files are not worth a look.
    fn recall(&self, metadata: &Metadata) -> Option<String> {
        let mut known = lock(&self.known);
        if metadata.size() < WORTH_REMEMBERING {
            return None;
        }
        if let Some(sha256) = known.find(metadata) {
            return Some(sha256);
        }
        known.refresh(&self.file);
        known.find(metadata)
    }

    fn remember(&self, metadata: &Metadata, sha256: &str) {
        if metadata.size() < WORTH_REMEMBERING {
            return;
        }
        let line = Line::of(metadata, sha256);
        lock(&self.known).lines.insert((line.dev, line.ino), line.clone());
        // A memory that cannot be written only makes the next check slower.
        if let Err(error) = append(&self.file, &line) {
            tracing::debug!(%error, file = %self.file.display(), "hash not remembered");
        }
    }
}

fn append(file: &Path, line: &Line) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        durable::make_dir(dir, 0o700)?;
    }
    let mut text = serde_json::to_string(line).map_err(io::Error::other)?;
    text.push('\n');
    OpenOptions::new().create(true).append(true).mode(0o600).open(file)?.write_all(text.as_bytes())
}

fn load(file: &Path) -> Known {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let known: Known = text
        .lines()
        // A torn line, or one of another version: that file is hashed once more.
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .map(|line| ((line.dev, line.ino), line))
        .collect();
    if text.lines().count() > SLACK * known.len().max(8) {
        let lines: String = known
            .values()
            .filter_map(|line| serde_json::to_string(line).ok())
            .map(|line| line + "\n")
            .collect();
        // As above: a memory that cannot be written is only slower.
        let _compacted = durable::write(file, lines.as_bytes(), 0o600, None);
    }
    known
}

/// SHA-256 (hex) of a whole file, read in pieces.
pub(crate) fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0_u8; 256 * 1024];
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(chunk.get(..count).unwrap_or_default());
    }
}

/// SHA-256 (hex) of bytes.
pub(crate) fn hash_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn big(seed: u8) -> Vec<u8> {
        vec![seed; 300 * 1024]
    }

    #[test]
    fn a_remembered_hash_is_reused_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, file) = (dir.path().join("journal/hashes.jsonl"), dir.path().join("big"));
        std::fs::write(&file, big(1)).unwrap();
        let first = Hashes::at(memory.clone());
        let sha256 = first.sha256(&file).unwrap().unwrap();
        assert_eq!(sha256, hash_bytes(&big(1)));
        let later = Hashes::at(memory);
        let recall = |file: &Path| later.recall(&std::fs::metadata(file).unwrap());
        assert_eq!(recall(&file), Some(sha256));
        // Also one that the other process learns only now.
        let second = dir.path().join("second");
        std::fs::write(&second, big(2)).unwrap();
        assert_eq!(recall(&second), None);
        let learnt = first.sha256(&second).unwrap();
        assert_eq!(recall(&second), learnt);
    }

    #[test]
    fn a_change_that_puts_size_and_mtime_back_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("big");
        let hashes = Hashes::at(dir.path().join("hashes.jsonl"));
        std::fs::write(&file, big(1)).unwrap();
        let before = hashes.sha256(&file).unwrap();
        let mtime = std::fs::metadata(&file).unwrap().modified().unwrap();
        std::fs::write(&file, big(2)).unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(mtime).unwrap();
        assert_ne!(hashes.sha256(&file).unwrap(), before);
    }

    #[test]
    fn a_line_reads_like_this() {
        let line = Line {
            version: 1,
            dev: 64,
            ino: 7,
            size: 300_000,
            mtime_ns: 1_700_000_000_000_000_001,
            ctime_ns: 1_700_000_000_000_000_002,
            sha256: "ab".repeat(32),
        };
        let text = serde_json::to_string(&line).unwrap();
        insta::assert_snapshot!(text);
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("hashes.jsonl");
        std::fs::write(&memory, format!("{}\n", text.replace("\"version\":1", "\"version\":2"))).unwrap();
        assert!(load(&memory).is_empty(), "a line of another version is not remembered");
    }

    #[test]
    fn many_writes_are_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, file) = (dir.path().join("hashes.jsonl"), dir.path().join("big"));
        std::fs::write(&file, big(0)).unwrap();
        let hashes = Hashes::at(memory.clone());
        for second in 0..100 {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            File::options().write(true).open(&file).unwrap().set_modified(at).unwrap();
            hashes.sha256(&file).unwrap();
        }
        assert!(std::fs::read_to_string(&memory).unwrap().lines().count() <= SLACK * 8 + 1);
        assert_eq!(load(&memory).len(), 1, "the file's last line is what counts");
        assert_eq!(
            Hashes::at(memory).recall(&std::fs::metadata(&file).unwrap()),
            hashes.sha256(&file).unwrap()
        );
    }
}
