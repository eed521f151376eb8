//! Files that survive a crash whole: temp, fsync, rename, fsync of the folder.
//!
//! The temporary name follows from the final one, so that a write which was cut off leaves at most one
//! file, and the write that resumes it takes that file's place: an interrupted apply plus a resume ends
//! in the same tree.

use crate::owner::Owner;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

/// Writes `content` to `path`, durable and all or nothing. The folder must exist.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let _turn = Turn::take(path);
    let temp = temp_name(path);
    let written = write_temp(&temp, content, mode, owner).and_then(|()| fs::rename(&temp, path));
    if let Err(error) = written {
        // The error matters, not whether the leftover can be removed.
        let _removed = fs::remove_file(&temp);
        return Err(error);
    }
    sync_parent(path)
}

/// Files that are being written in this process. Steps run concurrently, and several certificate steps
/// bring the same CA certificate: without turns one renames the temporary file that the other writes.
static WRITING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static WRITTEN: Condvar = Condvar::new();

/// The right to write one path; given back when dropped.
struct Turn<'p>(&'p Path);

impl<'p> Turn<'p> {
    fn take(path: &'p Path) -> Self {
        let mut writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        while !writing.insert(path.to_owned()) {
            writing = WRITTEN.wait(writing).unwrap_or_else(PoisonError::into_inner);
        }
        Self(path)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        WRITING.lock().unwrap_or_else(PoisonError::into_inner).remove(self.0);
        WRITTEN.notify_all();
    }
}

fn write_temp(temp: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(temp)?;
    file.write_all(content)?;
    if let Some(Owner { uid, gid }) = owner {
        fchown(&file, Some(uid), Some(gid))?;
    }
    // After the owner: a change of owner may clear bits.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// The one temporary name that belongs to `path`; hidden, so that `conf.d` readers pass it by.
pub(crate) fn temp_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.rackwright-new"))
}

/// Removes a file durably; absent is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(path),
    }
}

/// Makes a folder with this mode; its missing parents get 0755, whatever the process's mask says.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent, 0o755)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        created => created?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    sync_parent(path)
}

/// Flushes the folder that holds `path`, so that a rename or removal in it is on disk.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A file's text if it exists; bytes that are no UTF-8 are replaced, which still shows a difference.
pub(crate) fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_leftover_of_one_that_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(temp_name(&path), "half").unwrap();
        write(&path, b"whole", 0o640, None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_writers_of_one_file_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| write(&path, b"the same", 0o644, None).unwrap());
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap(), "the same");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn parents_are_for_everybody_and_the_folder_is_not() {
        let dir = tempfile::tempdir().unwrap();
        make_dir(&dir.path().join("lib/ours/journal"), 0o700).unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("lib/ours"), mode("lib/ours/journal")), (0o755, 0o700));
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "").unwrap();
        write(&path, b"x", 0o600, None).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
