//! Sealed sets on their way to the results server: `spool/<set id>/` with one file an object and
//! `set.json` written last. What has no `set.json` is a half-made set of a killed process.

use crate::results::{Results, ResultsError};
use rackwright_wire::sealed::SealedSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How often the spool is looked at when nobody wakes it.
const PERIOD: Duration = Duration::from_secs(2);

/// The spool's folder.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
    /// One upload at a time: a pod that ends uploads as well as the loop.
    uploading: Arc<Mutex<()>>,
}

impl Spool {
    /// The spool below the data folder.
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("spool"), uploading: Arc::default() }
    }

    /// An empty folder for the set's objects.
    pub(crate) fn stage(&self, set: &SealedSet) -> std::io::Result<PathBuf> {
        let staging = self.folder.join(format!("{}.part", set.id()));
        gone(std::fs::remove_dir_all(&staging))?;
        std::fs::create_dir_all(&staging)?;
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o700))?;
        Ok(staging)
    }

    /// The set exists from here on: its manifest is written last, then the folder gets its name.
    pub(crate) fn commit(&self, set: &SealedSet, staging: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec(set)?;
        write_durably(&staging.join("set.json"), &text)?;
        let folder = self.folder.join(set.id());
        // Killed after this point the time before: that set waits already.
        if folder.join("set.json").exists() {
            return std::fs::remove_dir_all(staging);
        }
        std::fs::rename(staging, folder)?;
        std::fs::File::open(&self.folder)?.sync_all()
    }

    /// Sets that are not on the results server yet, oldest id first.
    pub fn waiting(&self) -> Vec<SealedSet> {
        self.folders().into_iter().filter_map(|path| read(&path).ok()).collect()
    }

    /// Folders of whole sets, in the order of their names.
    fn folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut folders: Vec<_> = entries.map(|entry| entry.path()).collect();
        folders.retain(|path| path.extension().is_none());
        folders.sort();
        folders
    }

    /// Says which sets an earlier or later build left here that this one cannot read: they stay.
    fn warn_of_unreadable(&self) {
        for path in self.folders() {
            if let Err(cause) = read(&path) {
                tracing::warn!(path = %path.display(), %cause, "a sealed set cannot be read and is not uploaded");
            }
        }
    }

    /// Where an object of a waiting set lies.
    pub(crate) fn object(&self, set: &SealedSet, blake3: &str) -> PathBuf {
        self.folder.join(set.id()).join(blake3)
    }

    /// Uploads everything that waits; what fails stays and is reported.
    pub(crate) async fn upload_once(&self, results: &Results) {
        let _one_at_a_time = self.uploading.lock().await;
        for set in self.waiting() {
            match self.deliver(&set, results).await {
                Ok(()) => {
                    tracing::info!(set = set.id(), "uploaded");
                    if let Err(error) = std::fs::remove_dir_all(self.folder.join(set.id())) {
                        tracing::warn!(set = set.id(), %error, "uploaded, but still in the spool");
                    }
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(set = set.id(), %error, cause, "upload failed, will be tried again");
                }
            }
        }
    }

    /// Uploads one set; one that is refused for good is uploaded as refused.
    async fn deliver(&self, set: &SealedSet, results: &Results) -> Result<(), ResultsError> {
        let error = match results.upload(set, self).await {
            Err(error) if error.is_final() => error,
            outcome => return outcome,
        };
        tracing::warn!(set = set.id(), %error, "refused for good");
        let said = SealedSet { files: Vec::new(), refused: Some(error.to_string()), ..set.clone() };
        match results.upload(&said, self).await {
            // There is a set of this name already: it counts.
            Err(error) if error.is_final() => Ok(()),
            outcome => outcome,
        }
    }

    /// Uploads whatever turns up. Never returns.
    pub async fn upload_forever(&self, results: Results) {
        self.warn_of_unreadable();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.upload_once(&results).await;
        }
    }
}

/// The outcome of a removal: what was not there is gone as well.
pub(crate) fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(cause),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read(folder: &Path) -> std::io::Result<SealedSet> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("set.json"))?)?)
}

/// Writes a whole file so that it is there, complete, after a power cut: temp, sync, rename, sync.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::sealed::{SEALED_VERSION, SetKind};

    #[test]
    fn a_set_of_a_newer_agent_is_not_uploaded_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path());
        let set = SealedSet {
            version: SEALED_VERSION,
            kind: SetKind::Results,
            team: "vision".to_owned(),
            project: "default".to_owned(),
            job: "j1".to_owned(),
            task: 0,
            attempt: 1,
            step: 0,
            node: "ml1".to_owned(),
            files: Vec::new(),
            refused: None,
            left_out: 0,
        };
        let staging = spool.stage(&set).unwrap();
        spool.commit(&set, &staging).unwrap();
        assert_eq!(spool.waiting(), std::slice::from_ref(&set));
        let file = spool.folder.join(set.id()).join("set.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(spool.waiting().is_empty() && file.exists());
        let cause = read(&spool.folder.join(set.id())).unwrap_err().to_string();
        assert!(cause.starts_with("version 2, this build reads 1"), "{cause}");
    }
}
