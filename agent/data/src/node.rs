//! One server on the data plane: what it holds, what it is wanted to hold, and the loop that closes
//! the gap.

use crate::config::Config;
use crate::error::Error;
use crate::export::Exporter;
use crate::fetch::{Fetcher, Job, Patience};
use crate::layout::{hash_of, read_json, write_json};
use crate::peer::Peers;
use crate::store::{Store, blocking};
use crate::wanted::{self, Accepted};
use rackwright_wire::manifest::{
    File, Held, HeldVersion, MANIFEST_VERSION, Manifest, Peer, SignedManifest, Wanted,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A version that could not be completed is tried again after so long, or when the wanted set changes.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Complete versions are looked at again after so long.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// The shared state of the data unit.
#[derive(Debug)]
pub struct Node {
    /// The configuration.
    pub config: Config,
    /// The content store.
    pub store: Arc<Store>,
    /// Client for other agents.
    pub peers: Peers,
    /// Reads the sources on the data server.
    pub exporter: Exporter,
    pub(crate) patience: Patience,
    /// One scrub at a time.
    pub(crate) scrubbing: tokio::sync::Mutex<()>,
    wanted: watch::Sender<Option<Arc<Accepted>>>,
    damaged: tokio::sync::Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Fetches under way or done in this process, by version digest.
    jobs: HashMap<String, Arc<Job>>,
    /// Why a version is not complete.
    blocked: HashMap<String, String>,
}

/// The version of [`ScrubCounters`] and [`Received`] that this build writes.
const COUNTERS_VERSION: u32 = 1;

/// Scrub counters since this store was made (`scrub.json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScrubCounters {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, COUNTERS_VERSION>")]
    pub(crate) version: u32,
    pub(crate) found: u64,
    pub(crate) repaired: u64,
}

impl Default for ScrubCounters {
    fn default() -> Self {
        Self { version: COUNTERS_VERSION, found: 0, repaired: 0 }
    }
}

/// What a version cost so far (`received/<digest>.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Received {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, COUNTERS_VERSION>")]
    version: u32,
    /// Bytes that came over the network, by peer.
    fetched: BTreeMap<String, u64>,
}

impl Node {
    /// Opens the store and recalls what was wanted before.
    ///
    /// # Errors
    /// The store is owned by another process, or a file cannot be used.
    pub fn open(config: Config, patience: Patience) -> Result<Self, Error> {
        let reserve = config.reserve.map(rackwright_wire::units::Bytes::get);
        let store = Arc::new(Store::open(&config.data_dir, reserve)?);
        let peers = Peers::new(&config.tls)?;
        let exporter = Exporter::new(&config, Arc::clone(&store));
        let recalled = wanted::recall(store.layout()).unwrap_or_else(|error| {
            // The controller pushes it again; refusing to start would take the good versions away too.
            tracing::warn!("{}", error.chain());
            None
        });
        let wanted = watch::Sender::new(recalled.map(Arc::new));
        let scrubbing = tokio::sync::Mutex::default();
        Ok(Self {
            config,
            store,
            peers,
            exporter,
            patience,
            scrubbing,
            wanted,
            damaged: tokio::sync::Notify::new(),
            state: Mutex::default(),
        })
    }

    /// Takes a new wanted set, or refuses it.
    ///
    /// # Errors
    /// It is older than the last one, not signed, or hostile: nothing has changed.
    pub fn accept(&self, wanted: &Wanted) -> Result<Held, Error> {
        let layout = self.store.layout();
        let mut outcome = Ok(());
        let is_new = self.wanted.send_if_modified(|current| {
            let key = wanted::pinned_key(layout);
            let checked = key.and_then(|key| {
                let held = if current.is_none() { layout.manifests()? } else { Vec::new() };
                wanted::check(wanted, key, current.as_deref(), &held)
            });
            match checked.and_then(|(accepted, new)| {
                if new {
                    wanted::remember(layout, &accepted)?;
                }
                Ok(new.then_some(accepted))
            }) {
                Ok(Some(accepted)) => *current = Some(Arc::new(accepted)),
                Ok(None) => return false,
                Err(error) => {
                    outcome = Err(error);
                    return false;
                }
            }
            true
        });
        outcome?;
        self.expect_missing();
        let held = self.held()?;
        let wanted = self.wanted.borrow().as_ref().map(|accepted| accepted.digests()).unwrap_or_default();
        let mut versions = held.datasets.values().flatten();
        // Of a new set the loop hears anyway; the same one again may find what somebody has removed.
        if !is_new && versions.any(|version| !version.complete && wanted.contains(&version.digest)) {
            self.look_again();
        }
        Ok(held)
    }

