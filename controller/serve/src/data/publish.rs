//! From sources to published versions, and the operations that people start and follow.

use super::{DataPlane, Error, Published, now_ms};
use crate::problem::Chain;
use futures::FutureExt as _;
use futures::future::join_all;
use rackwright_core::data::{self, Bound, Dataset, Decision};
use rackwright_store::{DocumentRow, Store as _};
use rackwright_wire::manifest::{HeldVersion, Manifest, SignedManifest, Wanted};
use rackwright_wire::source::{SOURCE_VERSION, ScrubReport, SourceRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Kinds of documents in the store.
const MANIFEST: &str = "manifest";
const WANTED: &str = "wanted";
/// The one wanted state of the rack.
const RACK: &str = "rack";
/// So many operations are remembered; those that are not done always are.
const REMEMBERED: usize = 100;
/// A node that is blocked or silent for so long does not hold an operation up any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something long that was asked for over HTTP.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its number since the controller started.
    pub id: u64,
    /// `sync` or `scrub`.
    pub kind: String,
    /// Whether it ended; then `error` says whether well.
    pub done: bool,
    /// Why it failed, as far as it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds since the epoch.
    pub started_at_ms: u64,
    /// Syncs: one row a dataset.
    #[serde(default)]
    pub datasets: Vec<SyncRow>,
    /// Scrubs: one report a server.
    #[serde(default)]
    pub scrubs: Vec<ScrubReport>,
}

/// How the sync of one dataset went.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRow {
    /// Dataset name.
    pub dataset: String,
    /// Whether an export was needed, and why.
    pub decision: Decision,
    /// Generation of the version that is published now.
    pub generation: u64,
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its rows, for tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes read from the source by this sync.
    pub read_bytes: u64,
    /// Time of facts and export, milliseconds.
    pub export_ms: u64,
    /// Columns that were left out for having no fixed width.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// What is possible at best, when the uplink's rate is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// Time from publication until every node had it, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Bound / achieved in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_percent: Option<u64>,
    /// Node by node.
    #[serde(default)]
    pub nodes: BTreeMap<String, Option<HeldVersion>>,
}

impl DataPlane {
    /// Recalls what was published and wanted.
    pub(super) async fn recall(&self) -> Result<(), Error> {
        let failed = |source| Error::Store { what: "published manifests", source };
        for row in self.inner.store.documents(MANIFEST).await.map_err(failed)? {
            let published = open_manifest(&row)?;
            self.state().published.insert(row.name, published);
        }
        self.renew_wanted().await
    }

    /// Starts a sync of these datasets, or of all when none is named; answers its number at once.
    pub(super) fn start_sync(&self, datasets: Vec<String>, uplink_bits_per_s: Option<u64>) -> u64 {
        let plane = self.clone();
        self.start("sync", move |id| {
            async move { plane.sync(id, &datasets, uplink_bits_per_s.or(plane.inner.uplink_bits_per_s)).await }.boxed()
        })
    }

    /// Starts a scrub of these servers, or of all that hold data when none is named.
    pub(super) fn start_scrub(&self, servers: Vec<String>) -> u64 {
        let plane = self.clone();
        self.start("scrub", move |id| async move { plane.scrub(id, servers).await }.boxed())
    }

    fn start(
        &self,
        kind: &str,
        work: impl FnOnce(u64) -> futures::future::BoxFuture<'static, Result<(), Error>>,
    ) -> u64 {
        let mut state = self.state();
        let id = state.operations.last_key_value().map_or(1, |(id, _)| id + 1);
        let operation = Operation {
            id,
            kind: kind.to_owned(),
            done: false,
            error: None,
            started_at_ms: now_ms(),
            datasets: Vec::new(),
            scrubs: Vec::new(),
        };
        state.operations.insert(id, operation);
        forget_oldest(&mut state.operations);
        drop(state);
        let (plane, work) = (self.clone(), work(id));
        tokio::spawn(async move {
            let error = work.await.err().map(|error| format!("failed to {}", Chain(&error)));
            plane.note(id, |operation| {
                operation.done = true;
                operation.error = operation.error.take().or(error);
            });
        });
        id
    }

