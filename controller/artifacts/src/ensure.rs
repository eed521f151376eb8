//! Has artifacts: from the cache, or from the first source that gives them.

use crate::attempt::Attempt;
use crate::bundle::{self, Bundle};
use crate::cache::{Cache, Guard, Lookup};
use crate::error::{Doing as _, Error};
use crate::lock::{Artifact, Lock};
use crate::progress::{Event, Progress};
use crate::release::Releases;
use crate::resolved::{Record, Resolved};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The artifacts of a lockfile, and this machine's cache of them.
#[derive(Debug)]
pub struct Artifacts {
    pub(crate) lock: Lock,
    /// The lockfile's folder, to which the paths in it are relative.
    pub(crate) root: PathBuf,
    pub(crate) cache: Cache,
    pub(crate) bundle: Option<Bundle>,
    pub(crate) official: bool,
}

impl Artifacts {
    /// Reads a lockfile and opens the default cache.
    pub fn load(lock: &Path) -> Result<Self, Error> {
        Self::load_into(lock, Cache::default_dir())
    }

    /// Reads a lockfile and opens the cache in that folder.
    pub fn load_into(lock: &Path, cache: impl Into<PathBuf>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(lock).doing("read the artifact lock", lock)?;
        let parsed =
            Lock::parse(&text).map_err(|findings| Error::Lock { path: lock.to_owned(), findings })?;
        let root = lock.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { lock: parsed, root, cache: Cache::open(cache)?, bundle: None, official: true })
    }

    /// Takes what the cache lacks from an offline bundle first.
    #[must_use]
    pub fn with_bundle(mut self, bundle: Bundle) -> Self {
        self.bundle = Some(bundle);
        self
    }

    /// Asks no official release server.
    #[must_use]
    pub fn without_official(mut self) -> Self {
        self.official = false;
        self
    }

    /// What the lock says.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What the cache has for a name of the lock.
    pub fn lookup(&self, name: &str) -> Result<Lookup, Error> {
        let artifact = self.find(&[name])?;
        artifact
            .first()
            .map_or(Ok(Lookup::Missing), |artifact| self.cache.lookup(name, &self.lock.inputs(artifact)))
    }

    /// Debian packages that this machine needs, and lacks, to have these artifacts.
    pub fn missing_packages(&self, names: &[&str]) -> Result<Vec<&'static str>, Error> {
        let debian =
            |artifact: &&Artifact| artifact.image.as_ref().is_some_and(|image| image.debian.is_some());
        let needs = self.find(names)?.iter().any(debian);
        Ok(if needs && !Path::new("/usr/bin/mmdebstrap").exists() { vec!["mmdebstrap"] } else { Vec::new() })
    }

    /// Has these artifacts in the cache and says where they lie, in the order of the names. What is missing is had
    /// one after the other, each kept as soon as it is finished: after an interruption only the rest is left.
    ///
    /// # Errors
    /// Names that the lock does not have, before anything is done; an artifact that no source gives, with the
    /// reason of each.
    pub async fn ensure(&self, names: &[&str], progress: &dyn Progress) -> Result<Vec<Resolved>, Error> {
        let wanted = self.find(names)?;
        if wanted.iter().any(|artifact| !self.is_hit(artifact)) {
            let guard = self.guard(progress).await?;
            self.fetch_missing(&wanted, &guard, progress).await?;
        }
        wanted.iter().map(|artifact| self.hit(artifact)).collect()
    }

    /// Writes cached artifacts into an offline bundle and returns its size in bytes. Has them first.
    pub async fn bundle(&self, names: &[&str], path: &Path, progress: &dyn Progress) -> Result<u64, Error> {
        self.ensure(names, progress).await?;
        let wanted: Vec<(String, String)> = self
            .find(names)?
            .into_iter()
            .map(|artifact| (artifact.name.clone(), self.lock.inputs(artifact)))
            .collect();
        let (cache, path) = (self.cache.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || bundle::write(&cache, &wanted, &path))
            .await
            .unwrap_or(Err(Error::Cancelled))
    }

    fn find(&self, names: &[&str]) -> Result<Vec<&Artifact>, Error> {
        let found: Vec<_> = names.iter().map(|name| self.lock.artifact(name).ok_or(*name)).collect();
        let unknown: Vec<String> = found.iter().filter_map(|found| found.err()).map(str::to_owned).collect();
        if unknown.is_empty() {
            return Ok(found.into_iter().flatten().collect());
        }
        let known: Vec<&str> = self.lock.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
        Err(Error::Unknown { names: unknown, known: known.join(", ") })
    }

    fn is_hit(&self, artifact: &Artifact) -> bool {
        self.hit(artifact).is_ok()
    }

    pub(crate) fn hit(&self, artifact: &Artifact) -> Result<Resolved, Error> {
        match self.cache.lookup(&artifact.name, &self.lock.inputs(artifact))? {
            Lookup::Hit(resolved) => Ok(*resolved),
            Lookup::Missing | Lookup::Corrupt { .. } => Err(Error::NoSource {
                name: artifact.name.clone(),
                version: artifact.version.clone(),
                tried: vec![("cache", "find it".to_owned())],
            }),
        }
    }

    async fn guard(&self, progress: &dyn Progress) -> Result<Guard, Error> {
        if let Some(guard) = self.cache.try_lock()? {
            return Ok(guard);
        }
        progress.event(&Event::Waiting);
        let cache = self.cache.clone();
        tokio::task::spawn_blocking(move || cache.lock()).await.unwrap_or(Err(Error::Cancelled))
    }

    async fn fetch_missing(
        &self,
        wanted: &[&Artifact],
        guard: &Guard,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut missing: Vec<&Artifact> = Vec::new();
        // What is inside an image comes before the image, unless the image is there or a bundle has it whole.
        let in_bundle = |artifact: &Artifact| {
            let inputs = self.lock.inputs(artifact);
            self.bundle.as_ref().is_some_and(|bundle| bundle.record(&artifact.name, &inputs).is_some())
        };
        let made = wanted.iter().filter(|artifact| !self.is_hit(artifact) && !in_bundle(artifact));
        let inner = made.filter_map(|artifact| artifact.image.as_ref()?.busybox.as_deref());
        let inner = inner.filter_map(|name| self.lock.artifact(name));
        for artifact in inner.chain(wanted.iter().copied()) {
            if missing.iter().all(|known| known.name != artifact.name) && !self.is_hit(artifact) {
                missing.push(artifact);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let usually = missing.iter().map(|artifact| artifact.usually).sum();
        progress.event(&Event::Plan { missing: missing.len(), usually });
        let releases = Releases::new();
        for artifact in missing {
            let started = Instant::now();
            let resolved = self.fetch(artifact, releases.as_ref().ok(), guard, progress).await?;
            progress.event(&Event::Done { resolved: &resolved, took: started.elapsed() });
        }
        Ok(())
    }

    async fn fetch(
        &self,
        artifact: &Artifact,
        releases: Option<&Releases>,
        guard: &Guard,
        progress: &dyn Progress,
    ) -> Result<Resolved, Error> {
        let inputs = self.lock.inputs(artifact);
        if let Lookup::Corrupt { path, .. } = self.cache.lookup(&artifact.name, &inputs)? {
            progress.event(&Event::Corrupt { name: &artifact.name });
            std::fs::remove_file(&path).doing("remove", path)?;
        }
        let file = self.cache.tmp(guard, &artifact.name);
        let attempt = Attempt { artifacts: self, artifact, inputs: &inputs, guard, progress, file: &file };
        let made = attempt.first_source(releases).await?;
        let record = Record {
            name: artifact.name.clone(),
            version: artifact.version.clone(),
            inputs,
            sha256: String::new(),
            size_bytes: 0,
            hashed_mtime_ns: 0,
            bundled: made.bundled,
            reference: artifact.image.as_ref().map(|image| image.reference.clone()),
            source: made.source,
        };
        self.cache.insert(guard, &file, record)
    }
}