    /// What this node holds and what is under way.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn held(&self) -> Result<Held, Error> {
        let mut versions: BTreeMap<String, Manifest> = BTreeMap::new();
        versions.extend(
            self.store.layout().manifests()?.into_iter().map(|manifest| (manifest.digest(), manifest)),
        );
        let accepted = self.wanted.borrow().clone();
        if let Some(accepted) = &accepted {
            let wanted = accepted.manifests.iter().map(|(_, manifest)| (manifest.digest(), manifest.clone()));
            versions.extend(wanted);
        }
        let mut datasets: BTreeMap<String, Vec<HeldVersion>> = BTreeMap::new();
        for (digest, manifest) in versions {
            let version = self.held_version(digest, &manifest)?;
            datasets.entry(manifest.dataset).or_default().push(version);
        }
        for versions in datasets.values_mut() {
            versions.sort_by_key(|version| version.generation);
        }
        let scrub = self.counted_so_far();
        Ok(Held {
            version: MANIFEST_VERSION,
            server: self.config.server.clone(),
            generation: accepted.map_or(0, |accepted| accepted.wanted.generation),
            datasets,
            scrub_found: scrub.found,
            scrub_repaired: scrub.repaired,
        })
    }

    /// Peers of the wanted set, without this server.
    pub(crate) fn sources(&self) -> Vec<Peer> {
        let accepted = self.wanted.borrow().clone();
        let peers = accepted.map(|accepted| accepted.wanted.peers.clone()).unwrap_or_default();
        peers.into_iter().filter(|peer| peer.server != self.config.server).collect()
    }

    /// A fetcher into this node's store.
    pub fn fetcher(&self) -> Fetcher {
        Fetcher::new(Arc::clone(&self.store), self.peers.clone(), self.config.in_flight, self.patience)
    }

    /// Closes the gap between wanted and held, whenever one of them changes; never returns.
    pub async fn run(&self) {
        let mut changes = self.wanted.subscribe();
        let mut last: Option<Arc<Accepted>> = None;
        loop {
            let accepted = changes.borrow_and_update().clone();
            let mut settled = true;
            if let Some(accepted) = accepted {
                if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &accepted)) {
                    self.forget_unwanted(&accepted).await;
                    last = Some(Arc::clone(&accepted));
                }
                self.expect_missing();
                settled = self.pass(&accepted, &mut changes).await;
                if !self.wanted.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, &accepted)) {
                    continue;
                }
            }
            if settled {
                tokio::select! {
                    alive = changes.changed() => if alive.is_err() { return },
                    () = self.damaged.notified() => (),
                    // Somebody may have removed what nobody told us of.
                    () = tokio::time::sleep(LOOK_EVERY) => (),
                }
            } else {
                let _elapsed_or_changed = tokio::time::timeout(RETRY_AFTER, changes.changed()).await;
            }
        }
    }

    /// What was on its way for versions that are not wanted any more takes room for nothing.
    async fn forget_unwanted(&self, accepted: &Accepted) {
        let files = accepted.manifests.iter().flat_map(|(_, manifest)| &manifest.files);
        let wanted = files.filter_map(|file| hash_of(&file.blake3).ok()).collect();
        let store = Arc::clone(&self.store);
        if let Err(error) = blocking(move || store.forget_unwanted(&wanted)).await {
            tracing::warn!("{}", error.chain());
        }
    }

    /// Something that was complete is not any more.
    pub(crate) fn look_again(&self) {
        self.damaged.notify_one();
    }

    /// One look at every wanted version, smallest first; true when all are complete.
    async fn pass(&self, accepted: &Accepted, changes: &mut watch::Receiver<Option<Arc<Accepted>>>) -> bool {
        let mut order: Vec<_> = accepted.manifests.iter().collect();
        order.sort_by_key(|(_, manifest)| manifest.bytes());
        let mut settled = true;
        for (signed, manifest) in order {
            let digest = manifest.digest();
            let job = self.job(&digest);
            job.set_sources(self.sources());
            let complete = self.complete(accepted, signed, manifest, &job);
            tokio::pin!(complete);
            let outcome = loop {
                tokio::select! {
                    outcome = &mut complete => break outcome,
                    // Bytes under way stay under way; only the list of peers is renewed.
                    Ok(()) = changes.changed() => job.set_sources(self.sources()),
                }
            };
            match outcome {
                Ok(()) => drop(self.state().blocked.remove(&digest)),
                Err(error) => {
                    tracing::warn!(dataset = manifest.dataset, digest, "{}", error.chain());
                    self.state().blocked.insert(digest, error.chain());
                    settled = false;
                }
            }
        }
        settled
    }

    /// Makes one version complete: room, bytes, links.
    async fn complete(
        &self,
        accepted: &Accepted,
        signed: &SignedManifest,
        manifest: &Manifest,
        job: &Job,
    ) -> Result<(), Error> {
        let (store, digest) = (Arc::clone(&self.store), manifest.digest());
        let (checked, wanted) = (manifest.clone(), accepted.digests());
        let needed = blocking(move || {
            let needed = needed_bytes(&store, &checked)?;
            let removed = store.make_room(needed, &wanted)?;
            for version in removed {
                tracing::info!(version, "evicted");
            }
            Ok(needed)
        })
        .await?;
        let fetched = needed > 0 || !self.store.layout().has_all(manifest);
        if fetched {
            tracing::info!(dataset = manifest.dataset, digest, needed, "fetching");
            self.fetcher().fetch(&manifest.files, job).await?;
        }
        let (store, signed, manifest) = (Arc::clone(&self.store), signed.clone(), manifest.clone());
        let fetched_from = job.tally();
        blocking(move || {
            store.publish(&signed, &manifest)?;
            if fetched {
                // An object that a scrub took away may be shared with versions that are not wanted now.
                store.layout().manifests()?.iter().try_for_each(|other| store.relink(other).map(|_n| ()))?;
            }
            store.settle(manifest.files.iter().filter_map(|file| hash_of(&file.blake3).ok()));
            if fetched_from.is_empty() {
                return Ok(());
            }
            let received = Received { version: COUNTERS_VERSION, fetched: fetched_from };
            write_json(&store.layout().at("received").join(format!("{digest}.json")), &received)
        })
        .await
    }

    /// Tells peers that ask for these objects that they are coming.
    fn expect_missing(&self) {
        let Some(accepted) = self.wanted.borrow().clone() else { return };
        let files = accepted.manifests.iter().flat_map(|(_, manifest)| &manifest.files);
        let hashes = files.filter_map(|file| hash_of(&file.blake3).ok());
        self.store.expect(hashes.filter(|hash| !self.store.has(*hash)));
    }

    fn held_version(&self, digest: String, manifest: &Manifest) -> Result<HeldVersion, Error> {
        let complete = self.store.is_complete(manifest);
        let bytes = if complete { manifest.bytes() } else { self.bytes_here(manifest) };
        let state = self.state();
        let fetched = match state.jobs.get(&digest) {
            Some(job) => job.tally(),
            None => self.received_before(&digest),
        };
        let blocked = state.blocked.get(&digest).filter(|_| !complete).cloned();
        drop(state);
        Ok(HeldVersion {
            generation: manifest.generation,
            complete,
            bytes,
            total_bytes: manifest.bytes(),
            fetched,
            pins: self.store.layout().pins(&manifest.dataset, &digest)?,
            blocked,
            digest,
        })
    }

    fn bytes_here(&self, manifest: &Manifest) -> u64 {
        let here = manifest.files.iter().map(|file| {
            let hash = hash_of(&file.blake3);
            hash.map_or(
                0,
                |hash| if self.store.has(hash) { file.bytes } else { self.store.verified_bytes(hash) },
            )
        });
        here.sum()
    }

    fn job(&self, digest: &str) -> Arc<Job> {
        if let Some(job) = self.state().jobs.get(digest) {
            job.forgive();
            return Arc::clone(job);
        }
        let job = Arc::new(Job::new(Vec::new(), self.received_before(digest)));
        self.state().jobs.insert(digest.to_owned(), Arc::clone(&job));
        job
    }

    /// Statistics of an earlier process; none when they are not there or of another version.
    fn received_before(&self, digest: &str) -> BTreeMap<String, u64> {
        let path = self.store.layout().at("received").join(format!("{digest}.json"));
        read_json(&path).map(|received: Received| received.fetched).unwrap_or_default()
    }

    /// What scrubs found and repaired. Nobody's data depends on it; what cannot be read is said and counts from
    /// nothing.
    pub(crate) fn counted_so_far(&self) -> ScrubCounters {
        self.scrub_counters().unwrap_or_else(|error| {
            tracing::warn!("{}", error.chain());
            ScrubCounters::default()
        })
    }

    fn scrub_counters(&self) -> Result<ScrubCounters, Error> {
        let path = self.store.layout().at("scrub.json");
        if path.exists() { read_json(&path) } else { Ok(ScrubCounters::default()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that have to be written before a version is whole: partial objects own their space already.
fn needed_bytes(store: &Store, manifest: &Manifest) -> Result<u64, Error> {
    let mut seen = std::collections::HashSet::new();
    let mut needed = 0u64;
    for File { blake3, bytes, .. } in &manifest.files {
        let hash = hash_of(blake3)?;
        if seen.insert(hash) && !store.has(hash) && !store.layout().partial(hash).exists() {
            needed = needed.saturating_add(*bytes);
        }
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_read_like_this_and_newer_ones_are_refused() {
        let counters = ScrubCounters { found: 3, repaired: 2, ..ScrubCounters::default() };
        let fetched = BTreeMap::from([("data1".to_owned(), 7), ("ml1".to_owned(), 9)]);
        let received = Received { version: COUNTERS_VERSION, fetched };
        let [counters, received] =
            [serde_json::to_string_pretty(&counters), serde_json::to_string_pretty(&received)]
                .map(Result::unwrap);
        insta::assert_snapshot!(format!("scrub.json\n{counters}\n\nreceived/<digest>.json\n{received}"));
        let newer = |text: &str| text.replace("\"version\": 1", "\"version\": 2");
        for error in [
            serde_json::from_str::<ScrubCounters>(&newer(&counters)).unwrap_err(),
            serde_json::from_str::<Received>(&newer(&received)).unwrap_err(),
        ] {
            assert!(error.to_string().starts_with("version 2, this build reads 1"), "{error}");
        }
    }
}