    /// Whether an operation is not done yet.
    pub(super) fn is_open(&self, id: u64) -> bool {
        self.state().operations.get(&id).is_some_and(|operation| !operation.done)
    }

    /// Whether a dataset of this name is configured.
    pub(super) fn knows_dataset(&self, name: &str) -> bool {
        self.inner.datasets.iter().any(|dataset| dataset.name == name)
    }

    fn note(&self, id: u64, change: impl FnOnce(&mut Operation)) {
        if let Some(operation) = self.state().operations.get_mut(&id) {
            change(operation);
        }
    }

    async fn sync(&self, id: u64, names: &[String], uplink: Option<u64>) -> Result<(), Error> {
        if let Some(unknown) = names.iter().find(|name| !self.knows_dataset(name)) {
            return Err(Error::Unknown(format!("dataset {unknown:?}")));
        }
        let failures = self.publish_all(id, names, uplink).await?;
        let (begun, since_ms) = (Instant::now(), now_ms());
        self.inner.changed.notify_one();
        self.follow(id, begun, since_ms).await;
        if !failures.is_empty() {
            self.note(id, |operation| operation.error = Some(failures.join("; ")));
        }
        Ok(())
    }

    /// Publishes these datasets, or all, and answers what failed. Others publish after it, not after what
    /// it published has spread: that may take hours.
    async fn publish_all(
        &self,
        id: u64,
        names: &[String],
        uplink: Option<u64>,
    ) -> Result<Vec<String>, Error> {
        let _one_at_a_time = self.inner.publishing.lock().await;
        let mut failures = Vec::new();
        for dataset in &self.inner.datasets {
            if !names.is_empty() && !names.contains(&dataset.name) {
                continue;
            }
            // One source that fails must not keep the others from being published.
            match self.publish(dataset).await {
                Ok(mut row) => {
                    let nodes = self.holders(&dataset.name).len() as u64;
                    row.bound = uplink.and_then(|uplink| Bound::new(row.bytes, nodes, uplink));
                    self.note(id, |operation| operation.datasets.push(row));
                }
                Err(error) => failures.push(format!("{}: failed to {}", dataset.name, Chain(&error))),
            }
        }
        self.renew_wanted().await?;
        Ok(failures)
    }

    /// Facts, decision, export, manifest: signed and stored before anybody hears of it.
    async fn publish(&self, dataset: &Dataset) -> Result<SyncRow, Error> {
        let begun = Instant::now();
        let source = &self.inner.source.server;
        let request = SourceRequest {
            version: SOURCE_VERSION,
            dataset: dataset.name.clone(),
            spec: dataset.spec.clone(),
        };
        let facts = self.inner.agents.facts(source, &request).await?;
        let before = self.state().published.get(&dataset.name).map(|published| published.manifest.clone());
        let decision = data::decide(before.as_ref(), &facts);
        let (manifest, read_bytes) = match (&decision, before) {
            (Decision::Unchanged { .. }, Some(manifest)) => (manifest, 0),
            (_, before) => {
                let exported = self.inner.agents.export(source, &request).await?;
                let read_bytes = exported.read_bytes;
                let manifest = data::next_manifest(before.as_ref(), exported);
                self.store_manifest(&manifest).await?;
                (manifest, read_bytes)
            }
        };
        Ok(SyncRow {
            dataset: dataset.name.clone(),
            decision,
            generation: manifest.generation,
            digest: manifest.digest(),
            bytes: manifest.bytes(),
            rows: manifest.rows,
            read_bytes,
            export_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            left_out: facts.left_out,
            bound: None,
            took_ms: None,
            reached_percent: None,
            nodes: BTreeMap::new(),
        })
    }

