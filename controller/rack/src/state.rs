//! The operator's folder of one cluster: CA keys, host-key ledger, saved plans, one lock.
//!
//! `$XDG_STATE_HOME/rackwright/<cluster>/`, or `~/.local/state/rackwright/<cluster>/`. Folder 0700, files
//! 0600: whoever reads `pki/` owns the cluster. Every write is temporary file, sync, rename, sync of the
//! folder, so that a killed controller leaves the old content or the new one.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The state folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Neither `XDG_STATE_HOME` nor `HOME` says where state belongs.
    #[error("find a place for state: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
    /// The cluster's name cannot be a folder.
    #[error("use {0:?} as a cluster name: lower-case letters, digits and '-' only")]
    BadName(String),
    /// An operation on a file failed.
    #[error("{what} {}", path.display())]
    Io {
        /// Such as `read` or `write`.
        what: &'static str,
        /// Of the file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another controller works on this cluster.
    #[error("lock {}: another rackwright works on this cluster", path.display())]
    Locked {
        /// Of the lock file.
        path: PathBuf,
    },
}

/// One cluster's folder on the operator's machine.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// Held while a controller changes the cluster; released when dropped, or by the kernel after a kill.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// Opens the cluster's folder in the user's state folder and makes it when it is missing.
    pub fn open(cluster: &str) -> Result<Self, StateError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if cluster.is_empty() || cluster.starts_with('-') || !cluster.chars().all(fits) {
            return Err(StateError::BadName(cluster.to_owned()));
        }
        Self::at(&user_state_folder()?.join("rackwright").join(cluster))
    }

    /// Opens a given folder and makes it when it is missing.
    pub fn at(root: &Path) -> Result<Self, StateError> {
        let state = Self { root: root.to_owned() };
        for folder in [state.root.clone(), state.root.join("pki"), state.root.join("plans")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|source| StateError::Io { what: "create", path: folder, source })?;
        }
        Ok(state)
    }

    /// A path inside the folder.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The content of a file, or `None` when there is none.
    pub fn read(&self, relative: &str) -> Result<Option<String>, StateError> {
        let path = self.path(relative);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { what: "read", path, source }),
        }
    }

    /// Replaces a file durably, mode 0600.
    pub fn write(&self, relative: &str, content: &str) -> Result<(), StateError> {
        let path = self.path(relative);
        replace(&path, content.as_bytes()).map_err(|source| StateError::Io { what: "write", path, source })
    }

    /// Names of the files in a sub-folder, in no order.
    pub fn list(&self, relative: &str) -> Result<Vec<String>, StateError> {
        let path = self.path(relative);
        let failed = |source| StateError::Io { what: "list", path: path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Makes this process the only one that changes the cluster.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        self.flock("lock", FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits until no other process reads, changes and writes back a file of this folder, and keeps it so. For moments:
    /// also what only looks at the cluster makes authorities and learns host keys.
    pub(crate) fn turn(&self) -> Result<StateLock, StateError> {
        self.flock("turn", FlockOperation::LockExclusive)
    }

    fn flock(&self, name: &str, operation: FlockOperation) -> Result<StateLock, StateError> {
        let path = self.path(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StateError::Io { what: "open", path: path.clone(), source })?;
        match flock(&file, operation) {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path }),
            Err(errno) => Err(StateError::Io { what: "lock", path, source: errno.into() }),
        }
    }
}

fn user_state_folder() -> Result<PathBuf, StateError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .ok_or(StateError::NoHome)
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_readable_by_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(&folder.path().join("lab")).unwrap();
        state.write("pki/x.key", "secret").unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path("pki/x.key")), 0o600);
        assert_eq!(mode(state.path("pki")), 0o700);
        assert_eq!(state.read("pki/x.key").unwrap().as_deref(), Some("secret"));
        assert_eq!(state.read("absent").unwrap(), None);
    }

    #[test]
    fn only_one_controller_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Locked { .. })));
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn a_cluster_name_cannot_leave_the_folder() {
        for bad in ["", "..", "a/b", "-x", "Lab"] {
            assert!(matches!(StateDir::open(bad), Err(StateError::BadName(_))), "{bad}");
        }
    }
}
