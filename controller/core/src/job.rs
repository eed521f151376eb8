//! What a job is: what was asked for ([`spec`], checked by [`check`]), what happens to it ([`event`])
//! and what is to be done about it ([`action`]).
//!
//! Owner and team come from the submitter's token, never from the body; everything else that a job
//! asks for, defaults included, stands in its [`JobSpec`] and is shown to its owner.
//!
//! Life of one attempt of one task, which is exactly one pod:
//! `pending -> reserved -> starting -> running -> finished(outcome) -> archived -> pruned`.

pub mod action;
pub mod check;
pub mod event;
mod fields;
mod once;
pub mod spec;

pub use action::{Action, StopReason};
pub use check::{DEADLINE_HINT, Finding, Limits};
pub use event::{Capacity, EVENT_VERSION, Event, ForeignPod, HeldDataset, NodeFacts, PodPhase, Taint, What};
pub use spec::{Array, Checkpointing, Class, DatasetRef, Gang, JobSpec, Resources, VersionWanted};

use rackwright_wire::id::{DatasetName, DatasetVersion, JobId, Owner, TaskIndex, Team};
use serde::{Deserialize, Serialize};

/// The version of [`JobRecord`] that this build writes.
pub const JOB_VERSION: u32 = 1;

/// An accepted job: what was asked for, by whom, and what it was resolved to. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// [`JOB_VERSION`] of the writer.
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, JOB_VERSION>")]
    pub version: u32,
    /// Given by the store; rising, so it is also the order of submission.
    pub id: JobId,
    /// Who submitted, from the token.
    pub owner: Owner,
    /// For which team, from the token.
    pub team: Team,
    /// Milliseconds since the epoch.
    pub submitted_at_ms: u64,
    /// What was asked for, defaults filled in.
    pub spec: JobSpec,
    /// The concrete versions that `spec.datasets` was resolved to, in its order.
    pub datasets: Vec<DatasetPin>,
    /// Dependencies that the store already knew to have succeeded when this job was accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies_met: Vec<JobId>,
}

/// A dataset at the version that a job will see, whatever is published later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetPin {
    /// The dataset.
    pub name: DatasetName,
    /// The version.
    pub version: DatasetVersion,
    /// The generation of the manifest that named it; for people.
    pub generation: u64,
}

/// How an attempt, a task or a whole job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit code 0; for a job: every task succeeded.
    Succeeded,
    /// The container ended with another code, or a task did after its last retry.
    Failed,
    /// Its node went away under it; costs no retry.
    Lost,
    /// The kubelet had no room after all; back to the queue, costs no retry.
    Refused,
    /// Stopped because another member of its gang ended badly.
    GangStopped,
    /// A person asked for it.
    Cancelled,
    /// Ran for longer than `max_run_time_s`; not retried.
    TimeLimit,
    /// Had not ended by its deadline; not retried.
    Deadline,
    /// Cost as much as its cap; not retried.
    MoneyCap,
    /// A job that it depends on did not succeed.
    DependencyFailed,
}

impl Outcome {
    /// The word used in JSON, in the store and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::GangStopped => "gang_stopped",
            Self::Cancelled => "cancelled",
            Self::TimeLimit => "time_limit",
            Self::Deadline => "deadline",
            Self::MoneyCap => "money_cap",
            Self::DependencyFailed => "dependency_failed",
        }
    }
}

/// Where an attempt's pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// Room on a node is held and the pod's creation is asked for.
    Reserved,
    /// The pod exists.
    Starting,
    /// Its container runs.
    Running,
    /// Nothing of it runs any more; its history row is not durable yet.
    Finished,
    /// The history row is durable; the pod may be deleted.
    Archived,
}

/// Where a whole job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// Nothing of it has a place, and something still waits for one.
    Pending,
    /// At least one pod has a place; none runs.
    Starting,
    /// At least one pod runs.
    Running,
    /// Every task has ended.
    Finished,
}

impl JobPhase {
    /// The word used in JSON, in the store and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finished => "finished",
        }
    }
}

/// Tasks of a job by where they stand; they sum to [`JobSpec::tasks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCounts {
    /// Waiting for a place, for a retry's turn or for a dependency.
    pub pending: u32,
    /// With a place, not running yet.
    pub starting: u32,
    /// Running.
    pub running: u32,
    /// Ended well.
    pub succeeded: u32,
    /// Ended otherwise, after the last retry.
    pub failed: u32,
    /// Cancelled by a person, a deadline, a cap or a dependency.
    pub cancelled: u32,
}

/// A sealed checkpoint that a retry can start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRef {
    /// The task that wrote it.
    pub task: TaskIndex,
    /// The step, as the job named it.
    pub step: u64,
    /// The sealed set's id.
    pub set: String,
}
