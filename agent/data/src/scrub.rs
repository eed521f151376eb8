//! Rereading every byte, and repairing what does not hash any more or is not there.
//!
//! Reads go past the page cache where the file system allows it: the disk is in question, not the
//! memory. A damaged object is moved to quarantine before anything else, so no peer is served from it;
//! its good chunks are kept, the others fetched by hash, and the new object is linked into every
//! version that shares it.

use crate::error::Error;
use crate::fetch::Job;
use crate::layout::{hash_of, names_in, read_json, write_json};
use crate::node::{Node, ScrubCounters};
use crate::store::{Store, blocking};
use crate::{durable, partial};
use rackwright_wire::manifest::{CHUNK_BYTES, File, Manifest};
use rackwright_wire::source::{Damage, SOURCE_VERSION, ScrubReport};
use rustix::fs::{Advice, Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// `O_DIRECT` wants addresses, offsets and lengths aligned to the device's blocks; 4096 fits all.
const ALIGNMENT: usize = 4096;
const BUFFER_BYTES: usize = 256 * 1024;

/// Who shares an object: its description, and `dataset/digest` or `set/id` of each owner.
#[derive(Debug, Clone)]
struct Shared {
    file: File,
    owners: Vec<String>,
}

impl Node {
    /// Rereads all objects and repairs what is damaged. One at a time: a second call waits.
    ///
    /// # Errors
    /// The file system refuses; what was repaired until then stays repaired.
    pub async fn scrub(&self) -> Result<ScrubReport, Error> {
        let _one_at_a_time = self.scrubbing.lock().await;
        let store = Arc::clone(&self.store);
        let (hashes, known) = blocking(move || Ok((store.objects()?, shared(&store)?))).await?;
        let mut report = ScrubReport {
            version: SOURCE_VERSION,
            server: self.config.server.clone(),
            objects: 0,
            bytes: 0,
            damaged: Vec::new(),
        };
        for hash in hashes {
            let (store, named) = (Arc::clone(&self.store), known.get(&hash).cloned());
            let chunks = named.as_ref().map(|named| named.file.chunks.clone()).unwrap_or_default();
            let (bytes, bad) = blocking(move || reread(&store.layout().object(hash), hash, &chunks)).await?;
            report.objects += 1;
            report.bytes += bytes;
            if let Some(bad) = bad {
                tracing::warn!(object = %hash, chunks = ?bad, "an object does not hash any more");
                report.damaged.push(self.repair(hash, named, bad).await?);
            }
        }
        self.mend_versions(&known, &mut report).await?;
        Ok(report)
    }

    /// Finds what is not there at all: objects that a visible version names, links, folders, manifests.
    async fn mend_versions(
        &self,
        known: &HashMap<blake3::Hash, Shared>,
        report: &mut ScrubReport,
    ) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        let broken = blocking(move || {
            let manifests = store.layout().manifests()?;
            Ok(manifests.into_iter().filter(|manifest| !store.is_complete(manifest)).collect::<Vec<_>>())
        })
        .await?;
        for manifest in broken {
            for file in &manifest.files {
                let hash = hash_of(&file.blake3)?;
                let is_reported = report.damaged.iter().any(|damage| damage.blake3 == file.blake3);
                if !self.store.has(hash) && !is_reported {
                    tracing::warn!(object = %hash, "an object is not there any more");
                    let all = (0..file.chunks.len() as u64).collect();
                    report.damaged.push(self.repair(hash, known.get(&hash).cloned(), all).await?);
                }
            }
            // What was just fetched is linked already; what could not be is in the report.
            if self.store.layout().has_all(&manifest) && !self.store.is_complete(&manifest) {
                report.damaged.push(self.mend(manifest).await?);
            }
        }
        Ok(())
    }

    /// Makes a version's folder right again; in the report it stands under its manifest's hash.
    async fn mend(&self, manifest: Manifest) -> Result<Damage, Error> {
        let digest = manifest.digest();
        tracing::warn!(
            dataset = manifest.dataset,
            digest,
            "a version's folder is not what its manifest says"
        );
        self.count_scrub(1, 0)?;
        let damage = Damage {
            holders: self.store.layout().pins(&manifest.dataset, &digest)?,
            shared_by: vec![format!("{}/{digest}", manifest.dataset)],
            blake3: digest,
            chunks: Vec::new(),
            fetched: BTreeMap::new(),
            unrepaired: None,
        };
        let store = Arc::clone(&self.store);
        blocking(move || {
            let signed = read_json(&store.layout().manifest(&manifest.dataset, &manifest.digest())?)?;
            store.lay_out(&signed, &manifest)
        })
        .await?;
        self.count_scrub(0, 1)?;
        Ok(damage)
    }

    async fn repair(
        &self,
        hash: blake3::Hash,
        named: Option<Shared>,
        bad: Vec<u64>,
    ) -> Result<Damage, Error> {
        let owners = named.as_ref().map(|named| named.owners.clone()).unwrap_or_default();
        let mut holders = Vec::new();
        for (dataset, digest) in owners.iter().filter_map(|owner| owner.split_once('/')) {
            holders.extend(self.store.layout().pins(dataset, digest)?);
        }
        if self.store.has(hash) {
            let (store, shared) = (Arc::clone(&self.store), named.clone());
            let chunks = bad.clone();
            blocking(move || quarantine(&store, hash, shared.as_ref().map(|shared| &shared.file), &chunks))
                .await?;
        } else {
            self.store.expect([hash]);
        }
        self.count_scrub(1, 0)?;
        let mut damage = Damage {
            blake3: hash.to_hex().to_string(),
            chunks: bad,
            holders,
            shared_by: owners,
            fetched: BTreeMap::new(),
            unrepaired: None,
        };
        let Some(Shared { file, .. }) = named else {
            damage.unrepaired = Some("nothing names it: it is gone".to_owned());
            return Ok(damage);
        };
        let job = Job::new(self.sources(), BTreeMap::new());
        let fetched = self.fetcher().fetch(std::slice::from_ref(&file), &job).await;
        damage.fetched = job.tally();
        let store = Arc::clone(&self.store);
        match fetched {
            Ok(()) => {
                blocking(move || {
                    store
                        .layout()
                        .manifests()?
                        .iter()
                        .try_for_each(|manifest| store.relink(manifest).map(|_n| ()))
                })
                .await?;
                self.count_scrub(0, 1)?;
            }
            Err(error) => {
                damage.unrepaired = Some(error.chain());
                self.look_again();
            }
        }
        Ok(damage)
    }

    fn count_scrub(&self, found: u64, repaired: u64) -> Result<(), Error> {
        let before = self.counted_so_far();
        let now = ScrubCounters {
            found: before.found + found,
            repaired: before.repaired + repaired,
            ..ScrubCounters::default()
        };
        write_json(&self.store.layout().at("scrub.json"), &now)
    }
}

