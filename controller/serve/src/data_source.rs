//! What the loop and the HTTP interface ask of the data plane.

use crate::data::{self, DataPlane};
use crate::problem::Chain;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rackwright_core::job::{CheckpointRef, DatasetPin, JobRecord};
use rackwright_wire::id::{DatasetName, DatasetVersion, TaskIndex};
use rackwright_wire::sealed::{SealedSet, SetList};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Answers about dataset versions and checkpoints.
pub(crate) trait DataSource: Debug + Send + Sync + 'static {
    /// The newest published version.
    fn newest(&self, dataset: &DatasetName) -> Option<DatasetPin>;
    /// The newest checkpoint of a task that is stored off its node; `None` when there is none, or when
    /// that cannot be told now.
    fn checkpoint<'a>(&'a self, job: &'a JobRecord, task: TaskIndex) -> BoxFuture<'a, Option<Checkpoint>>;
    /// The newest checkpoint of each task of a job, as far as that can be told now.
    fn checkpoints<'a>(&'a self, job: &'a JobRecord) -> BoxFuture<'a, BTreeMap<TaskIndex, Checkpoint>>;
    /// What a job left, results and checkpoints; an error while the server that keeps them does not answer.
    fn sets<'a>(&'a self, job: &'a JobRecord) -> BoxFuture<'a, Result<SetList, data::Error>>;
}

/// A sealed checkpoint and the attempt that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The attempt that wrote it.
    pub(crate) attempt: u32,
    /// What a pod resumes from.
    pub(crate) set: CheckpointRef,
}

impl Checkpoint {
    fn of(sealed: &SealedSet) -> Self {
        let task = TaskIndex(sealed.task);
        Self { attempt: sealed.attempt, set: CheckpointRef { task, step: sealed.step, set: sealed.id() } }
    }
}

/// The data plane as a source.
#[derive(Clone)]
pub(crate) struct Plane(pub(crate) DataPlane);

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plane")
    }
}

impl DataSource for Plane {
    fn newest(&self, dataset: &DatasetName) -> Option<DatasetPin> {
        let (version, generation) = self.0.newest(dataset.as_str())?;
        Some(DatasetPin { name: dataset.clone(), version: DatasetVersion::new(&version).ok()?, generation })
    }

    fn checkpoint<'a>(&'a self, job: &'a JobRecord, task: TaskIndex) -> BoxFuture<'a, Option<Checkpoint>> {
        async move {
            let (team, project, id) = (job.team.as_str(), job.spec.project.as_str(), job.id.to_string());
            match self.0.newest_checkpoint(team, project, &id, task.0).await {
                Ok(found) => found.as_ref().map(Checkpoint::of),
                Err(cause) => {
                    tracing::warn!(job = %job.id, error = %Chain(&cause), "cannot tell the newest checkpoint");
                    None
                }
            }
        }
        .boxed()
    }

    fn checkpoints<'a>(&'a self, job: &'a JobRecord) -> BoxFuture<'a, BTreeMap<TaskIndex, Checkpoint>> {
        async move {
            let (team, project, id) = (job.team.as_str(), job.spec.project.as_str(), job.id.to_string());
            match self.0.newest_checkpoints(team, project, &id).await {
                Ok(found) => {
                    found.iter().map(|(task, sealed)| (TaskIndex(*task), Checkpoint::of(sealed))).collect()
                }
                Err(cause) => {
                    tracing::warn!(job = %job.id, error = %Chain(&cause), "cannot tell the newest checkpoints");
                    BTreeMap::new()
                }
            }
        }
        .boxed()
    }

    fn sets<'a>(&'a self, job: &'a JobRecord) -> BoxFuture<'a, Result<SetList, data::Error>> {
        async move {
            let (team, project, id) = (job.team.as_str(), job.spec.project.as_str(), job.id.to_string());
            self.0.sets(team, project, &id).await
        }
        .boxed()
    }
}
