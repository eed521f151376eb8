//! One server as the steps see it: where its root is, what time it is, and what was looked up already.
//!
//! Every path of a step is taken below [`Host::root`]: `/` on a server, a temporary folder in tests.

use crate::dpkg::{self, Packages};
use crate::error::StepError;
use crate::hashes::Hashes;
use crate::systemd::Units;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where everything of ours lies on a server.
pub const STATE: &str = "/var/lib/rackwright";
/// Where we keep what a reboot may take, below the root.
const VOLATILE: &str = "/run/rackwright";

/// A server (or a folder that plays one in a test).
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    now_s: u64,
    packages: Mutex<Option<Arc<Packages>>>,
    images: Mutex<Option<Arc<BTreeMap<String, String>>>>,
    apt: Mutex<()>,
    imports: Mutex<()>,
    pub(crate) units: Units,
    pub(crate) hashes: Hashes,
}

impl Host {
    /// A server whose root is `root`, looked at `now_s` seconds after the epoch (certificates age by it).
    pub fn new(root: impl Into<PathBuf>, now_s: u64) -> Self {
        let root = root.into();
        let hashes = Hashes::at(below(&root, &format!("{STATE}/journal/hashes.jsonl")));
        Self {
            root,
            now_s,
            packages: Mutex::default(),
            images: Mutex::default(),
            apt: Mutex::default(),
            imports: Mutex::default(),
            units: Units::default(),
            hashes,
        }
    }

    /// The root of the file tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Seconds since the epoch when this host was looked at.
    pub fn now_s(&self) -> u64 {
        self.now_s
    }

    /// Whether this is a whole server, not a folder: only then units, packages and images are real.
    pub fn is_server(&self) -> bool {
        self.root == Path::new("/")
    }

    /// An absolute path of a step, below the root.
    pub fn path(&self, absolute: &str) -> PathBuf {
        below(&self.root, absolute)
    }

    /// A path below `/var/lib/rackwright`.
    pub fn state(&self, relative: &str) -> PathBuf {
        self.path(STATE).join(relative)
    }

    /// A place of ours that a reboot clears; the controller's way in has made the folder.
    pub fn volatile(&self, relative: &str) -> PathBuf {
        self.path(VOLATILE).join(relative)
    }

    /// Installed packages and their versions, read once until [`Self::forget_packages`].
    pub(crate) fn packages(&self) -> Result<Arc<Packages>, StepError> {
        let mut known = lock(&self.packages);
        if let Some(packages) = known.as_ref() {
            return Ok(Arc::clone(packages));
        }
        let path = self.path(dpkg::STATUS);
        let packages = Arc::new(dpkg::read(&path).map_err(|error| StepError::io("read", &path, error))?);
        *known = Some(Arc::clone(&packages));
        Ok(packages)
    }

    pub(crate) fn forget_packages(&self) {
        *lock(&self.packages) = None;
    }

    /// Imported images: reference to labels, as `list` finds them, asked once until forgotten.
    pub(crate) fn images(
        &self,
        list: impl FnOnce() -> Result<BTreeMap<String, String>, StepError>,
    ) -> Result<Arc<BTreeMap<String, String>>, StepError> {
        let mut known = lock(&self.images);
        if let Some(images) = known.as_ref() {
            return Ok(Arc::clone(images));
        }
        let images = Arc::new(list()?);
        *known = Some(Arc::clone(&images));
        Ok(images)
    }

    pub(crate) fn forget_images(&self) {
        *lock(&self.images) = None;
    }

    /// One image import at a time: each unpacks with all cores anyway.
    pub(crate) fn imports(&self) -> MutexGuard<'_, ()> {
        lock(&self.imports)
    }

    /// One package manager at a time.
    pub(crate) fn apt(&self) -> MutexGuard<'_, ()> {
        lock(&self.apt)
    }
}

fn below(root: &Path, absolute: &str) -> PathBuf {
    root.join(absolute.trim_start_matches('/'))
}

/// A poisoned lock only means that another step panicked; these caches stay valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
