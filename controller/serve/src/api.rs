//! Bodies of the HTTP interface, as written by the controller and read by its clients.
//!
//! Times are milliseconds since the epoch. Fields are only ever added.

use rackwright_core::cost::UsageRow;
use rackwright_core::job::{CheckpointRef, DatasetPin, JobPhase, JobSpec, Outcome, PodState, TaskCounts};
use rackwright_store::{AttemptRow, AuditRow, JobRow, Role, TokenRow};
use rackwright_wire::id::{AttemptNo, JobId, JobName, NodeName, Owner, PodKey, Project, TaskIndex, Team};
use rackwright_wire::sealed::SetKind;
use rackwright_wire::units::Money;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An accepted job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Submitted {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: JobName,
    /// Tasks; members of a gang are tasks too.
    pub tasks: u32,
    /// From the token.
    pub owner: Owner,
    /// From the token.
    pub team: Team,
    /// Defaults filled in.
    pub spec: JobSpec,
    /// The versions that its pods will see, whatever is published later.
    pub datasets: Vec<DatasetPin>,
    /// The idempotency key was used before: this is the job of that submit, nothing was changed.
    pub replayed: bool,
}

/// A job in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: JobName,
    /// Its project.
    pub project: Project,
    /// Who submitted.
    pub owner: Owner,
    /// For which team.
    pub team: Team,
    /// Where it stands.
    pub phase: JobPhase,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Its tasks.
    pub counts: TaskCounts,
    /// When it was accepted.
    pub submitted_at_ms: u64,
    /// When its first container started.
    pub started_at_ms: Option<u64>,
    /// When its last task ended.
    pub finished_at_ms: Option<u64>,
}

impl JobSummary {
    /// From a row of the store.
    pub fn of(row: &JobRow) -> Self {
        let (record, state) = (&row.record, &row.state);
        Self {
            id: record.id,
            name: record.spec.name.clone(),
            project: record.spec.project.clone(),
            owner: record.owner.clone(),
            team: record.team.clone(),
            phase: state.phase,
            outcome: state.outcome,
            counts: state.counts,
            submitted_at_ms: record.submitted_at_ms,
            started_at_ms: state.started_at_ms,
            finished_at_ms: state.finished_at_ms,
        }
    }
}

/// A page of jobs, newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobSummary>,
    /// Pass this as `after` for the next page.
    pub next: Option<String>,
}

/// An attempt whose pod is there, or is about to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveAttempt {
    /// Job, task and attempt: the pod's name.
    pub pod: PodKey,
    /// Where it was placed.
    pub node: NodeName,
    /// How far it is.
    pub state: PodState,
    /// What it resumed from.
    pub resumed: Option<CheckpointRef>,
    /// When its room was held.
    pub placed_at_ms: u64,
    /// When its container started.
    pub started_at_ms: Option<u64>,
    /// What its kubelet waits for, when it says so, such as an image that is not there.
    pub note: Option<String>,
}

/// One job with its attempts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What was accepted.
    pub job: JobSummary,
    /// What was asked for, defaults filled in.
    pub spec: JobSpec,
    /// The versions that its pods see.
    pub datasets: Vec<DatasetPin>,
    /// Ended attempts, at most 500.
    pub attempts: Vec<AttemptRow>,
    /// Attempts whose pods are there, at most 500.
    pub live: Vec<LiveAttempt>,
    /// Why it waits, in one sentence; unset when nothing of it waits.
    pub waiting: Option<String>,
}

/// What a job left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Sealed sets, in the order of task, attempt, step.
    pub sets: Vec<ResultSet>,
}

/// One sealed set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResultSet {
    /// Its id: the value of the results table's column `set`.
    pub id: String,
    /// What it is.
    pub kind: SetKind,
    /// The task that wrote it.
    pub task: TaskIndex,
    /// The attempt that wrote it.
    pub attempt: AttemptNo,
    /// Checkpoints: the step.
    pub step: u64,
    /// The node that it was written on.
    pub node: String,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// `20 rows`, `kept`, or `refused: why`; unset while it waits to be loaded.
    pub outcome: Option<String>,
}

