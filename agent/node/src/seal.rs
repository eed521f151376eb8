//! From a folder that a job wrote to a sealed set in the spool.
//!
//! The job is hostile until proven otherwise: links are never followed (`openat2` beneath the folder,
//! no symlinks), only plain files count, and bytes are hashed from our own copy, so that what is
//! uploaded is what was hashed even while the job goes on writing.

use crate::spool::Spool;
use rackwright_wire::manifest::{CHUNK_BYTES, File};
use rackwright_wire::sealed::SealedSet;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Most files in one set: its manifest stays below 4 MiB.
const MAX_FILES: usize = 10_000;
/// Deepest folder in one set.
const MAX_DEPTH: usize = 16;
/// Marks a checkpoint folder that was restored, not written, by this attempt.
pub(crate) const RESTORED_MARK: &str = ".restored";

/// Why a folder could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A file or folder could not be read or written.
    #[error("seal {path}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// More files or deeper folders than a set may have.
    #[error("seal {path}: more than {MAX_FILES} files or {MAX_DEPTH} levels")]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
}

/// Copies and hashes every plain file below `folder`, and puts the set into the spool.
///
/// # Errors
/// [`SealError`]; the spool is as before then.
pub fn seal(set: &SealedSet, folder: &Path, spool: &Spool) -> Result<SealedSet, SealError> {
    let failed = |cause: std::io::Error| SealError::File { path: folder.to_owned(), cause };
    let root = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|cause| failed(cause.into()))?;
    let staging = spool.stage(set).map_err(failed)?;
    let mut paths = Vec::new();
    list(&root, Path::new(""), 0, &mut paths).map_err(failed)?;
    if paths.len() > MAX_FILES {
        return Err(SealError::TooMany { path: folder.to_owned() });
    }
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    for path in &paths {
        let named = |cause| SealError::File { path: folder.join(path), cause };
        let Some(file) = open_plain(&root, path).map_err(named)? else {
            continue;
        };
        files.push(copy(file, path, &staging).map_err(named)?);
    }
    let sealed = SealedSet { files, ..set.clone() };
    spool.commit(&sealed, &staging).map_err(failed)?;
    Ok(sealed)
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

fn list(root: &OwnedFd, below: &Path, depth: usize, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if depth > MAX_DEPTH || out.len() > MAX_FILES {
        return Ok(());
    }
    let here = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(root.as_fd(), here, flags, Mode::empty(), beneath())?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if matches!(name, "." | ".." | RESTORED_MARK) {
            continue;
        }
        // Links, sockets and devices are never part of a set.
        let kind = entry.file_type();
        if kind.is_dir() {
            list(root, &below.join(name), depth + 1, out)?;
        } else if kind.is_file() {
            out.push(below.join(name));
        }
    }
    Ok(())
}

/// `None` when it is gone or no longer a plain file.
fn open_plain(root: &OwnedFd, path: &Path) -> std::io::Result<Option<std::fs::File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), beneath()) {
        Ok(fd) => {
            let file = std::fs::File::from(fd);
            let plain = file.metadata()?.is_file();
            Ok(plain.then_some(file))
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

fn copy(mut from: std::fs::File, path: &Path, staging: &Path) -> std::io::Result<File> {
    let part = staging.join("part");
    let mut to = std::fs::File::create(&part)?;
    let (mut whole, mut chunk) = (blake3::Hasher::new(), blake3::Hasher::new());
    let (mut bytes, mut in_chunk, mut chunks) = (0_u64, 0_u64, Vec::new());
    let mut buffer = vec![0_u8; 128 * 1024];
    loop {
        let got = from.read(&mut buffer)?;
        let Some(read) = buffer.get(..got).filter(|read| !read.is_empty()) else {
            break;
        };
        to.write_all(read)?;
        whole.update(read);
        let mut rest = read;
        while !rest.is_empty() {
            let room = usize::try_from(CHUNK_BYTES - in_chunk).unwrap_or(usize::MAX).min(rest.len());
            let (head, tail) = rest.split_at(room);
            chunk.update(head);
            in_chunk += head.len() as u64;
            if in_chunk == CHUNK_BYTES {
                chunks.push(chunk.finalize().to_hex().to_string());
                chunk.reset();
                in_chunk = 0;
            }
            rest = tail;
        }
        bytes += read.len() as u64;
    }
    if in_chunk > 0 {
        chunks.push(chunk.finalize().to_hex().to_string());
    }
    to.sync_all()?;
    let blake3 = whole.finalize().to_hex().to_string();
    std::fs::rename(&part, staging.join(&blake3))?;
    Ok(File { path: path.to_string_lossy().into_owned(), bytes, blake3, chunks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::sealed::{SEALED_VERSION, SetKind};

    #[test]
    fn links_are_left_out_and_bytes_are_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("results");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        std::fs::write(folder.join("deep/a.jsonl"), "{}\n").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", folder.join("stolen")).unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("stolen-folder")).unwrap();
        let set = SealedSet {
            version: SEALED_VERSION,
            kind: SetKind::Results,
            team: "t".to_owned(),
            project: "p".to_owned(),
            job: "j".to_owned(),
            task: 0,
            attempt: 1,
            step: 0,
            node: "n".to_owned(),
            files: vec![],
        };
        let spool = Spool::new(dir.path());
        let sealed = seal(&set, &folder, &spool).unwrap();
        let paths: Vec<_> = sealed.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["deep/a.jsonl"]);
        let want = blake3::hash(b"{}\n").to_hex().to_string();
        assert!(sealed.files.iter().all(|file| file.blake3 == want && file.chunks == [want.clone()]));
        assert_eq!(spool.waiting(), [sealed]);
    }
}
