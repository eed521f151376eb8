//! Publish and unpublish: what is mounted for which pod, recorded so that a restart forgets nothing.
//!
//! A record `volumes/<volume id>.json` is written before the mount and removed after the unmount, so a
//! killed plugin can always finish what the kubelet asks again. A dataset's pin is written before its
//! folder is looked up, so eviction cannot slip in between.

use crate::config::Config;
use crate::results::{Results, ResultsError};
use crate::seal::{SealError, Writers};
use crate::spool::{Spool, gone};
use crate::work::WorkFolder;
use rackwright_wire::volume::{SEAL_MARKER, VolumeRequest, pins_folder, version_folder};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often live work volumes are looked at for the marker.
const MARKER_PERIOD: Duration = Duration::from_millis(300);
/// How long an unpublish waits for sealed sets to reach the results server before it lets the pod go;
/// the upload goes on behind it.
const UPLOAD_WAIT: Duration = Duration::from_secs(10);

/// Why a volume could not be published or unpublished.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The request makes no sense, or asks for a path it must not have.
    #[error("accept the volume request: {detail}")]
    BadRequest {
        /// What is wrong.
        detail: String,
    },
    /// The version is not complete on this node.
    #[error("mount {dataset}@{version}: this node does not hold it")]
    NotHere {
        /// Dataset.
        dataset: String,
        /// Version digest.
        version: String,
    },
    /// The kernel refused.
    #[error("mount at {target}")]
    Mount {
        /// Target path.
        target: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A record, pin or folder could not be written.
    #[error("keep {path}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// What was published cannot be read back.
    #[error("read {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The checkpoint to resume from could not be restored.
    #[error("restore the checkpoint")]
    Restore(#[from] ResultsError),
    /// What the job left could not be sealed.
    #[error("seal what the job left")]
    Seal(#[from] SealError),
}

/// The version of [`Record`] that this build writes.
const RECORD_VERSION: u32 = 1;

/// What was published, as kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, RECORD_VERSION>")]
    version: u32,
    target: PathBuf,
    request: VolumeRequest,
}

/// All volumes of this node.
#[derive(Debug)]
pub struct Volumes {
    node: String,
    data_dir: PathBuf,
    kubelet_dir: PathBuf,
    spool: Spool,
    results: Results,
    /// One lock a volume: the kubelet may repeat a call while the first still runs.
    busy: tokio::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Volumes {
    /// The volumes below `config.data_dir`.
    pub fn new(config: &Config, spool: Spool, results: Results) -> Self {
        Self {
            node: config.server.clone(),
            data_dir: config.data_dir.clone(),
            kubelet_dir: config.kubelet_dir.clone(),
            spool,
            results,
            busy: tokio::sync::Mutex::default(),
        }
    }

    /// Mounts what `context` asks for at `target`. Repeating a call changes nothing. It must not be dropped
    /// midway: a restore would begin anew.
    ///
    /// # Errors
    /// [`VolumeError`]; nothing is mounted then.
    pub async fn publish(
        &self,
        volume: &str,
        target: &Path,
        context: &HashMap<String, String>,
    ) -> Result<(), VolumeError> {
        let request = VolumeRequest::from_attributes(context)
            .map_err(|cause| VolumeError::BadRequest { detail: cause.to_string() })?;
        self.check_target(target)?;
        let lock = self.lock(volume).await?;
        let _one_at_a_time = lock.lock().await;
        if is_mounted(target)? {
            return Ok(());
        }
        let record = Record { version: RECORD_VERSION, target: target.to_owned(), request: request.clone() };
        self.write_record(volume, &record)?;
        match &request {
            VolumeRequest::Dataset { dataset, version } => {
                bind(&self.pin(volume, dataset, version)?, target, true)
            }
            VolumeRequest::Work { .. } => {
                let folder = self.work_folder(&request).await?;
                let failed = |cause| VolumeError::File { path: folder.clone(), cause };
                bind(&open_folder(&self.data_dir, &folder).map_err(failed)?, target, false)
            }
        }
    }

    /// Unmounts, seals what a work volume holds, and forgets the volume. Repeating a call changes nothing. It must
    /// not be dropped midway: the sealing goes on, and nobody would hold the volume's lock.
    ///
    /// # Errors
    /// [`VolumeError`]; the kubelet asks again.
    pub async fn unpublish(&self, volume: &str, target: &Path) -> Result<(), VolumeError> {
        self.check_target(target)?;
        let lock = self.lock(volume).await?;
        let _one_at_a_time = lock.lock().await;
        unbind(target)?;
        let Some(record) = self.read_record(volume)? else {
            return Ok(());
        };
        match &record.request {
            VolumeRequest::Dataset { dataset, version } => {
                remove(&pins_folder(&self.data_dir, dataset, version).join(volume))?;
            }
            VolumeRequest::Work { .. } => self.close_work(&record.request).await?,
        }
        remove(&self.record_path(volume))?;
        self.busy.lock().await.remove(volume);
        Ok(())
    }

    /// Seals live work volumes whenever a job leaves the marker. Never returns.
    pub async fn watch_markers(self: Arc<Self>) {
        let mut tick = tokio::time::interval(MARKER_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for (volume, record) in self.records() {
                let Some(folder) = WorkFolder::of(&self.data_dir, &record.request) else {
                    continue;
                };
                let marker = folder.path().join(SEAL_MARKER);
                if !marker.exists() {
                    continue;
                }
                // Whoever publishes or unpublishes seals too, or is done with the volume soon.
                let Ok(lock) = self.lock(&volume).await else { continue };
                let Ok(_one_at_a_time) = lock.try_lock() else { continue };
                // The marker goes first: what a job adds while we seal gets a marker of its own.
                if std::fs::remove_file(marker).is_err() {
                    continue;
                }
                if let Err(error) = self.seal(folder, Writers::Running).await {
                    tracing::warn!(volume, %error, cause = ?std::error::Error::source(&error), "sealing failed");
                }
            }
        }
    }

    async fn seal(&self, folder: WorkFolder, writers: Writers) -> Result<(), VolumeError> {
        let (node, spool) = (self.node.clone(), self.spool.clone());
        let sealing = tokio::task::spawn_blocking(move || folder.seal_new(&node, &spool, writers));
        match sealing.await {
            Ok(sealed) => Ok(sealed?),
            Err(cause) => Err(VolumeError::BadRequest { detail: cause.to_string() }),
        }
    }

    async fn close_work(&self, request: &VolumeRequest) -> Result<(), VolumeError> {
        let Some(folder) = WorkFolder::of(&self.data_dir, request) else {
            return Ok(());
        };
        if !folder.path().exists() {
            return Ok(());
        }
        self.seal(folder.clone(), Writers::Ended).await?;
        if tokio::time::timeout(UPLOAD_WAIT, self.spool.upload_once(&self.results)).await.is_err() {
            tracing::warn!("the results server is slow or away: sealed sets follow later");
        }
        let (path, removing) = (folder.path().to_owned(), move || folder.remove());
        let removed = tokio::task::spawn_blocking(removing).await.unwrap_or_else(|cause| Err(cause.into()));
        removed.map_err(|cause| VolumeError::File { path, cause })
    }

    async fn work_folder(&self, request: &VolumeRequest) -> Result<PathBuf, VolumeError> {
        let folder = WorkFolder::of(&self.data_dir, request)
            .ok_or_else(|| VolumeError::BadRequest { detail: "names must be plain labels".to_owned() })?;
        folder.create().map_err(|cause| VolumeError::File { path: folder.path().to_owned(), cause })?;
        if let VolumeRequest::Work { resume, team, project, .. } = request
            && !resume.is_empty()
        {
            self.results.restore(resume, (team, project), &folder.checkpoints()).await?;
        }
        Ok(folder.path().to_owned())
    }

    /// Writes the pin, then looks: a version that is evicted in between is simply not here.
    fn pin(&self, volume: &str, dataset: &str, version: &str) -> Result<OwnedFd, VolumeError> {
        for name in [dataset, version] {
            plain(name)?;
        }
        let pin = pins_folder(&self.data_dir, dataset, version).join(volume);
        let failed = |cause| VolumeError::File { path: pin.clone(), cause };
        if let Some(folder) = pin.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        std::fs::File::create(&pin).and_then(|file| file.sync_all()).map_err(failed)?;
        let source = version_folder(&self.data_dir, dataset, version);
        open_folder(&self.data_dir, &source).or_else(|_absent| {
            remove(&pin)?;
            Err(VolumeError::NotHere { dataset: dataset.to_owned(), version: version.to_owned() })
        })
    }

    fn record_path(&self, volume: &str) -> PathBuf {
        self.data_dir.join("volumes").join(format!("{volume}.json"))
    }

    /// The kubelet is trusted, but a path outside its own folder is a mistake that root must not make.
    fn check_target(&self, target: &Path) -> Result<(), VolumeError> {
        let plain = target.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if plain && target.starts_with(self.kubelet_dir.join("pods")) {
            return Ok(());
        }
        Err(VolumeError::BadRequest { detail: format!("{} is not in the kubelet's pods", target.display()) })
    }

    async fn lock(&self, volume: &str) -> Result<Arc<tokio::sync::Mutex<()>>, VolumeError> {
        plain(volume)?;
        Ok(Arc::clone(self.busy.lock().await.entry(volume.to_owned()).or_default()))
    }

    fn write_record(&self, volume: &str, record: &Record) -> Result<(), VolumeError> {
        let path = self.record_path(volume);
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        crate::spool::write_durably(&path, &text).map_err(|cause| VolumeError::File { path, cause })
    }

    /// A record that cannot be read is no missing one: without it the pin would stay for ever, and what the
    /// job left would never be sealed. The kubelet asks again, and says why.
    fn read_record(&self, volume: &str) -> Result<Option<Record>, VolumeError> {
        let path = self.record_path(volume);
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(std::io::Error::from),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause),
        };
        read.map_err(|cause| VolumeError::Record { path, cause })
    }

    fn records(&self) -> BTreeMap<String, Record> {
        let Ok(folder) = std::fs::read_dir(self.data_dir.join("volumes")) else {
            return BTreeMap::new();
        };
        let names = folder
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        names.filter_map(|name| Some((name.clone(), self.read_record(&name).ok()??))).collect()
    }
}

