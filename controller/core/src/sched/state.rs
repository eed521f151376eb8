//! What the scheduler knows: exactly what the events said, and nothing that can be derived from it.
//!
//! Arrays stay compact: tasks that were never placed are one number, tasks that ended are counts; only
//! tasks with pods or in wait for a retry have entries of their own.

use crate::job::{CheckpointRef, ForeignPod, JobRecord, NodeFacts, Outcome, PodState, Resources, StopReason};
use rackwright_wire::id::{AttemptNo, JobId, NodeName, PodKey, PodUid, TaskIndex};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// The scheduler's primary state; its serde form is the snapshot's body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Jobs that have not ended, or whose pods have not all gone.
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Every pod of ours that exists or may exist.
    pub(super) pods: BTreeMap<PodKey, Pod>,
    /// Nodes that exist, or that pods of ours were placed on.
    pub(super) nodes: BTreeMap<NodeName, Node>,
    /// Pods of others.
    pub(super) foreign: BTreeMap<PodUid, ForeignPod>,
    /// How jobs ended that others may depend on.
    pub(super) outcomes: BTreeMap<JobId, Outcome>,
}

/// A job and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub(super) record: JobRecord,
    /// Groups from here on were never placed. A group is what starts together: a gang, or one task.
    pub(super) fresh: u32,
    /// Groups that were placed before and wait to be placed again.
    pub(super) waiting: BTreeMap<u32, Retry>,
    /// Groups with pods that have not all ended.
    pub(super) live: BTreeMap<u32, Live>,
    /// Tasks that ended, by how.
    pub(super) ended: Ended,
    /// Jobs that must succeed first.
    pub(super) blocked_on: BTreeSet<JobId>,
    /// A dependency did not succeed.
    pub(super) doomed: bool,
    /// It is being stopped.
    pub(super) stop: Option<StopReason>,
    /// The newest checkpoints of tasks that have not ended, oldest first.
    pub(super) checkpoints: BTreeMap<u32, Vec<Sealed>>,
    /// Cost of ended attempts, in millionths of the currency times milliseconds per hour.
    pub(super) spent: i128,
    pub(super) started_at_ms: Option<u64>,
    pub(super) finished_at_ms: Option<u64>,
    /// How the first task that ended badly did.
    pub(super) worst: Option<Outcome>,
    /// How it ended, once that is decided.
    pub(super) outcome: Option<Outcome>,
}

/// Ended tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ended {
    pub(super) succeeded: u32,
    pub(super) failed: u32,
    pub(super) cancelled: u32,
}

/// How often a group was tried, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tries {
    /// Attempts so far; the last one's number.
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) losses: u32,
    pub(super) refusals: u32,
}

/// A group with pods that have not all ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Live {
    pub(super) tries: Tries,
    /// Members that have not ended.
    pub(super) left: u32,
    /// The gravest of the bad ends so far.
    pub(super) worst: Option<Outcome>,
}

/// A group that waits to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) tries: Tries,
    pub(super) not_before_ms: u64,
}

/// A checkpoint that a retry may resume from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealed {
    pub(super) attempt: AttemptNo,
    pub(super) step: u64,
    pub(super) set: String,
}

/// One attempt's pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pod {
    pub(super) node: NodeName,
    pub(super) uid: Option<PodUid>,
    pub(super) state: PodState,
    pub(super) outcome: Option<Outcome>,
    pub(super) exit_code: Option<i32>,
    pub(super) reason: String,
    pub(super) placed_at_ms: u64,
    /// When its uid became known; unset as long as it is not, and in snapshots of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at_ms: Option<u64>,
    pub(super) started_at_ms: Option<u64>,
    pub(super) finished_at_ms: Option<u64>,
    pub(super) requests: Resources,
    pub(super) resumed: Option<CheckpointRef>,
    /// What an hour of its share of the node costs, in millionths of its job's cap's currency.
    pub(super) rate_micros: i64,
    /// It is to be stopped.
    pub(super) stop: Option<StopReason>,
    /// Its end follows from the node's lease, nobody saw it: it takes room until it is gone.
    pub(super) lost: bool,
    /// The API server no longer has it, or never had.
    pub(super) gone: bool,
    /// What was asked for and not answered yet.
    pub(super) asked: Option<Asked>,
}

