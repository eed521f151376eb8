//! The content store of one server: the one writer below `data_dir`.
//!
//! Objects are immutable and named by their BLAKE3. Whoever reads from here gets bytes that hashed
//! when they were stored; whether they still do is what the scrub asks.

use crate::durable;
use crate::error::Error;
use crate::hashing::StreamHasher;
use crate::layout::{LAYOUT_VERSION, Layout, LayoutMark, names_in, read_json, write_json};
use crate::partial::{Partial, chunk_len};
use rackwright_wire::manifest::{self, CHUNK_BYTES};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Reserve at most this many bytes when the configuration names none: 20 GiB.
const MOST_RESERVE: u64 = 20 * 1024 * 1024 * 1024;

/// The store. Calls that touch the disk block: run them with [`blocking`].
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    reserve: Option<u64>,
    /// Held for the life of the process: two writers would undo each other.
    _lock: File,
    partials: Mutex<HashMap<blake3::Hash, Arc<Partial>>>,
    expected: Mutex<HashSet<blake3::Hash>>,
    changed: watch::Sender<u64>,
    incoming: AtomicU64,
    received: AtomicU64,
    /// One version's folder is laid out at a time: a scrub and the loop may find the same one broken.
    pub(crate) laying: Mutex<()>,
}

/// A chunk that can be read now.
#[derive(Debug)]
pub struct ReadableChunk {
    /// The object's file, finished or on its way.
    pub file: Arc<File>,
    /// Where the chunk begins in it, bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Whether a chunk is here.
#[derive(Debug)]
pub enum Availability {
    /// It can be read.
    Here(ReadableChunk),
    /// Its object is wanted and on its way; the store has received so many bytes since it opened.
    Coming(u64),
    /// Nothing is known of its object.
    Unknown,
}

impl Store {
    /// Opens the store, makes its folders, and removes what a killed process left half-done.
    ///
    /// # Errors
    /// Another process owns it, a newer agent wrote it, or the file system refuses.
    pub fn open(root: impl Into<PathBuf>, reserve: Option<u64>) -> Result<Self, Error> {
        let layout = Layout::new(root);
        for folder in [
            "objects",
            "partial",
            "manifests",
            "versions",
            "pins",
            "sets",
            "exports",
            "received",
            "quarantine",
        ] {
            durable::make_folder(&layout.at(folder))?;
        }
        let path = layout.at("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::io("open", &path))?;
        own(&lock).map_err(Error::os("own", &path))?;
        let mark = layout.at("layout.json");
        if mark.exists() {
            read_json::<LayoutMark>(&mark)?;
        } else {
            write_json(&mark, &LayoutMark { version: LAYOUT_VERSION })?;
        }
        let store = Self {
            layout,
            reserve,
            _lock: lock,
            partials: Mutex::default(),
            expected: Mutex::default(),
            changed: watch::Sender::new(0),
            incoming: AtomicU64::new(0),
            received: AtomicU64::new(0),
            laying: Mutex::default(),
        };
        store.clear_incoming()?;
        store.clear_half_made_versions()?;
        Ok(store)
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether an object is here and finished.
    pub fn has(&self, hash: blake3::Hash) -> bool {
        self.layout.object(hash).is_file()
    }

    /// Says that these objects are on their way, so that peers wait for them instead of going elsewhere.
    pub fn expect(&self, hashes: impl IntoIterator<Item = blake3::Hash>) {
        self.expected().extend(hashes);
        self.notify();
    }

    /// The partial object of a file, opened once and shared; and whether this call opened it.
    ///
    /// # Errors
    /// As [`Partial::open`].
    pub fn partial(&self, file: &manifest::File) -> Result<(Arc<Partial>, bool), Error> {
        let hash = crate::layout::hash_of(&file.blake3)?;
        let mut partials = self.partials();
        if let Some(open) = partials.get(&hash) {
            return Ok((Arc::clone(open), false));
        }
        let opened = Arc::new(Partial::open(&self.layout, file)?);
        partials.insert(hash, Arc::clone(&opened));
        Ok((opened, true))
    }

    /// Verified bytes of an object that is on its way in this process; 0 otherwise.
    pub fn verified_bytes(&self, hash: blake3::Hash) -> u64 {
        self.partials().get(&hash).map_or(0, |partial| partial.verified_bytes())
    }

    /// Finishes a partial object: from now on it is an object like any other.
    ///
    /// # Errors
    /// As [`Partial::finish`]; the partial then stays open.
    pub fn finish(&self, partial: &Partial) -> Result<(), Error> {
        partial.finish()?;
        self.partials().remove(&partial.hash());
        self.notify();
        Ok(())
    }

    /// The opposite of [`Store::expect`]: a version that names the objects is visible, or nobody wants
    /// them any more.
    pub fn settle(&self, hashes: impl IntoIterator<Item = blake3::Hash>) {
        let mut expected = self.expected();
        for hash in hashes {
            expected.remove(&hash);
        }
    }

    pub(crate) fn is_expected(&self, hash: blake3::Hash) -> bool {
        self.expected().contains(&hash)
    }

    /// Removes what is there of objects that were on their way and that nobody waits for any more. Nothing may
    /// fetch meanwhile but a scrub, whose objects a manifest names.
    ///
    /// # Errors
    /// The file system refuses, or a manifest cannot be read: then nobody knows what is named.
    pub(crate) fn forget_unwanted(&self, wanted: &HashSet<blake3::Hash>) -> Result<(), Error> {
        let named = self.referenced()?;
        let is_wanted = |hash: &blake3::Hash| wanted.contains(hash) || named.contains(hash);
        self.expected().retain(is_wanted);
        for name in names_in(&self.layout.at("partial"))? {
            let hash = crate::layout::hash_of(name.trim_end_matches(".chunks"));
            if let Some(hash) = hash.ok().filter(|hash| !is_wanted(hash)) {
                self.partials().remove(&hash);
                durable::remove(&self.layout.partial(hash))?;
                durable::remove(&self.layout.journal(hash))?;
            }
        }
        Ok(())
    }

    /// Counts bytes that came over the network.
    pub fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came over the network since the store opened.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Tells waiters that chunks arrived or that objects were finished.
    pub fn notify(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Resolves at the next [`Store::notify`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether a chunk can be read now.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn chunk(&self, hash: blake3::Hash, index: u64) -> Result<Availability, Error> {
        if let Some(partial) = self.partials().get(&hash) {
            let here = || ReadableChunk {
                file: partial.data(),
                offset: index.saturating_mul(CHUNK_BYTES),
                len: partial.chunk_len(index),
            };
            return Ok(match partial.chunk_hash(index) {
                None => Availability::Unknown,
                Some(_) if partial.has(index) => Availability::Here(here()),
                Some(_) => Availability::Coming(self.received()),
            });
        }
        let path = self.layout.object(hash);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                let expected = self.expected().contains(&hash);
                return Ok(if expected {
                    Availability::Coming(self.received())
                } else {
                    Availability::Unknown
                });
            }
            Err(cause) => return Err(Error::io("open", path)(cause)),
        };
        let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        let (offset, len) = (index.saturating_mul(CHUNK_BYTES), chunk_len(bytes, index));
        if len == 0 && index > 0 {
            return Ok(Availability::Unknown);
        }
        Ok(Availability::Here(ReadableChunk { file: Arc::new(file), offset, len }))
    }

    /// A finished object, from its first byte to its last.
    ///
    /// # Errors
    /// It is not here, or the file system refuses.
    pub fn whole(&self, hash: blake3::Hash) -> Result<ReadableChunk, Error> {
        if !self.has(hash) {
            return Err(Error::Missing(format!("object {hash}")));
        }
        let path = self.layout.object(hash);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let len = file.metadata().map_err(Error::io("look at", path))?.len();
        Ok(ReadableChunk { file: Arc::new(file), offset: 0, len })
    }

    /// Begins an object whose hash is known only at its end: an export, or an upload.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(&self) -> Result<Incoming, Error> {
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        let path = self.layout.at("partial").join(format!(".incoming-{number}"));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Incoming { layout: self.layout.clone(), path, file, hasher: StreamHasher::default() })
    }