/// Volume ids, dataset names and digests become path parts: letters, digits, `-`, `_` and `.` only.
fn plain(name: &str) -> Result<(), VolumeError> {
    let fits = !name.is_empty()
        && name.len() <= 253
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if fits { Ok(()) } else { Err(VolumeError::BadRequest { detail: format!("{name:?} is no plain name") }) }
}

/// A folder that really lies in the data folder: the user of the data unit, who owns parts of that, may have made a
/// link to somewhere else of it.
fn open_folder(data_dir: &Path, folder: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(data_dir, flags, Mode::empty())?;
    let below = folder.strip_prefix(data_dir).map_err(std::io::Error::other)?;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, below, flags, Mode::empty(), inside)?)
}

fn bind(source: &OwnedFd, target: &Path, read_only: bool) -> Result<(), VolumeError> {
    let failed = |cause: std::io::Error| VolumeError::Mount { target: target.to_owned(), cause };
    std::fs::create_dir_all(target).map_err(failed)?;
    let source = format!("/proc/self/fd/{}", source.as_raw_fd());
    rustix::mount::mount_bind(source, target).map_err(|cause| failed(cause.into()))?;
    // A bind mount takes its flags only in a second step; if that fails the first must not stay.
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount_remount(target, flags, "").map_err(|cause| {
        let _best_effort = rustix::mount::unmount(target, UnmountFlags::DETACH);
        failed(cause.into())
    })
}

