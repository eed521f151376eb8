//! What is to be done: the scheduler's only output. Every action is idempotent, carries the uid that it
//! is meant for, and is recorded in the log before it is carried out.

use super::{CheckpointRef, Outcome};
use rackwright_wire::id::{JobId, NodeName, PodKey, PodUid};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Create the pod, bound to the node. Answered by `PodCreated` (also when it already exists) or
    /// `PodNotCreated`.
    CreatePod {
        /// The pod; its job's record holds what to run.
        pod: PodKey,
        /// Where.
        node: NodeName,
        /// What it resumes from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<CheckpointRef>,
    },
    /// End the pod and keep its record until it is archived (law 7): set `activeDeadlineSeconds` to 1, the
    /// kubelet then ends it as at any deadline, grace period included; delete nothing. Answered by
    /// `AttemptFinished`, or by `PodGone` with `uid: None` when there is no such pod.
    StopPod {
        /// The pod.
        pod: PodKey,
        /// Its uid; unknown only when its creation was never confirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<PodUid>,
        /// Why.
        why: StopReason,
    },
    /// The node's lease and the grace after it have run out: nothing of the attempt runs any more. The
    /// attempt is tried again once its pod is gone too. Nothing to carry out.
    DeclareLost {
        /// The pod.
        pod: PodKey,
        /// The node that went away.
        node: NodeName,
    },
    /// Make the attempt's history row durable, then answer with `Archived`.
    Archive {
        /// The pod.
        pod: PodKey,
        /// Its uid; unknown when it was never created.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<PodUid>,
    },
    /// Delete the archived pod with its uid as precondition, then answer with `PodGone` once it is gone.
    /// Always delete with grace first: from then on no kubelet starts it. With `force`, and only when
    /// the node's Lease object, read then, was not renewed for longer than lease and grace together,
    /// delete with grace period 0. Otherwise its kubelet removes it, or the next full pass asks again.
    Prune {
        /// The pod.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
        /// Its node is not there to confirm.
        force: bool,
    },
    /// The job has ended; its row is complete. Nothing to carry out beyond telling those who watch.
    FinishJob {
        /// The job.
        job: JobId,
        /// How.
        outcome: Outcome,
    },
    /// What is left of the job is not started or is stopped, for a reason that no person gave.
    StopJob {
        /// The job.
        job: JobId,
        /// Why.
        why: StopReason,
    },
}

/// Why something is stopped before it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A person cancelled the job.
    Cancelled,
    /// Another member of the gang ended badly.
    Gang,
    /// It had its place for long and did not start.
    NotStarted,
    /// It ran for longer than it may.
    TimeLimit,
    /// The job's deadline passed.
    Deadline,
    /// The job cost as much as its cap.
    MoneyCap,
    /// A job that it depends on did not succeed.
    Dependency,
}

impl StopReason {
    /// How an attempt ended that was stopped for this reason.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled,
            Self::Gang => Outcome::GangStopped,
            Self::NotStarted => Outcome::Failed,
            Self::TimeLimit => Outcome::TimeLimit,
            Self::Deadline => Outcome::Deadline,
            Self::MoneyCap => Outcome::MoneyCap,
            Self::Dependency => Outcome::DependencyFailed,
        }
    }
}

/// One line, as logs and dry runs show it.
impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreatePod { pod, node, resume: None } => write!(formatter, "create {pod} on {node}"),
            Self::CreatePod { pod, node, resume: Some(checkpoint) } => {
                write!(formatter, "create {pod} on {node}, resuming from step {}", checkpoint.step)
            }
            Self::StopPod { pod, why, .. } => write!(formatter, "stop {pod}: {}", why.outcome().as_str()),
            Self::DeclareLost { pod, node } => write!(formatter, "declare {pod} lost with {node}"),
            Self::Archive { pod, .. } => write!(formatter, "archive {pod}"),
            Self::Prune { pod, .. } => write!(formatter, "prune {pod}"),
            Self::FinishJob { job, outcome } => write!(formatter, "finish {job}: {}", outcome.as_str()),
            Self::StopJob { job, why } => write!(formatter, "end {job}: {}", why.outcome().as_str()),
        }
    }
}