    /// Refuses before the first byte when `needed` bytes would eat into the reserve.
    ///
    /// # Errors
    /// [`Error::Full`], or the file system refuses to say.
    pub fn admit(&self, needed: u64) -> Result<(), Error> {
        let root = self.layout.root();
        let stat = rustix::fs::statvfs(root).map_err(Error::os("measure", root))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let reserve = self.reserve.unwrap_or((size / 20).min(MOST_RESERVE));
        if needed > 0 && needed.saturating_add(reserve) > free {
            return Err(Error::Full { needed, free, reserve });
        }
        Ok(())
    }

    /// Hashes of all finished objects, sorted.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn objects(&self) -> Result<Vec<blake3::Hash>, Error> {
        let mut hashes = Vec::new();
        for folder in names_in(&self.layout.at("objects"))? {
            let names = names_in(&self.layout.at("objects").join(folder))?;
            hashes.extend(names.iter().filter_map(|name| crate::layout::hash_of(name).ok()));
        }
        Ok(hashes)
    }

    fn clear_incoming(&self) -> Result<(), Error> {
        let folder = self.layout.at("partial");
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                durable::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn partials(&self) -> MutexGuard<'_, HashMap<blake3::Hash, Arc<Partial>>> {
        self.partials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self) -> MutexGuard<'_, HashSet<blake3::Hash>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lock. A process that was killed a moment ago, or a child of it between fork and exec, may
/// still hold it: that passes within a second, another live owner does not.
fn own(lock: &File) -> rustix::io::Result<()> {
    let mut tries = 20;
    loop {
        match rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if tries > 0 => tries -= 1,
            outcome => return outcome,
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// An object that is being written and hashed. Dropped before [`Incoming::commit`], it was never there.
#[derive(Debug)]
pub struct Incoming {
    layout: Layout,
    path: PathBuf,
    file: File,
    hasher: StreamHasher,
}

impl Incoming {
    /// Appends bytes.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// Stores the object under its hash, which must be `expected` when that is given, and describes it
    /// as the file `path` of a manifest.
    ///
    /// # Errors
    /// Another hash than expected, or the file system refuses; nothing stays then.
    pub fn commit(mut self, path: &str, expected: Option<blake3::Hash>) -> Result<manifest::File, Error> {
        let file = std::mem::take(&mut self.hasher).finish(path);
        let hash = crate::layout::hash_of(&file.blake3)?;
        if let Some(expected) = expected.filter(|expected| *expected != hash) {
            return Err(Error::Damaged { object: expected.to_hex().to_string(), chunks: Vec::new() });
        }
        let object = self.layout.object(hash);
        if !object.is_file() {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o444))
                .map_err(Error::io("protect", &self.path))?;
            self.file.sync_all().map_err(Error::io("sync", &self.path))?;
            durable::make_folder(object.parent().unwrap_or(self.layout.root()))?;
            durable::rename(&self.path, &object)?;
        }
        Ok(file)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a commit the name is gone already; a leftover is removed when the store opens.
        let _best_effort = fs::remove_file(&self.path);
    }
}

/// Runs blocking work on the small blocking pool.
///
/// # Errors
/// The work's own.
pub async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|cause| Error::setup("finish work on the disk", cause))?
}
