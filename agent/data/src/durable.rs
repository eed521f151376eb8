//! Writing so that it survives: temp file, `fsync`, rename, `fsync` of the folder.
//!
//! `rename` is atomic but not durable: without the folder's `fsync`, ext4 and XFS may lose it. An
//! `fsync` error means that the data is suspect; callers drop the file and never retry the call.

use crate::error::Error;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    let opened = File::open(folder).map_err(Error::io("open", folder))?;
    opened.sync_all().map_err(Error::io("sync", folder))
}

/// Renames within one file system, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io("rename to", to))?;
    sync_folder(to.parent().unwrap_or(Path::new("/")))
}

/// Replaces a small file: readers see the old content or the new, also after a power loss.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let temp = temp_beside(path);
    let written = write_synced(&temp, content).and_then(|()| rename(&temp, path));
    if written.is_err() {
        let _best_effort = fs::remove_file(&temp);
    }
    written
}

/// Creates a small file once: `false`, and nothing changed, when the name is taken.
pub(crate) fn create(path: &Path, content: &[u8]) -> Result<bool, Error> {
    let temp = temp_beside(path);
    let linked = write_synced(&temp, content).and_then(|()| match fs::hard_link(&temp, path) {
        Ok(()) => Ok(true),
        Err(taken) if taken.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(Error::io("create", path)(cause)),
    });
    let _best_effort = fs::remove_file(&temp);
    let created = linked?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))?;
    Ok(created)
}

/// Makes a folder and its parents, durably.
pub(crate) fn make_folder(folder: &Path) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent)?;
        match fs::create_dir(folder) {
            Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("make the folder", folder)(cause));
            }
            _ => sync_folder(parent)?,
        }
    }
    Ok(())
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(cause)),
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(content).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Names that begin with a dot are never content: the store removes them when it opens.
fn temp_beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new"))
}