fn unbind(target: &Path) -> Result<(), VolumeError> {
    let failed = |cause: std::io::Error| VolumeError::Mount { target: target.to_owned(), cause };
    while is_mounted(target)? {
        rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).map_err(|cause| failed(cause.into()))?;
    }
    gone(std::fs::remove_dir(target)).map_err(failed)
}

/// Field 5 of `/proc/self/mountinfo` is the mount point, with octal escapes for blanks.
fn is_mounted(target: &Path) -> Result<bool, VolumeError> {
    let path = Path::new("/proc/self/mountinfo");
    let text =
        std::fs::read_to_string(path).map_err(|cause| VolumeError::File { path: path.to_owned(), cause })?;
    let wanted = target.to_string_lossy().replace(' ', "\\040");
    Ok(text.lines().any(|line| line.split(' ').nth(4) == Some(wanted.as_str())))
}

fn remove(path: &Path) -> Result<(), VolumeError> {
    gone(std::fs::remove_file(path)).map_err(|cause| VolumeError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(data_dir: &Path) -> Volumes {
        let address = "127.0.0.1:1".to_owned();
        let results = crate::config::ResultsServer { server: "results1".to_owned(), address };
        let file = |name: &str| data_dir.join(name);
        let config = Config {
            server: "ml1".to_owned(),
            data_dir: data_dir.to_owned(),
            cert: file("cert.pem"),
            key: file("key.pem"),
            ca: file("ca.pem"),
            kubelet_dir: file("kubelet"),
            results,
        };
        Volumes::new(&config, Spool::new(data_dir), Results::nowhere())
    }

    fn dataset() -> VolumeRequest {
        VolumeRequest::Dataset { dataset: "packages".to_owned(), version: "ab".repeat(32) }
    }

    #[test]
    fn a_pin_lies_where_the_data_unit_looks_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = volumes(folder.path());
        let digest = "ab".repeat(32);
        assert!(matches!(volumes.pin("v1", "packages", &digest), Err(VolumeError::NotHere { .. })));
        let pin = folder.path().join("pins/packages").join(&digest).join("v1");
        assert!(!pin.exists(), "no pin stays of what is not here");
        let versions = folder.path().join("versions/packages");
        std::fs::create_dir_all(versions.join(&digest)).unwrap();
        volumes.pin("v1", "packages", &digest).unwrap();
        assert!(pin.exists());
        let elsewhere = "cd".repeat(32);
        std::os::unix::fs::symlink("/etc", versions.join(&elsewhere)).unwrap();
        assert!(matches!(volumes.pin("v1", "packages", &elsewhere), Err(VolumeError::NotHere { .. })));
    }

    #[tokio::test]
    async fn a_record_of_a_newer_agent_is_refused_and_its_pin_stays() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = volumes(folder.path());
        let target = folder.path().join("kubelet/pods/p/mount");
        let record = Record { version: RECORD_VERSION, target: target.clone(), request: dataset() };
        volumes.write_record("v1", &record).unwrap();
        assert_eq!(volumes.read_record("v1").unwrap(), Some(record));
        let path = volumes.record_path("v1");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let error = volumes.unpublish("v1", &target).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("version 2, this build reads 1"), "{cause}");
        assert!(path.exists());
    }

    #[test]
    fn a_record_reads_like_this() {
        let work = VolumeRequest::Work {
            team: "vision".to_owned(),
            project: "default".to_owned(),
            job: "j1".to_owned(),
            task: "0".to_owned(),
            attempt: "2".to_owned(),
            resume: "checkpoint-j1-0-1-40".to_owned(),
        };
        let text = [dataset(), work].map(|request| {
            let target = "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/data/mount".into();
            serde_json::to_string_pretty(&Record { version: RECORD_VERSION, target, request }).unwrap()
        });
        insta::assert_snapshot!(text.join("\n"));
    }
}
