//! What the store keeps and hands out. Times are milliseconds since the epoch.

use rackwright_core::job::{
    CheckpointRef, Class, DatasetPin, Event, JobPhase, JobRecord, JobSpec, Outcome, Resources, TaskCounts,
};
use rackwright_wire::id::{DatasetName, JobId, ModelName, NodeName, Owner, PodKey, PodUid, Project, Team};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A position in the event log, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// A client's `Idempotency-Key`: 1 to 128 visible ASCII characters, scoped to its team and owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The door; `None` when the text is empty, too long or not visible ASCII.
    pub fn new(text: &str) -> Option<Self> {
        let usable =
            !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic());
        usable.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A checked job, ready to be accepted; the store gives it its id.
#[derive(Debug, Clone)]
pub struct Submit {
    /// From the token.
    pub owner: Owner,
    /// From the token.
    pub team: Team,
    /// What was asked for.
    pub spec: JobSpec,
    /// What `spec.datasets` was resolved to.
    pub datasets: Vec<DatasetPin>,
    /// Now.
    pub at_ms: u64,
    /// The client's key, with a digest of the body that it stands for.
    pub idempotency: Option<(IdempotencyKey, String)>,
}

/// An accepted job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The job; with a key that was used before, the job of that first submit.
    pub record: JobRecord,
    /// The position of its `Submitted` event in the log.
    pub seq: Seq,
    /// The key was used before: nothing was changed, and no event is new.
    pub replayed: bool,
}

/// Changes that become durable together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Appended to the log in this order.
    pub events: Vec<Event>,
    /// New state of job rows.
    pub jobs: Vec<JobUpdate>,
    /// History of ended attempts; writing the same attempt again replaces nothing.
    pub attempts: Vec<AttemptRow>,
    /// Who did what.
    pub audit: Vec<AuditRow>,
}

impl Batch {
    /// A batch of events only.
    pub fn of(events: Vec<Event>) -> Self {
        Self { events, ..Self::default() }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.jobs.is_empty() && self.attempts.is_empty() && self.audit.is_empty()
    }
}

/// The part of a job's row that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobUpdate {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub phase: JobPhase,
    /// Its tasks.
    pub counts: TaskCounts,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// When its first container started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<u64>,
    /// When its last task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at_ms: Option<u64>,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRow {
    /// What was accepted.
    pub record: JobRecord,
    /// Where it stands.
    pub state: JobUpdate,
}

/// One ended attempt: the history row that must be durable before its pod is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptRow {
    /// Job, task and attempt.
    pub pod: PodKey,
    /// The pod's uid; unset when it was never created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<PodUid>,
    /// The server that it was placed on.
    pub node: NodeName,
    /// How it ended.
    pub outcome: Outcome,
    /// The container's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The kubelet's or our reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When its room was held.
    pub placed_at_ms: u64,
    /// When its container started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<u64>,
    /// When nothing of it ran any more.
    pub finished_at_ms: u64,
    /// What it held from `placed_at_ms` to `finished_at_ms`.
    pub resources: Resources,
    /// What it resumed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<CheckpointRef>,
    /// Checkpoints that it sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointRef>,
    /// The end of its output, at most 64 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_tail: String,
}

/// What the bill needs of one ended attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRow {
    /// Job, task and attempt.
    pub pod: PodKey,
    /// Who submitted.
    pub owner: Owner,
    /// For which team.
    pub team: Team,
    /// For which project.
    pub project: Project,
    /// For which model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// On which datasets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetName>,
    /// Fixed or flexible.
    pub class: Class,
    /// The server.
    pub node: NodeName,
    /// From when it held room.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// How much room.
    pub resources: Resources,
    /// How it ended.
    pub outcome: Outcome,
}

/// What the scheduler is rebuilt from.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The newest snapshot and the last log position that it contains.
    pub snapshot: Option<(Seq, String)>,
    /// Events after it, in order.
    pub events: Vec<(Seq, Event)>,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Pass this as `after` for the next page; unset on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which jobs, newest first.
#[derive(Debug, Clone, Default)]
pub struct JobQuery {
    /// Only this team's.
    pub team: Option<Team>,
    /// Only this owner's.
    pub owner: Option<Owner>,
    /// Only this project's.
    pub project: Option<Project>,
    /// Only jobs in this phase.
    pub phase: Option<JobPhase>,
    /// Only jobs that ended so.
    pub outcome: Option<Outcome>,
    /// At most so many; 0 for the default of 50, never more than 500.
    pub limit: u32,
    /// The cursor of the page before ([`Page::next`]).
    pub after: Option<String>,
}

/// A document by kind, name and generation, such as a signed dataset manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentRow {
    /// Kind, such as `manifest`.
    pub kind: String,
    /// Name, such as the dataset's.
    pub name: String,
    /// Counts up within kind and name.
    pub generation: u64,
    /// When it was stored.
    pub at_ms: u64,
    /// The document's JSON, exactly as given.
    pub json: String,
}

/// Who did what; never changed or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRow {
    /// When.
    pub at_ms: u64,
    /// The token's owner.
    pub owner: Owner,
    /// The token's team.
    pub team: Team,
    /// What, such as `job.submit`.
    pub action: String,
    /// To what, such as a job's id.
    pub subject: String,
    /// `ok`, or the code of the problem.
    pub result: String,
}

/// Which audit rows, oldest first.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// At most so many; 0 for the default of 50, never more than 500.
    pub limit: u32,
    /// The cursor of the page before.
    pub after: Option<String>,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, and submits and cancels jobs of its own team.
    Submitter,
    /// Everything.
    Operator,
}

impl Role {
    /// The word used in JSON, in the store and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// A bearer token; only its hash is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRow {
    /// Public id, for listing and revoking.
    pub id: String,
    /// SHA-256 (hex) of the token.
    pub sha256: String,
    /// Whom it stands for.
    pub owner: Owner,
    /// In which team.
    pub team: Team,
    /// What it may do.
    pub role: Role,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// When it was made.
    pub created_at_ms: u64,
    /// From when it is refused; unset for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<u64>,
}

impl TokenRow {
    /// Whether it is good for anything at `now_ms`.
    pub fn is_valid(&self, now_ms: u64) -> bool {
        self.revoked_at_ms.is_none() && self.expires_at_ms.is_none_or(|expires| now_ms < expires)
    }
}
