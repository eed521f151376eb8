//! What happens: the scheduler's only input, and, appended to the store's log, its memory.
//!
//! Replaying the log from nothing gives the same state (law 16), so an event holds facts, never
//! pointers to something that may change. Time comes with each event; nothing here reads a clock.

use super::action::Action;
use super::spec::Resources;
use super::{JobRecord, Outcome};
use rackwright_wire::id::{DatasetName, DatasetVersion, GpuType, JobId, NodeName, Owner, PodKey, PodUid};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu, Money};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Event`] that this build writes.
pub const EVENT_VERSION: u32 = 1;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// [`EVENT_VERSION`] of the writer.
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, EVENT_VERSION>")]
    pub version: u32,
    /// Milliseconds since the epoch when it was learned.
    pub at_ms: u64,
    /// What happened.
    pub what: What,
}

impl Event {
    /// An event of this build's version.
    pub const fn new(at_ms: u64, what: What) -> Self {
        Self { version: EVENT_VERSION, at_ms, what }
    }

    /// The event that records a decision; it is made durable before the action is carried out.
    pub const fn decided(at_ms: u64, action: Action) -> Self {
        Self::new(at_ms, What::Decided { action })
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// A job was accepted.
    Submitted {
        /// The job.
        job: Box<JobRecord>,
    },
    /// A person wants the job to end.
    CancelRequested {
        /// The job.
        job: JobId,
        /// Who asked.
        by: Owner,
    },
    /// A node is there, with these facts; sent when any of them changed.
    NodeSeen {
        /// All of its facts.
        node: Box<NodeFacts>,
    },
    /// The node's object is gone.
    NodeGone {
        /// The node.
        node: NodeName,
    },
    /// A pod that we did not place takes room on a node; sent when it appears, is bound or changes.
    ForeignPodSeen {
        /// The pod.
        pod: ForeignPod,
    },
    /// That pod ended or is gone.
    ForeignPodGone {
        /// Its uid.
        uid: PodUid,
    },
    /// The API server accepted a pod of ours.
    PodCreated {
        /// The pod.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
    },
    /// The API server refused a pod of ours for good; nothing was created.
    PodNotCreated {
        /// The pod.
        pod: PodKey,
        /// The API server's message.
        reason: String,
    },
    /// A pod of ours was seen pending or running.
    PodObserved {
        /// The pod.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
        /// What it does.
        phase: PodPhase,
        /// When its container started, milliseconds since the epoch; with `running`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        started_at_ms: Option<u64>,
    },
    /// A pod with our labels that the scheduler does not know ([`crate::sched::Sched::knows`]): it takes
    /// room, is archived and deleted.
    OrphanSeen {
        /// The pod, from its name.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
        /// Its node.
        node: NodeName,
        /// What it asked for.
        requests: Resources,
    },
    /// The kubelet did not admit the pod (`OutOfcpu` and the like).
    PodRefused {
        /// The pod.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
        /// The kubelet's reason.
        reason: String,
    },
    /// The attempt's container ended.
    AttemptFinished {
        /// The pod.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
        /// [`Outcome::Succeeded`] or [`Outcome::Failed`]; the scheduler knows whether it asked for it.
        outcome: Outcome,
        /// The container's exit code, when there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// The kubelet's reason, such as `Error` or `OOMKilled`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
        /// When the container started, milliseconds since the epoch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        started_at_ms: Option<u64>,
        /// When it ended, milliseconds since the epoch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finished_at_ms: Option<u64>,
    },
    /// It is proven that nothing of the attempt runs, though it never ended by itself: its server was
    /// powered off or rebooted, or the kubelet evicted it.
    AttemptLost {
        /// The pod.
        pod: PodKey,
        /// Its uid.
        uid: PodUid,
        /// The proof.
        reason: String,
    },
    /// The API server no longer has the pod.
    PodGone {
        /// The pod.
        pod: PodKey,
        /// Its uid; `None` when no pod of that name was ever created.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<PodUid>,
    },
    /// A checkpoint of the attempt is sealed and stored off its node.
    CheckpointSealed {
        /// The attempt that wrote it.
        pod: PodKey,
        /// The step, as the job named it.
        step: u64,
        /// The sealed set's id.
        set: String,
    },
    /// That checkpoint cannot be restored; the one before it counts.
    CheckpointRejected {
        /// The attempt that wrote it.
        pod: PodKey,
        /// The step.
        step: u64,
    },
    /// The attempt's history row is durable.
    Archived {
        /// The pod.
        pod: PodKey,
    },
    /// The scheduler decided this; recorded before it is carried out.
    Decided {
        /// The decision.
        action: Action,
    },
    /// Time passed; never needed in the log.
    Tick,
}

/// What a pod of ours does, as long as it has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPhase {
    /// Bound, no container runs yet.
    Pending,
    /// Its container runs.
    Running,
}

/// Everything about a node that placement depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFacts {
    /// Its name.
    pub name: NodeName,
    /// Its Ready condition is true and its lease is fresh.
    pub ready: bool,
    /// Labels that placement reads (`rackwright.dev/…`); others may be left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// All of its taints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// What the machine has.
    pub capacity: Capacity,
    /// What pods may use of it.
    pub allocatable: Capacity,
    /// Type of its GPUs, when it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_type: Option<GpuType>,
    /// Complete, visible dataset versions on its disk.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub datasets: BTreeMap<DatasetName, Vec<HeldDataset>>,
    /// What an hour of the whole node costs; unset when no price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<Money>,
}

/// Amounts of a whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// CPU.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
    /// GPUs.
    #[serde(default)]
    pub gpu: MilliGpu,
    /// Pods (the kubelet's `maxPods`).
    pub pods: u32,
}

/// A dataset version that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldDataset {
    /// The version.
    pub version: DatasetVersion,
    /// The generation of its manifest; for people.
    pub generation: u64,
}

/// A taint, as Kubernetes has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, often empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A pod that we did not place and that takes room on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignPod {
    /// Its uid.
    pub uid: PodUid,
    /// `namespace/name`, for people.
    pub name: String,
    /// The node it is bound to.
    pub node: NodeName,
    /// What the kubelet counts for it.
    pub requests: Resources,
}