    async fn store_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let wrong = |source| Error::Manifest { dataset: manifest.dataset.clone(), source };
        let signed = SignedManifest::sign(manifest, &self.inner.key).map_err(wrong)?;
        let at_ms = now_ms();
        let row = DocumentRow {
            kind: MANIFEST.to_owned(),
            name: manifest.dataset.clone(),
            generation: manifest.generation,
            at_ms,
            json: serde_json::to_string(&signed).unwrap_or_default(),
        };
        let stored = self.inner.store.put_document(row).await;
        stored.map_err(|source| Error::Store { what: "a manifest", source })?;
        let published = Published { signed, manifest: manifest.clone(), at_ms };
        self.state().published.insert(manifest.dataset.clone(), published);
        Ok(())
    }

    /// Works out what every server should hold; a change is stored under the next generation before
    /// anybody is told.
    async fn renew_wanted(&self) -> Result<(), Error> {
        let failed = |source| Error::Store { what: "what is wanted", source };
        let published = self.state().published.clone();
        let signed = published.into_iter().map(|(name, published)| (name, vec![published.signed])).collect();
        let before = self.inner.store.document(WANTED, RACK, None).await.map_err(failed)?;
        let last = before.as_ref().map_or(0, |row| row.generation);
        let (datasets, places) = (&self.inner.datasets, &self.inner.places);
        let wanted = data::wanted(last, datasets, &signed, places, &self.inner.source);
        let same = before.is_some_and(|row| {
            serde_json::from_str::<BTreeMap<String, Wanted>>(&row.json).is_ok_and(|before| before == wanted)
        });
        if same {
            self.state().wanted = wanted;
            return Ok(());
        }
        let wanted = data::wanted(last + 1, datasets, &signed, places, &self.inner.source);
        let json = serde_json::to_string(&wanted).unwrap_or_default();
        let row = DocumentRow {
            kind: WANTED.to_owned(),
            name: RACK.to_owned(),
            generation: last + 1,
            at_ms: now_ms(),
            json,
        };
        self.inner.store.put_document(row).await.map_err(failed)?;
        self.state().wanted = wanted;
        Ok(())
    }

    /// Notes how far every node is, until all have everything or can go no further for now.
    async fn follow(&self, id: u64, begun: Instant, since_ms: u64) {
        let mut stuck_since = Instant::now();
        let mut bytes_before = 0;
        loop {
            let (mut open, mut bytes) = (false, 0);
            let mut rows = self.state().operations.get(&id).map(|op| op.datasets.clone()).unwrap_or_default();
            for row in &mut rows {
                row.nodes = self.nodes_of(&row.dataset, &row.digest, since_ms);
                let complete = row.nodes.values().flatten().filter(|version| version.complete).count();
                bytes += row.nodes.values().flatten().map(|version| version.bytes).sum::<u64>();
                if complete < row.nodes.len() {
                    open = true;
                } else if row.took_ms.is_none() {
                    let took = begun.elapsed();
                    row.took_ms = u64::try_from(took.as_millis()).ok();
                    row.reached_percent = row.bound.map(|bound| bound.reached_percent(took));
                }
            }
            self.note(id, |operation| operation.datasets.clone_from(&rows));
            if bytes > bytes_before {
                (bytes_before, stuck_since) = (bytes, Instant::now());
            }
            if !open {
                return;
            }
            if stuck_since.elapsed() > PATIENCE {
                let short = self.short_of_nodes(&rows);
                return self.note(id, |operation| {
                    operation.datasets = rows;
                    operation.error = short;
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Which versions too few nodes have, in words. The others are published; who lacks them follows.
    fn short_of_nodes(&self, rows: &[SyncRow]) -> Option<String> {
        let short = rows.iter().filter_map(|row| {
            let least = self.inner.datasets.iter().find(|of| of.name == row.dataset)?.min_nodes;
            let have = row.nodes.values().flatten().filter(|version| version.complete).count();
            let least = usize::try_from(least).unwrap_or(usize::MAX);
            (have < least).then(|| format!("{}: {have} of at least {least} nodes have it", row.dataset))
        });
        let short: Vec<String> = short.collect();
        (!short.is_empty()).then(|| format!("{}; `rackwright data status` says why", short.join("; ")))
    }

    /// Servers that should hold a dataset, without the source.
    fn holders(&self, dataset: &str) -> Vec<String> {
        let known = self.inner.datasets.iter().find(|known| known.name == dataset);
        let holders = known.map(|known| known.holders(&self.inner.places, &self.inner.source));
        holders.unwrap_or_default().into_iter().map(|place| place.server.clone()).collect()
    }

    /// What holders have said of a version since then: one that does not answer now may have lost it.
    pub(super) fn nodes_of(
        &self,
        dataset: &str,
        digest: &str,
        since_ms: u64,
    ) -> BTreeMap<String, Option<HeldVersion>> {
        let state = self.state();
        let version = |server: &String| {
            let seen = state.seen.get(server)?;
            let held = seen.held.as_ref().filter(|_| seen.error.is_none() && seen.asked_at_ms >= since_ms)?;
            held.datasets.get(dataset)?.iter().find(|version| version.digest == digest).cloned()
        };
        self.holders(dataset).into_iter().map(|server| (server.clone(), version(&server))).collect()
    }

    async fn scrub(&self, id: u64, servers: Vec<String>) -> Result<(), Error> {
        let servers =
            if servers.is_empty() { self.state().wanted.keys().cloned().collect() } else { servers };
        // All at once: one that is dead or slow keeps none of the others.
        let scrubs = servers.iter().map(async |server| {
            let report = self.inner.agents.scrub(server).await;
            let report = report.map_err(|error| format!("{server}: failed to {}", Chain(&error)))?;
            self.note(id, |operation| operation.scrubs.push(report));
            Ok(())
        });
        let failures: Vec<String> = join_all(scrubs).await.into_iter().filter_map(Result::err).collect();
        if !failures.is_empty() {
            self.note(id, |operation| operation.error = Some(failures.join("; ")));
        }
        self.inner.changed.notify_one();
        Ok(())
    }
}

/// Forgets the oldest ones that are done, down to those that are remembered: of one that goes on people
/// still ask.
fn forget_oldest(operations: &mut BTreeMap<u64, Operation>) {
    let over = operations.len().saturating_sub(REMEMBERED);
    let done = operations.values().filter(|operation| operation.done).map(|operation| operation.id);
    for id in done.take(over).collect::<Vec<_>>() {
        operations.remove(&id);
    }
}

fn open_manifest(row: &DocumentRow) -> Result<Published, Error> {
    let wrong = |source| Error::Manifest { dataset: row.name.clone(), source };
    let json = |cause| wrong(rackwright_wire::manifest::ManifestError::Json(cause));
    let signed: SignedManifest = serde_json::from_str(&row.json).map_err(json)?;
    let manifest: Manifest = serde_json::from_str(&signed.manifest).map_err(json)?;
    Ok(Published { signed, manifest, at_ms: row.at_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_that_goes_on_is_remembered_however_many_follow() {
        let operation = |id: u64| Operation {
            id,
            kind: "sync".to_owned(),
            done: id > 1,
            error: None,
            started_at_ms: id,
            datasets: Vec::new(),
            scrubs: Vec::new(),
        };
        let mut operations: BTreeMap<u64, Operation> = (1..=102).map(|id| (id, operation(id))).collect();
        forget_oldest(&mut operations);
        assert_eq!(operations.len(), REMEMBERED);
        assert_eq!(operations.keys().take(2).copied().collect::<Vec<_>>(), [1, 4]);
    }
}
