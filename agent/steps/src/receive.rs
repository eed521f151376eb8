//! Artifacts on their way in: read from a stream, verified, on disk, then visible under their hash.

use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const CHUNK: usize = 256 * 1024;

/// How a receive ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The content was there already; nothing was read.
    AlreadyThere,
    /// So many bytes were read, verified and stored.
    Stored(u64),
}

/// The staged file with this hash, if it is there and still has its content.
///
/// # Errors
/// When the file cannot be read.
pub fn staged(host: &Host, sha256: &str) -> io::Result<Option<PathBuf>> {
    let path = host.state("artifacts").join(sha256);
    let is = host.hashes.sha256(&path)?;
    Ok((is.as_deref() == Some(sha256)).then_some(path))
}

/// Stores what `input` gives as the artifact `sha256` with this mode.
///
/// # Errors
/// `bad-step` when `sha256` is no hash, `artifact-refused` when the bytes have another one, `disk-full` and
/// other input or output errors. Nothing is left behind then.
pub fn receive(host: &Host, sha256: &str, mode: u32, input: &mut dyn Read) -> Result<Received, StepError> {
    if sha256.len() != 64 || !sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(StepError::new(Code::BadStep, format!("read {sha256:?} as a SHA-256 (64 hex digits)")));
    }
    let folder = host.state("artifacts");
    durable::make_dir(&folder, 0o700).map_err(|error| StepError::io("make", &folder, error))?;
    let place = folder.join(sha256);
    let part = folder.join(format!(".{sha256}.part"));
    // Two senders of the same artifact: the second waits and then finds it there.
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&part)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|error| StepError::io("open", &part, error))?;
    let there = staged(host, sha256).map_err(|error| StepError::io("read", &place, error))?;
    if there.is_some() {
        return Ok(Received::AlreadyThere);
    }
    let stored = store(&file, &part, &place, (sha256, mode), input);
    if stored.is_err() {
        // The error matters, not whether the leftover can be removed.
        let _removed = fs::remove_file(&part);
    } else {
        host.hashes.note(&place, sha256);
    }
    stored.map(Received::Stored)
}

fn store(
    file: &File,
    part: &Path,
    place: &Path,
    (sha256, mode): (&str, u32),
    input: &mut dyn Read,
) -> Result<u64, StepError> {
    let fail = |what, error| StepError::io(what, place, error);
    file.set_len(0).map_err(|error| fail("empty", error))?;
    let (bytes, is) = copy(file, input).map_err(|error| fail("store", error))?;
    if is != sha256 {
        let what = format!("accept the artifact {sha256}: the {bytes} bytes that came hash to {is}");
        return Err(StepError::new(Code::ArtifactRefused, what));
    }
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(part, place))
        .and_then(|()| durable::sync_parent(place))
        .map_err(|error| fail("store", error))?;
    Ok(bytes)
}

fn copy(mut file: &File, input: &mut dyn Read) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0_u8; CHUNK];
    let mut bytes = 0;
    loop {
        let count = input.read(&mut chunk)?;
        let read = chunk.get(..count).unwrap_or_default();
        if read.is_empty() {
            return Ok((bytes, hex::encode(hasher.finalize())));
        }
        hasher.update(read);
        file.write_all(read)?;
        bytes += read.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashes::hash_bytes;

    #[test]
    fn a_wrong_hash_leaves_nothing_and_the_right_one_is_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let content = vec![7; 300_000];
        let sha256 = hash_bytes(&content);
        let error = receive(&host, &sha256, 0o755, &mut &content[1..]).unwrap_err();
        assert_eq!(error.code, Code::ArtifactRefused);
        assert_eq!(fs::read_dir(host.state("artifacts")).unwrap().count(), 0);

        let mut input = content.as_slice();
        assert_eq!(receive(&host, &sha256, 0o755, &mut input).unwrap(), Received::Stored(300_000));
        let mut again = content.as_slice();
        assert_eq!(receive(&host, &sha256, 0o755, &mut again).unwrap(), Received::AlreadyThere);
        assert_eq!(again.len(), content.len(), "not a byte was read");
    }

    #[test]
    fn a_staged_file_that_rotted_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let sha256 = hash_bytes(b"good");
        receive(&host, &sha256, 0o644, &mut b"good".as_slice()).unwrap();
        fs::write(host.state("artifacts").join(&sha256), "bad!").unwrap();
        assert_eq!(staged(&host, &sha256).unwrap(), None);
        assert_eq!(receive(&host, &sha256, 0o644, &mut b"good".as_slice()).unwrap(), Received::Stored(4));
    }

    #[test]
    fn a_hash_is_never_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let error = receive(&host, "../../etc/passwd", 0o644, &mut b"x".as_slice()).unwrap_err();
        assert_eq!(error.code, Code::BadStep);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
