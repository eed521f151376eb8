//! From a folder that a job wrote to a sealed set in the spool.
//!
//! The job is hostile until proven otherwise: links are never followed (`openat2` beneath the folder,
//! no symlinks), only plain files count, and while it runs bytes are hashed from our own copy, so that
//! what is uploaded is what was hashed.

use crate::spool::{Spool, gone};
use rackwright_wire::manifest::{CHUNK_BYTES, File, MANIFEST_BYTES, is_plain_relative_path};
use rackwright_wire::sealed::SealedSet;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Most files in one set.
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
}

/// Who may still write to a folder while it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// The job runs: its files are copied.
    Running,
    /// It has ended: its files are linked, which needs no room on a disk that it may have filled.
    Ended,
}

/// Hashes every plain file below `folder`, and puts the set into the spool. One with more files or deeper
/// folders than a set may have is sealed as refused, without files.
///
/// # Errors
/// [`SealError`]; the spool is as before then.
pub fn seal(set: &SealedSet, folder: &Path, spool: &Spool, writers: Writers) -> Result<SealedSet, SealError> {
    let failed = |cause: std::io::Error| SealError::File { path: folder.to_owned(), cause };
    let staging = spool.stage(set).map_err(failed)?;
    let sealed = gather(set, folder, &staging, writers)
        .and_then(|sealed| spool.commit(&sealed, &staging).map(|()| sealed).map_err(failed));
    if sealed.is_err() {
        // On a full disk half a set would only make it worse.
        let _next_try_empties_it = std::fs::remove_dir_all(&staging);
    }
    sealed
}

fn gather(set: &SealedSet, folder: &Path, staging: &Path, writers: Writers) -> Result<SealedSet, SealError> {
    let failed = |cause: std::io::Error| SealError::File { path: folder.to_owned(), cause };
    let root = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|cause| failed(cause.into()))?;
    let mut found = Listing::default();
    if let Some(why) = list(&root, Path::new(""), 0, &mut found).map_err(failed)? {
        return Ok(SealedSet { refused: Some(why), ..set.clone() });
    }
    found.files.sort();
    let mut files = Vec::with_capacity(found.files.len());
    for path in &found.files {
        let named = |cause| SealError::File { path: folder.join(path), cause };
        let Some(file) = open_plain(&root, path).map_err(named)? else {
            continue;
        };
        files.push(take(file, path, staging, writers).map_err(named)?);
    }
    let sealed = SealedSet { files, left_out: found.left_out, ..set.clone() };
    let text = serde_json::to_vec(&sealed).map_err(|cause| failed(cause.into()))?;
    if text.len() > MANIFEST_BYTES {
        let why = format!("a list of files longer than {} MiB", MANIFEST_BYTES >> 20);
        return Ok(SealedSet { refused: Some(why), ..set.clone() });
    }
    Ok(sealed)
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// What lies in a folder.
#[derive(Default)]
struct Listing {
    /// Plain files.
    files: Vec<PathBuf>,
    /// Links, sockets and devices, which are never part of a set.
    left_out: u64,
}

/// Collects the files below a folder; says why they can be no set, if so.
fn list(root: &OwnedFd, below: &Path, depth: usize, out: &mut Listing) -> std::io::Result<Option<String>> {
    let too_much = || Ok(Some(format!("more than {MAX_FILES} files or {MAX_DEPTH} levels of folders")));
    if depth > MAX_DEPTH {
        return too_much();
    }
    let here = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(root.as_fd(), here, flags, Mode::empty(), beneath())?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name().to_str();
        if matches!(name, Ok("." | ".." | RESTORED_MARK)) {
            continue;
        }
        let kind = entry.file_type();
        if !kind.is_dir() && !kind.is_file() {
            out.left_out += 1;
            continue;
        }
        // A manifest could not name it, and without it the set would not be what the job left.
        let path = below.join(entry.file_name().to_string_lossy().as_ref());
        if name.is_err() || !path.to_str().is_some_and(is_plain_relative_path) {
            let rule = "control characters, not UTF-8, or longer than 1024 bytes";
            return Ok(Some(format!("{:?} is no name for a file: {rule}", path.to_string_lossy())));
        }
        if kind.is_dir() {
            if let Some(why) = list(root, &path, depth + 1, out)? {
                return Ok(Some(why));
            }
        } else if out.files.len() == MAX_FILES {
            return too_much();
        } else {
            out.files.push(path);
        }
    }
    Ok(None)
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

