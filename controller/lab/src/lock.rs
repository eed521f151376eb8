//! One rackwright at a time changes a lab, or what all labs share. The kernel frees a dead holder's lock.

use crate::error::{LabError, file_error};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a held lock is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// A held lock; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock of a file, which is made where absent.
    ///
    /// # Errors
    /// [`LabError::Busy`] when somebody holds it for all of `patience`, [`LabError::File`].
    pub(crate) async fn take(path: &Path, patience: Duration) -> Result<Self, LabError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = Self::attempt(path)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(LabError::Busy { path: path.to_owned(), waited_s: patience.as_secs() });
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The lock for somebody else to hold as well: it is free when all have let go.
    ///
    /// # Errors
    /// [`LabError::File`] when no more files can be opened.
    pub(crate) fn share(&self) -> Result<File, LabError> {
        self.file.try_clone().map_err(file_error("open", &self.path))
    }

    /// Removes the lock's file and frees the lock. Whoever waited for it sees that the file is another.
    pub(crate) fn remove(self) {
        let _already_gone = std::fs::remove_file(&self.path);
    }

    fn attempt(path: &Path) -> Result<Option<Self>, LabError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(file_error("make", folder))?;
        }
        let file = match OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path) {
            Ok(file) => file,
            // The last lab's end removed the folder in between.
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => {
                return Err(LabError::File { action: "open", path: path.to_owned(), cause });
            }
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(cause)) => {
                return Err(LabError::File { action: "lock", path: path.to_owned(), cause });
            }
        }
        let held = file.metadata().map_err(file_error("look at", path))?;
        let still =
            std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
        Ok(still.then(|| Self { path: path.to_owned(), file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_taker_is_refused_and_told_which_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/dev.lock");
        let held = Lock::take(&path, Duration::ZERO).await.unwrap();
        let error = Lock::take(&path, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, LabError::Busy { .. }), "{error}");
        drop(held);
        Lock::take(&path, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_on_a_removed_file_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev.lock");
        Lock::take(&path, Duration::ZERO).await.unwrap().remove();
        assert!(!path.exists());
        let _held = Lock::take(&path, Duration::ZERO).await.unwrap();
        assert!(path.exists());
    }
}
