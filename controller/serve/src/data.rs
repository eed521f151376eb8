//! The data publisher: exports each changed source once, signs what came of it, tells every agent what
//! to hold, and has nodes labelled with what they hold.
//!
//! What must never happen here: a manifest that is signed before it is stored, a generation that goes
//! back, a label for a version that is not complete, a delete that follows from a failure. Deciding is
//! `rackwright_core::data`; this module acts: [`publish`] (sources to manifests), [`agents`] (the
//! agents' data ports), [`labels`] (the cluster's nodes), [`routes`] (HTTP).

mod agents;
mod labels;
mod publish;
mod routes;
mod settings;
mod watch;

pub use publish::{Operation, SyncRow};
pub use routes::{DataView, DatasetView, ScrubWanted, SyncWanted, VersionView, router};
pub use settings::{Config, DatasetConfig, ServerConfig, SigningFiles, TlsFiles};

use agents::Agents;
use labels::NodeBook;

use rackwright_core::data::{Dataset, Place};
use rackwright_store::{SqliteStore, StoreError};
use rackwright_wire::manifest::{Held, Manifest, ManifestError, SignedManifest, Wanted};
use rackwright_wire::sealed::{SealedSet, SetKind, SetList};
use ring::signature::Ed25519KeyPair;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A failure of the data plane's controller side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the configuration cannot be used.
    #[error("use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration names something that it does not define.
    #[error("use [data] of the configuration: {0}")]
    Config(String),
    /// An agent cannot be reached, or refuses.
    #[error("{what} {server}")]
    Agent {
        /// What was tried, such as `ask`.
        what: &'static str,
        /// The server.
        server: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A manifest breaks a rule.
    #[error("publish {dataset}")]
    Manifest {
        /// The dataset.
        dataset: String,
        /// Why.
        source: ManifestError,
    },
    /// The store refuses.
    #[error("store {what}")]
    Store {
        /// What was stored or read.
        what: &'static str,
        /// Why.
        source: StoreError,
    },
    /// The cluster refuses.
    #[error("label the nodes")]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no such dataset, server or operation.
    #[error("find {0}")]
    Unknown(String),
}

/// The data publisher. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DataPlane {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    datasets: Vec<Dataset>,
    places: Vec<Place>,
    source: Place,
    sets: Place,
    uplink_bits_per_s: Option<u64>,
    sync_every_s: u64,
    agents: Agents,
    nodes: Arc<dyn NodeBook>,
    store: SqliteStore,
    key: Ed25519KeyPair,
    public_pem: String,
    /// One publication at a time: generations count up without gaps or forks.
    publishing: tokio::sync::Mutex<()>,
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    published: BTreeMap<String, Published>,
    wanted: BTreeMap<String, Wanted>,
    /// Servers that were given the manifest key by this process.
    trusting: BTreeSet<String>,
    seen: BTreeMap<String, Seen>,
    operations: BTreeMap<u64, Operation>,
}

/// A published version.
#[derive(Debug, Clone)]
struct Published {
    signed: SignedManifest,
    manifest: Manifest,
    at_ms: u64,
}

/// What an agent last said.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// What it holds; as of the last answer.
    pub held: Option<Held>,
    /// Why it did not answer or refused, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was last asked, milliseconds since the epoch.
    pub asked_at_ms: u64,
}

impl DataPlane {
    /// Reads keys and what was published before. Agents and cluster need not be reachable yet.
    ///
    /// # Errors
    /// A file, the configuration or the store is of no use.
    pub async fn open(config: &Config, cluster: kube::Client, store: SqliteStore) -> Result<Self, Error> {
        Self::open_with(config, Arc::new(labels::KubeNodes::new(cluster)), store).await
    }

    async fn open_with(config: &Config, nodes: Arc<dyn NodeBook>, store: SqliteStore) -> Result<Self, Error> {
        let (key, public_pem) = settings::read_keys(&config.signing)?;
        let plane = Self {
            inner: Arc::new(Inner {
                datasets: config.datasets(),
                places: config.places(),
                source: config.place(&config.source)?,
                sets: config.place(&config.sets)?,
                uplink_bits_per_s: config.uplink_bits_per_s()?,
                sync_every_s: config.sync_every_s,
                agents: Agents::new(config)?,
                nodes,
                store,
                key,
                public_pem,
                publishing: tokio::sync::Mutex::default(),
                changed: Notify::new(),
                state: Mutex::default(),
            }),
        };
        plane.recall().await?;
        Ok(plane)
    }

    /// Keeps agents and labels in step with what is published, until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => (),
            () = self.watch() => (),
        }
    }

    /// Digest of the newest published version of a dataset.
    pub fn newest_version(&self, dataset: &str) -> Option<String> {
        self.newest(dataset).map(|(digest, _generation)| digest)
    }

    /// Digest and generation of the newest published version of a dataset.
    pub fn newest(&self, dataset: &str) -> Option<(String, u64)> {
        let state = self.state();
        let published = state.published.get(dataset)?;
        Some((published.manifest.digest(), published.manifest.generation))
    }

    /// The newest checkpoint of a task that is stored off its node: of the highest step, and among
    /// equal steps of the latest attempt.
    ///
    /// # Errors
    /// The server that keeps sealed sets does not answer.
    pub async fn newest_checkpoint(
        &self,
        team: &str,
        project: &str,
        job: &str,
        task: u32,
    ) -> Result<Option<SealedSet>, Error> {
        let prefix = format!("checkpoint-{job}-{task}-");
        Ok(self.newest_of(team, project, job, &prefix).await?.remove(&task))
    }

    /// The newest checkpoint of every task of a job, by task; newest as in [`Self::newest_checkpoint`].
    ///
    /// # Errors
    /// The server that keeps sealed sets does not answer.
    pub async fn newest_checkpoints(
        &self,
        team: &str,
        project: &str,
        job: &str,
    ) -> Result<BTreeMap<u32, SealedSet>, Error> {
        self.newest_of(team, project, job, &format!("checkpoint-{job}-")).await
    }

    async fn newest_of(
        &self,
        team: &str,
        project: &str,
        job: &str,
        prefix: &str,
    ) -> Result<BTreeMap<u32, SealedSet>, Error> {
        let filter = [("prefix", prefix), ("team", team), ("project", project), ("job", job)];
        let sets = self.inner.agents.sets(&self.inner.sets.server, &filter).await?.sets;
        Ok(newest_by_task(sets))
    }

    /// What a job left: sealed result sets and checkpoints.
    ///
    /// # Errors
    /// The server that keeps sealed sets does not answer.
    pub async fn sets(&self, team: &str, project: &str, job: &str) -> Result<SetList, Error> {
        let filter = [("team", team), ("project", project), ("job", job)];
        self.inner.agents.sets(&self.inner.sets.server, &filter).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the sets that are whole checkpoints, each task's of the highest step, and then of the latest attempt.
fn newest_by_task(mut sets: Vec<SealedSet>) -> BTreeMap<u32, SealedSet> {
    sets.retain(|set| set.kind == SetKind::Checkpoint && set.refused.is_none());
    sets.sort_by_key(|set| (set.step, set.attempt));
    sets.into_iter().map(|set| (set.task, set)).collect()
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