/// Every object that a manifest, a set or an export names.
fn shared(store: &Store) -> Result<HashMap<blake3::Hash, Shared>, Error> {
    let mut owned: Vec<(String, Vec<File>)> = Vec::new();
    for manifest in store.layout().manifests()? {
        owned.push((format!("{}/{}", manifest.dataset, manifest.digest()), manifest.files));
    }
    owned.extend(store.sets()?.into_iter().map(|set| (format!("set/{}", set.id()), set.files)));
    owned.extend(
        store.exports()?.into_iter().map(|export| (format!("export/{}", export.dataset), export.files)),
    );
    let mut all: HashMap<blake3::Hash, Shared> = HashMap::new();
    for (owner, files) in owned {
        for file in files {
            let entry = all.entry(hash_of(&file.blake3)?);
            let shared = entry.or_insert_with(|| Shared { file, owners: Vec::new() });
            if !shared.owners.contains(&owner) {
                shared.owners.push(owner.clone());
            }
        }
    }
    Ok(all)
}

/// Moves the object away and begins it anew with its good chunks.
fn quarantine(store: &Store, hash: blake3::Hash, file: Option<&File>, bad: &[u64]) -> Result<(), Error> {
    let (object, hex) = (store.layout().object(hash), hash.to_hex());
    let folder = store.layout().at("quarantine");
    let before = names_in(&folder)?.iter().filter(|name| name.starts_with(hex.as_str())).count();
    let away = folder.join(format!("{hex}.{before}"));
    durable::rename(&object, &away)?;
    durable::sync_folder(object.parent().unwrap_or(store.layout().root()))?;
    let Some(file) = file else { return Ok(()) };
    store.expect([hash]);
    let (fresh, _opened) = store.partial(file)?;
    let old = std::fs::File::open(&away).map_err(Error::io("open", &away))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    for index in fresh.missing().into_iter().filter(|index| !bad.contains(index)) {
        if copy_chunk(&old, &fresh, index, &mut buffer).unwrap_or(false) {
            fresh.mark(index, partial::LOCAL)?;
        }
    }
    Ok(())
}

