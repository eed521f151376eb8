//! The cache: files by sha256, and an index that says which lock entry each one satisfies.
//!
//! Layout below its folder: `sha256/<hex>` (read-only), `index.toml` (what was used, readable), `lock` (held
//! while something is fetched), `tmp/` (emptied by whoever gets the lock), `work/` (module sets). A file enters by
//! rename after its bytes are on disk, so a name never stands for half a file. Readers trust a file while its size
//! and modification time are those of the last hashing; `verify` hashes everything, and whoever receives a file
//! hashes it anyway.

use crate::error::{Doing as _, Error};
use crate::hash;
use crate::resolved::{Record, Resolved};
use rackwright_wire::format::Other;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The version of `index.toml`.
pub(crate) const INDEX_VERSION: u32 = 1;

/// The artifact cache of this machine.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// What the cache knows about a lock entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It is there.
    Hit(Box<Resolved>),
    /// It was never there, or for other inputs.
    Missing,
    /// Its file's bytes are not those of its name: it has to be fetched again.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The sha256 of the bytes that are there.
        got: String,
    },
}

/// The exclusive right to change the cache, until dropped.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) resolved: Vec<Record>,
}

impl Cache {
    /// Opens the cache in a folder, which is made when missing.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let cache = Self { dir: dir.into() };
        for sub in ["sha256", "tmp", "work"] {
            let path = cache.dir.join(sub);
            fs::create_dir_all(&path).doing("make the folder", path)?;
        }
        Ok(cache)
    }

    /// `$XDG_CACHE_HOME/rackwright/artifacts`, or the same below `~/.cache`.
    pub fn default_dir() -> PathBuf {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        base.unwrap_or_else(|| PathBuf::from("/var/cache")).join("rackwright/artifacts")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file of that sha256 lies, whether it is there or not.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.dir.join("sha256").join(sha256)
    }

    /// Takes the exclusive right to change the cache, if nobody has it.
    pub fn try_lock(&self) -> Result<Option<Guard>, Error> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => self.locked(file).map(Some),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(cause)) => Err(cause).doing("lock", self.dir.join("lock")),
        }
    }

    /// Waits for the exclusive right to change the cache. Blocks the thread.
    pub fn lock(&self) -> Result<Guard, Error> {
        let file = self.lock_file()?;
        file.lock().doing("lock", self.dir.join("lock"))?;
        self.locked(file)
    }

    fn lock_file(&self) -> Result<File, Error> {
        let path = self.dir.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).doing("open", path)
    }

    /// Whatever lies in `tmp` was left by a run that died.
    fn locked(&self, file: File) -> Result<Guard, Error> {
        let tmp = self.dir.join("tmp");
        for entry in fs::read_dir(&tmp).doing("read the folder", &tmp)?.flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.doing("remove", path)?;
        }
        Ok(Guard { _file: file })
    }

    /// A path for a file in the making; needs the [`Guard`] so that nobody empties the folder meanwhile.
    pub(crate) fn tmp(&self, _guard: &Guard, name: &str) -> PathBuf {
        self.dir.join("tmp").join(name)
    }

    /// The folder in which a module set is built.
    pub(crate) fn work(&self, set: &str) -> PathBuf {
        self.dir.join("work").join(set)
    }

    /// Looks a lock entry up.
    pub fn lookup(&self, name: &str, inputs: &str) -> Result<Lookup, Error> {
        let index = self.index()?;
        let found = index.resolved.into_iter().find(|record| record.name == name && record.inputs == inputs);
        match found {
            None => Ok(Lookup::Missing),
            Some(record) => self.state(&record, false),
        }
    }

    /// Hashes every file that the index names.
    pub fn verify(&self) -> Result<Vec<(String, Lookup)>, Error> {
        let index = self.index()?;
        index.resolved.iter().map(|record| Ok((record.name.clone(), self.state(record, true)?))).collect()
    }

    fn state(&self, record: &Record, always_hash: bool) -> Result<Lookup, Error> {
        let path = self.path(&record.sha256);
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Lookup::Missing),
            Err(cause) => return Err(cause).doing("read", path),
        };
        let as_hashed = meta.len() == record.size_bytes && mtime_ns(&meta) == record.hashed_mtime_ns;
        if always_hash || !as_hashed {
            let (got, _) = hash::hex_of_file(&path).doing("read", &path)?;
            if got != record.sha256 {
                return Ok(Lookup::Corrupt { path, got });
            }
        }
        Ok(Lookup::Hit(Box::new(record.at(path))))
    }

    /// Moves a finished file in and records it. The record's sha256, size and time are filled in here.
    pub(crate) fn insert(&self, _guard: &Guard, file: &Path, mut record: Record) -> Result<Resolved, Error> {
        let (sha256, size_bytes) = hash::hex_of_file(file).doing("read", file)?;
        let path = self.path(&sha256);
        File::open(file).and_then(|file| file.sync_all()).doing("write to disk", file)?;
        fs::set_permissions(file, Permissions::from_mode(0o555)).doing("set the mode of", file)?;
        fs::rename(file, &path).doing("rename to", &path)?;
        let folder = self.dir.join("sha256");
        File::open(&folder).and_then(|folder| folder.sync_all()).doing("write to disk", folder)?;
        record.hashed_mtime_ns = mtime_ns(&fs::metadata(&path).doing("read", &path)?);
        record.sha256 = sha256;
        record.size_bytes = size_bytes;
        let resolved = record.at(path);
        let mut index = self.index()?;
        index.resolved.retain(|old| old.name != record.name || old.inputs != record.inputs);
        index.resolved.push(record);
        index.resolved.sort_by(|a, b| (&a.name, &a.inputs).cmp(&(&b.name, &b.inputs)));
        self.write_index(&index)?;
        Ok(resolved)
    }

    /// The record of a lock entry, for a bundle.
    pub(crate) fn record(&self, name: &str, inputs: &str) -> Result<Option<Record>, Error> {
        Ok(self.index()?.resolved.into_iter().find(|record| record.name == name && record.inputs == inputs))
    }

    fn index(&self) -> Result<Index, Error> {
        let path = self.dir.join("index.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == ErrorKind::NotFound => {
                return Ok(Index { version: INDEX_VERSION, resolved: Vec::new() });
            }
            Err(cause) => return Err(cause).doing("read", path),
        };
        parse_index(&text, &path)
    }

    fn write_index(&self, index: &Index) -> Result<(), Error> {
        let path = self.dir.join("index.toml");
        let tmp = self.dir.join("tmp/index.toml");
        let text = toml::to_string(index)
            .map_err(|cause| std::io::Error::other(cause.to_string()))
            .doing("write", &path)?;
        let mut file = File::create(&tmp).doing("write", &tmp)?;
        file.write_all(
            b"# What this machine uses for each entry of artifacts.lock; written by rackwright.\n",
        )
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .doing("write", &tmp)?;
        fs::rename(&tmp, &path).doing("rename to", path)
    }
}

