//! Artifacts on their way in: read from a stream, verified, on disk, then visible under their hash.

use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

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

/// Where a file with this hash can be taken from: staged, or this very binary (the agent installs itself
/// from where the controller put it, without being sent a second time).
///
/// # Errors
/// When a file cannot be read.
pub fn source(host: &Host, sha256: &str) -> io::Result<Option<PathBuf>> {
    if let Some(staged) = staged(host, sha256)? {
        return Ok(Some(staged));
    }
    let Ok(own) = std::env::current_exe() else { return Ok(None) };
    let is = host.hashes.sha256(&own)?;
    Ok((is.as_deref() == Some(sha256)).then_some(own))
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
    let there = source(host, sha256).map_err(|error| StepError::io("read", &place, error))?;
    if there.is_some() {
        return Ok(Received::AlreadyThere);
    }
    remove_orphans(&folder, sha256).map_err(|error| StepError::io("clear up", &folder, error))?;
    let (file, part) = open_own(&folder, sha256).map_err(|error| StepError::io("open", &place, error))?;
    let stored = store(&file, &part, &place, (sha256, mode), input);
    if stored.is_err() {
        // The error matters, not whether the leftover can be removed.
        let _removed = fs::remove_file(&part);
    } else {
        host.hashes.note(&place, sha256);
    }
    stored.map(Received::Stored)
}

/// Counts the receivers of this process.
static RECEIVERS: AtomicU32 = AtomicU32::new(0);

/// Each receiver writes a file of its own. The receiver of a lost connection may sit there for hours with half
/// a file, and must neither hold up the next one nor take its file away; both end in the same bytes.
fn open_own(folder: &Path, sha256: &str) -> io::Result<(File, PathBuf)> {
    loop {
        let count = RECEIVERS.fetch_add(1, Ordering::Relaxed);
        let part = folder.join(format!(".{sha256}.{}-{count}.part", std::process::id()));
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.lock()?;
        // Between these two lines another receiver may have taken it for an orphan.
        if part.exists() {
            return Ok((file, part));
        }
    }
}

/// Removes half files of this artifact whose receiver was killed: its lock went with it.
fn remove_orphans(folder: &Path, sha256: &str) -> io::Result<()> {
    let prefix = format!(".{sha256}.");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_part = name
            .to_str()
            .is_some_and(|name| name.strip_suffix(".part").is_some_and(|name| name.starts_with(&prefix)));
        if !is_part {
            continue;
        }
        match OpenOptions::new().write(true).open(entry.path()) {
            // The lock is held until the file is gone: who waits for it looks whether it still is there.
            Ok(file) if file.try_lock().is_ok() => {
                durable::remove(&entry.path())?;
                drop(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn store(
    file: &File,
    part: &Path,
    place: &Path,
    (sha256, mode): (&str, u32),
    input: &mut dyn Read,
) -> Result<u64, StepError> {
    let fail = |what, error| StepError::io(what, place, error);
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
    fn many_senders_of_one_artifact_leave_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let content = vec![9; 1_000_000];
        let sha256 = hash_bytes(&content);
        let stored = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for sender in 0..12 {
                let (host, stored, content, sha256) = (&host, &stored, &content, &sha256);
                scope.spawn(move || {
                    // Every third one is cut off, and must spoil nobody else's.
                    let length = if sender % 3 == 0 { 500_000 } else { content.len() };
                    let received = receive(host, sha256, 0o755, &mut &content[..length]);
                    let whole = matches!(received, Ok(Received::Stored(_)));
                    stored.fetch_add(u32::from(whole), Ordering::Relaxed);
                });
            }
        });
        assert!(stored.into_inner() >= 1, "late ones find it there, concurrent ones store the same bytes");
        assert_eq!(fs::read(host.state("artifacts").join(&sha256)).unwrap(), content);
        assert_eq!(fs::read_dir(host.state("artifacts")).unwrap().count(), 1);
    }

    #[test]
    fn half_files_of_killed_receivers_go_and_those_of_living_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let sha256 = hash_bytes(b"good");
        let folder = host.state("artifacts");
        durable::make_dir(&folder, 0o700).unwrap();
        let (dead, alive) =
            (folder.join(format!(".{sha256}.1.part")), folder.join(format!(".{sha256}.2.part")));
        fs::write(&dead, "go").unwrap();
        let held = File::create(&alive).unwrap();
        held.lock().unwrap();
        assert_eq!(receive(&host, &sha256, 0o644, &mut b"good".as_slice()).unwrap(), Received::Stored(4));
        assert!(!dead.exists());
        assert!(alive.exists());
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
    fn the_running_binary_needs_not_be_sent() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let own = crate::hashes::hash_file(&std::env::current_exe().unwrap()).unwrap();
        let mut input = b"not read".as_slice();
        assert_eq!(receive(&host, &own, 0o755, &mut input).unwrap(), Received::AlreadyThere);
        assert_eq!(input.len(), 8);
        assert_eq!(source(&host, &own).unwrap(), std::env::current_exe().ok());
        assert_eq!(fs::read_dir(host.state("artifacts")).unwrap().count(), 0);
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