/// Copies one chunk if it still hashes.
fn copy_chunk(
    old: &std::fs::File,
    fresh: &partial::Partial,
    index: u64,
    buffer: &mut [u8],
) -> Result<bool, Error> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, len) = (0, fresh.chunk_len(index));
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        old.read_exact_at(part, index * CHUNK_BYTES + at).map_err(Error::io("read", "the damaged object"))?;
        hasher.update(part);
        fresh.write(index, at, part)?;
        at += want as u64;
    }
    Ok(Some(hasher.finalize()) == fresh.chunk_hash(index))
}

/// Reads an object from the disk: its length, and the bad chunks when it does not hash.
fn reread(path: &Path, hash: blake3::Hash, chunks: &[String]) -> Result<(u64, Option<Vec<u64>>), Error> {
    let direct = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    let file = match direct {
        Ok(descriptor) => std::fs::File::from(descriptor),
        Err(_not_supported) => {
            let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
            // Clean pages are dropped, so most of what follows comes from the disk after all.
            let _hint = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            file
        }
    };
    let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
    let mut storage = vec![0; BUFFER_BYTES + ALIGNMENT];
    let skip = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let buffer = storage.get_mut(skip..skip + BUFFER_BYTES).unwrap_or_default();
    let (mut whole, mut chunk) = (blake3::Hasher::new(), blake3::Hasher::new());
    let (mut at, mut bad) = (0, Vec::new());
    while at < bytes {
        let index = at / CHUNK_BYTES;
        // Never past the chunk, and a multiple of the alignment except behind the end of the file.
        let room = usize::try_from((index + 1) * CHUNK_BYTES - at).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(buffer.get_mut(..room).unwrap_or_default(), at) {
            Ok(read) if read > 0 => {
                let part = buffer.get(..read).unwrap_or_default();
                whole.update(part);
                chunk.update(part);
                at += read as u64;
            }
            // A disk that cannot read it has lost the rest of the chunk.
            Ok(_) | Err(_) => {
                tracing::warn!(path = %path.display(), at, "a read failed");
                at = ((index + 1) * CHUNK_BYTES).min(bytes);
                chunk.update(b"unreadable");
                whole.update(b"unreadable");
            }
        }
        if at == bytes || at % CHUNK_BYTES == 0 {
            let expected = chunks.get(usize::try_from(index).unwrap_or(usize::MAX));
            if expected.is_some_and(|expected| *expected != chunk.finalize().to_hex().as_str()) {
                bad.push(index);
            }
            chunk.reset();
        }
    }
    Ok((bytes, (whole.finalize() != hash).then_some(bad)))
}