/// Puts one file into the staging folder under its hash.
fn take(mut from: std::fs::File, path: &Path, staging: &Path, writers: Writers) -> std::io::Result<File> {
    let part = staging.join("part");
    let linked = writers == Writers::Ended && link(&from, &part).is_ok();
    let mut to = if linked { None } else { Some(std::fs::File::create(&part)?) };
    let (mut whole, mut chunk) = (blake3::Hasher::new(), blake3::Hasher::new());
    let (mut bytes, mut in_chunk, mut chunks) = (0_u64, 0_u64, Vec::new());
    let mut buffer = vec![0_u8; 128 * 1024];
    loop {
        let got = from.read(&mut buffer)?;
        let Some(read) = buffer.get(..got).filter(|read| !read.is_empty()) else {
            break;
        };
        if let Some(to) = &mut to {
            to.write_all(read)?;
        }
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
    to.as_ref().unwrap_or(&from).sync_all()?;
    let blake3 = whole.finalize().to_hex().to_string();
    let object = staging.join(&blake3);
    std::fs::rename(&part, &object)?;
    // Two names of one file are left alone by a rename.
    gone(std::fs::remove_file(&part))?;
    Ok(File { path: path.to_string_lossy().into_owned(), bytes, blake3, chunks })
}

/// Another name for an open file: whatever its path has become, it is this file.
fn link(file: &std::fs::File, to: &Path) -> std::io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(rustix::fs::CWD, open, rustix::fs::CWD, to, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::sealed::{SEALED_VERSION, SetKind};
    use std::os::unix::fs::MetadataExt as _;

    fn results() -> SealedSet {
        SealedSet {
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
            refused: None,
            left_out: 0,
        }
    }

    #[test]
    fn links_are_left_out_and_bytes_are_hashed() {
        for writers in [Writers::Running, Writers::Ended] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("results");
            std::fs::create_dir_all(folder.join("deep")).unwrap();
            std::fs::write(folder.join("deep/a.jsonl"), "{}\n").unwrap();
            std::fs::write(folder.join("same.jsonl"), "{}\n").unwrap();
            std::fs::hard_link(folder.join("same.jsonl"), folder.join("twin.jsonl")).unwrap();
            std::os::unix::fs::symlink("/etc/shadow", folder.join("stolen")).unwrap();
            std::os::unix::fs::symlink("/etc", folder.join("stolen-folder")).unwrap();
            let spool = Spool::new(dir.path());
            let sealed = seal(&results(), &folder, &spool, writers).unwrap();
            let paths: Vec<_> = sealed.files.iter().map(|file| file.path.as_str()).collect();
            assert_eq!(paths, ["deep/a.jsonl", "same.jsonl", "twin.jsonl"]);
            assert_eq!(sealed.but(), "; 2 links or devices left out");
            let want = blake3::hash(b"{}\n").to_hex().to_string();
            assert!(sealed.files.iter().all(|file| file.blake3 == want && file.chunks == [want.clone()]));
            let object = std::fs::metadata(spool.object(&sealed, &want)).unwrap();
            assert_eq!(object.nlink() > 1, writers == Writers::Ended, "what has ended takes no room twice");
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path().join("spool").join(sealed.id())).unwrap().collect();
            names.retain(|name| name.as_ref().unwrap().file_name() == "part");
            assert!(names.is_empty(), "{names:?}");
            assert_eq!(spool.waiting(), [sealed]);
        }
    }

    #[test]
    fn a_name_that_no_manifest_can_hold_refuses_the_set_in_words() {
        use std::os::unix::ffi::OsStrExt as _;
        for (name, shown) in [(b"a\x07b".as_slice(), r#""a\u{7}b""#), (b"a\xffb", "\"a\u{fffd}b\"")] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("results");
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(std::ffi::OsStr::from_bytes(name)), "{}\n").unwrap();
            let spool = Spool::new(dir.path());
            let sealed = seal(&results(), &folder, &spool, Writers::Ended).unwrap();
            let why = sealed.refused.unwrap();
            assert!(why.starts_with(&format!("{shown} is no name for a file: ")), "{why}");
        }
    }

    #[test]
    fn a_set_beyond_the_limits_is_refused_in_words_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep").join("d/".repeat(MAX_DEPTH + 1));
        std::fs::create_dir_all(deep).unwrap();
        let wide = dir.path().join("wide");
        std::fs::create_dir(&wide).unwrap();
        for number in 0..=MAX_FILES {
            std::fs::File::create(wide.join(number.to_string())).unwrap();
        }
        for folder in ["deep", "wide"] {
            let spool = Spool::new(&dir.path().join("data").join(folder));
            let sealed = seal(&results(), &dir.path().join(folder), &spool, Writers::Ended).unwrap();
            assert_eq!(sealed.refused.as_deref(), Some("more than 10000 files or 16 levels of folders"));
            assert!(sealed.files.is_empty());
            assert_eq!(spool.waiting(), [sealed]);
        }
    }
}