/// What was last asked for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asked {
    Create,
    Stop,
    Archive,
    Prune,
}

/// A node and since when it cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) facts: NodeFacts,
    pub(super) unready_since_ms: Option<u64>,
    /// Its object is gone; it is remembered for the pods that were on it.
    pub(super) gone: bool,
}

/// Checkpoints kept for a task: if the newest cannot be restored, an older one counts.
pub(super) const KEPT_CHECKPOINTS: usize = 3;

impl Job {
    pub(super) fn new(record: JobRecord) -> Self {
        Self {
            record,
            fresh: 0,
            waiting: BTreeMap::new(),
            live: BTreeMap::new(),
            ended: Ended::default(),
            blocked_on: BTreeSet::new(),
            doomed: false,
            stop: None,
            checkpoints: BTreeMap::new(),
            spent: 0,
            started_at_ms: None,
            finished_at_ms: None,
            worst: None,
            outcome: None,
        }
    }

    /// How many groups the job has: one for a gang, one for each task otherwise.
    pub(super) fn groups(&self) -> u32 {
        if self.record.spec.gang.is_some() { 1 } else { self.record.spec.tasks() }
    }

    /// The group that a task belongs to.
    pub(super) fn group_of(&self, task: TaskIndex) -> u32 {
        if self.record.spec.gang.is_some() { 0 } else { task.0 }
    }

    /// The tasks of a group.
    pub(super) fn members(&self, group: u32) -> impl Iterator<Item = TaskIndex> + use<> {
        let tasks =
            if self.record.spec.gang.is_some() { 0..self.record.spec.tasks() } else { group..group + 1 };
        tasks.map(TaskIndex)
    }

    /// Whether anything of it still waits to be placed.
    pub(super) fn has_pending(&self) -> bool {
        self.fresh < self.groups() || !self.waiting.is_empty()
    }

    /// Whether every task has ended.
    pub(super) fn is_done(&self) -> bool {
        !self.has_pending() && self.live.is_empty()
    }

    /// Whether its pending groups may be placed at all.
    pub(super) fn may_start(&self) -> bool {
        self.stop.is_none() && !self.doomed && self.blocked_on.is_empty() && self.outcome.is_none()
    }

    /// The checkpoint that a task's next attempt resumes from.
    pub(super) fn newest_checkpoint(&self, task: TaskIndex) -> Option<CheckpointRef> {
        let sealed = self.checkpoints.get(&task.0)?.last()?;
        Some(CheckpointRef { task, step: sealed.step, set: sealed.set.clone() })
    }

    /// How the job ended, if every task has.
    pub(super) fn final_outcome(&self) -> Outcome {
        let stopped = self.stop.filter(|_| self.ended.cancelled > 0).map(StopReason::outcome);
        stopped.or(self.worst).unwrap_or(Outcome::Succeeded)
    }
}

impl Pod {
    /// Whether it may still run.
    pub(super) const fn is_live(&self) -> bool {
        matches!(self.state, PodState::Reserved | PodState::Starting | PodState::Running)
    }

    /// Whether it takes room on its node.
    pub(super) const fn takes_room(&self) -> bool {
        self.is_live() || (self.lost && !self.gone)
    }

    /// Whether an event about `uid` is about this pod.
    pub(super) fn is_uid(&self, uid: &PodUid) -> bool {
        self.uid.as_ref().is_none_or(|known| known == uid)
    }

    /// Whether its owner may want to look at it.
    pub(super) const fn is_failure(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Failed | Outcome::TimeLimit))
    }

    /// Cost until `now_ms` in millionths times milliseconds per hour.
    pub(super) fn cost(&self, now_ms: u64) -> i128 {
        i128::from(self.rate_micros) * i128::from(now_ms.saturating_sub(self.placed_at_ms))
    }
}

/// All keys of a job's pods.
pub(super) fn pods_of(job: JobId) -> RangeInclusive<PodKey> {
    let first = PodKey { job, task: TaskIndex(0), attempt: AttemptNo(0) };
    let last = PodKey { job, task: TaskIndex(u32::MAX), attempt: AttemptNo(u32::MAX) };
    first..=last
}