/// What a cancel did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cancelled {
    /// The job.
    pub id: JobId,
    /// It had ended before: nothing was changed.
    pub already_ended: bool,
}

/// A job that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueuedJob {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: JobName,
    /// Who submitted.
    pub owner: Owner,
    /// For which team.
    pub team: Team,
    /// Its priority class.
    pub priority: String,
    /// Its tasks.
    pub counts: TaskCounts,
    /// When it was accepted.
    pub submitted_at_ms: u64,
    /// Why it waits, in one sentence.
    pub waiting: String,
}

/// What waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Queue {
    /// The first 100 jobs, in the order in which they are tried.
    pub jobs: Vec<QueuedJob>,
    /// How many wait in all.
    pub waiting: usize,
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeSummary {
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: String,
    /// Whether it is ready.
    pub ready: bool,
    /// What pods may use.
    pub allocatable: rackwright_core::job::Capacity,
    /// What our pods hold of it, and how many they are.
    pub jobs: Held,
    /// What everybody else's pods hold of it, and how many they are.
    pub others: Held,
    /// Dataset versions on its disk.
    pub datasets: BTreeMap<String, Vec<String>>,
    /// Keys of its taints.
    pub taints: Vec<String>,
    /// What an hour of it costs, when its contract says.
    pub price_per_hour: Option<Money>,
}

/// Room that pods hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Pods.
    pub pods: u32,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Thousandths of a GPU.
    pub gpu_milli: u64,
}

/// All nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeList {
    /// By name.
    pub nodes: Vec<NodeSummary>,
}

/// The rows of the bill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsageList {
    /// The cluster.
    pub cluster: String,
    /// From when, inclusive.
    pub from_ms: u64,
    /// Until when, exclusive.
    pub until_ms: u64,
    /// Whose rows these are, when the caller may see one team's only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Team>,
    /// Attempts that held room in that time; one that still runs holds it until now.
    pub rows: Vec<UsageRow>,
}

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// Public id.
    pub id: String,
    /// Whom it stands for.
    pub owner: Owner,
    /// In which team.
    pub team: Team,
    /// What it may do.
    pub role: Role,
    /// For people.
    pub note: String,
    /// When it was made.
    pub created_at_ms: u64,
    /// When it was revoked.
    pub revoked_at_ms: Option<u64>,
}

impl Token {
    /// From a row of the store.
    pub fn of(row: TokenRow) -> Self {
        Self {
            id: row.id,
            owner: row.owner,
            team: row.team,
            role: row.role,
            note: row.note,
            created_at_ms: row.created_at_ms,
            revoked_at_ms: row.revoked_at_ms,
        }
    }
}

/// All tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenList {
    /// Oldest first.
    pub tokens: Vec<Token>,
}

/// A token to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWanted {
    /// Whom it stands for.
    pub owner: Owner,
    /// In which team.
    pub team: Team,
    /// What it may do.
    pub role: Role,
    /// For people.
    #[serde(default)]
    pub note: String,
}

/// A token just made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenMade {
    /// Public id, for listing and revoking.
    pub id: String,
    /// The token itself; shown this once.
    pub token: String,
    /// What it may do.
    pub role: Role,
    /// Whom it stands for.
    pub owner: Owner,
    /// In which team.
    pub team: Team,
}

/// Who changed what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditList {
    /// Oldest first.
    pub rows: Vec<AuditRow>,
    /// Pass this as `after` for the next page.
    pub next: Option<String>,
}

/// Pod records and etcd's size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Etcd {
    /// Pod records now.
    pub pods: usize,
    /// The most pod records at once since the controller started.
    pub pods_peak: usize,
    /// Of those now, pods of jobs.
    pub job_pods: usize,
    /// etcd's own numbers; unset when the controller was not told how to reach it.
    pub size: Option<crate::etcd::EtcdSize>,
    /// The most bytes in use at once since the controller started.
    pub in_use_peak_bytes: Option<i64>,
}