/// Parses an index, the cache's or a bundle's.
pub(crate) fn parse_index(text: &str, path: &Path) -> Result<Index, Error> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let damaged = |source| Error::Index { path: path.to_owned(), source: Box::new(source) };
    // First: tables have no order, and another version may hold keys that are unknown here.
    let found = toml::from_str::<Head>(text).map_err(damaged)?.version;
    if found != INDEX_VERSION {
        let other = Other { found, reads: INDEX_VERSION };
        return Err(Error::IndexVersion { path: path.to_owned(), other });
    }
    toml::from_str(text).map_err(damaged)
}

fn mtime_ns(meta: &fs::Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolved::Source;

    fn record(name: &str, source: Source) -> Record {
        Record {
            name: name.to_owned(),
            version: "1.2.3".to_owned(),
            inputs: "aa".repeat(32),
            sha256: "bb".repeat(32),
            size_bytes: 7,
            hashed_mtime_ns: 1_795_000_000_000_000_000,
            bundled: false,
            reference: None,
            source,
        }
    }

    fn records() -> Vec<Record> {
        let s = str::to_owned;
        let official =
            Source::Official { url: s("https://example.org/etcd.tar.gz"), sha256: "cc".repeat(32) };
        let module = Source::Module {
            module: s("k8s.io/kubernetes"),
            version: s("v1.36.3"),
            package: s("k8s.io/kubernetes/cmd/kubelet"),
            ldflags: s("-s -w"),
            go: s("go1.26.8"),
            go_sum_sha256: "dd".repeat(32),
            reproduced: true,
        };
        let debian = Source::Debian { package: s("runc"), version: s("1.1.5"), sha256: "ee".repeat(32) };
        let image = Source::Image { layer_sha256: "ff".repeat(32), contents: vec![s("busybox 1.35")] };
        let pause = Record {
            bundled: true,
            reference: Some(s("docker.io/rackwright/pause:1")),
            ..record("pause", image)
        };
        vec![record("etcd", official), record("kubelet", module), record("runc", debian), pause]
    }

    #[test]
    fn the_index_reads_like_this_and_a_newer_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        cache.write_index(&Index { version: INDEX_VERSION, resolved: records() }).unwrap();
        assert_eq!(cache.index().unwrap().resolved, records());
        let path = folder.path().join("index.toml");
        let text = fs::read_to_string(&path).unwrap();
        insta::assert_snapshot!(text);
        fs::write(&path, format!("added = 1\n{}", text.replace("version = 1\n", "version = 2\n"))).unwrap();
        let refused = cache.lookup("etcd", "x").unwrap_err();
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert_eq!(cause, "version 2, this build reads 1");
    }
}
