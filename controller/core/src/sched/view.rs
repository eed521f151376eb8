//! What others may see of the state, and what a restart has to ask again.

use super::Sched;
use super::fit::clamped;
use super::state::{Asked, pods_of};
use crate::job::{
    Action, Capacity, CheckpointRef, JobPhase, JobRecord, Outcome, PodState, Resources, TaskCounts, What,
};
use rackwright_wire::id::{JobId, NodeName, PodKey, PodUid};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};
use std::collections::{BTreeMap, BTreeSet};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Where it stands as a whole.
    pub phase: JobPhase,
    /// Its tasks.
    pub counts: TaskCounts,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When its first container started.
    pub started_at_ms: Option<u64>,
    /// When its last attempt so far ended.
    pub finished_at_ms: Option<u64>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptView {
    /// Job, task and attempt.
    pub pod: PodKey,
    /// The pod's uid, once known.
    pub uid: Option<PodUid>,
    /// Its node.
    pub node: NodeName,
    /// Where it stands.
    pub state: PodState,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The container's exit code.
    pub exit_code: Option<i32>,
    /// Why it ended so.
    pub reason: String,
    /// When its room was held.
    pub placed_at_ms: u64,
    /// When its container started.
    pub started_at_ms: Option<u64>,
    /// When nothing of it ran any more.
    pub finished_at_ms: Option<u64>,
    /// What it holds.
    pub resources: Resources,
    /// What it resumed from.
    pub resumed: Option<CheckpointRef>,
    /// The newest checkpoints that it sealed itself.
    pub checkpoints: Vec<CheckpointRef>,
}

/// One node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Ready and there.
    pub usable: bool,
    /// What pods may use.
    pub allocatable: Capacity,
    /// What ours and others' pods use.
    pub used: Capacity,
}

impl Sched {
    /// Whether a pod of this name is expected.
    pub fn knows(&self, pod: &PodKey) -> bool {
        self.state.pods.contains_key(pod)
    }

    /// A job that has not ended, or whose pods have not all gone.
    pub fn job(&self, id: JobId) -> Option<&JobRecord> {
        self.state.jobs.get(&id).map(|job| &job.record)
    }

    /// Ids of all such jobs, in order of submission.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        self.state.jobs.keys().copied()
    }

    /// Where a job stands; unknown once it has ended and its pods are gone.
    pub fn view(&self, id: JobId) -> Option<JobView> {
        let job = self.state.jobs.get(&id)?;
        let mut counts = TaskCounts {
            succeeded: job.ended.succeeded,
            failed: job.ended.failed,
            cancelled: job.ended.cancelled,
            ..TaskCounts::default()
        };
        for (group, live) in &job.live {
            for task in job.members(*group) {
                let key =
                    PodKey { job: id, task, attempt: rackwright_wire::id::AttemptNo(live.tries.attempts) };
                match self.state.pods.get(&key).map(|pod| pod.state) {
                    Some(PodState::Running) => counts.running += 1,
                    // A member that ended before the rest of its gang counts with the gang.
                    _ => counts.starting += 1,
                }
            }
        }
        let placed = counts.starting + counts.running + counts.succeeded + counts.failed + counts.cancelled;
        counts.pending = job.record.spec.tasks().saturating_sub(placed);
        let phase = match (job.outcome, counts) {
            (Some(_), _) => JobPhase::Finished,
            (None, TaskCounts { running: 1.., .. }) => JobPhase::Running,
            (None, TaskCounts { starting: 1.., .. }) => JobPhase::Starting,
            (None, _) => JobPhase::Pending,
        };
        let finished_at_ms = job.finished_at_ms.filter(|_| job.outcome.is_some());
        Some(JobView {
            id,
            phase,
            counts,
            outcome: job.outcome,
            started_at_ms: job.started_at_ms,
            finished_at_ms,
        })
    }

    /// Jobs whose view may have changed since the last call, in order of submission.
    pub fn take_changed(&mut self) -> Vec<JobView> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|(id, dropped)| dropped.or_else(|| self.view(id))).collect()
    }

    /// One attempt whose pod exists or may exist.
    pub fn attempt(&self, key: PodKey) -> Option<AttemptView> {
        let pod = self.state.pods.get(&key)?;
        let sealed = self.state.jobs.get(&key.job).and_then(|job| job.checkpoints.get(&key.task.0));
        let own = sealed.into_iter().flatten().filter(|sealed| sealed.attempt == key.attempt);
        let checkpoints = own
            .map(|sealed| CheckpointRef { task: key.task, step: sealed.step, set: sealed.set.clone() })
            .collect();
        Some(AttemptView {
            pod: key,
            uid: pod.uid.clone(),
            node: pod.node.clone(),
            state: pod.state,
            outcome: pod.outcome,
            exit_code: pod.exit_code,
            reason: pod.reason.clone(),
            placed_at_ms: pod.placed_at_ms,
            started_at_ms: pod.started_at_ms,
            finished_at_ms: pod.finished_at_ms,
            resources: pod.requests.clone(),
            resumed: pod.resumed.clone(),
            checkpoints,
        })
    }

    /// A job's attempts whose pods exist or may exist, in order of task and attempt.
    pub fn attempts(&self, id: JobId) -> Vec<AttemptView> {
        self.state.pods.range(pods_of(id)).filter_map(|(key, _)| self.attempt(*key)).collect()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        let view = |(name, node): (&NodeName, &super::state::Node)| {
            let used = self.index.used.get(name).copied().unwrap_or_default();
            NodeView {
                name: name.clone(),
                usable: node.is_usable(),
                allocatable: node.facts.allocatable,
                used: Capacity {
                    cpu: MilliCpu::new(used.cpu).unwrap_or(MilliCpu::MAX),
                    memory: Bytes::new(clamped(used.memory)).unwrap_or(Bytes::MAX),
                    gpu: MilliGpu::new(used.gpu).unwrap_or(MilliGpu::MAX),
                    pods: used.pods,
                },
            }
        };
        self.state.nodes.iter().map(view).collect()
    }

    /// How many records of pods there are, by state.
    pub fn pod_states(&self) -> BTreeMap<PodState, usize> {
        let mut states = BTreeMap::new();
        for pod in self.state.pods.values() {
            *states.entry(pod.state).or_default() += 1;
        }
        states
    }

    /// What was asked for and not answered: to be carried out again after a restart and in every full
    /// pass. A pod whose creation was never confirmed and that is to be stopped is stopped by name.
    pub fn outstanding(&self) -> Vec<Action> {
        self.state.pods.iter().filter_map(|(key, pod)| self.asked_again(*key, pod)).collect()
    }

    fn asked_again(&self, key: PodKey, pod: &super::state::Pod) -> Option<Action> {
        match (pod.asked?, pod.stop) {
            (Asked::Create | Asked::Stop, Some(why)) => {
                Some(Action::StopPod { pod: key, uid: pod.uid.clone(), why })
            }
            (Asked::Create, None) => {
                Some(Action::CreatePod { pod: key, node: pod.node.clone(), resume: pod.resumed.clone() })
            }
            (Asked::Stop, None) => None,
            (Asked::Archive, _) => Some(Action::Archive { pod: key, uid: pod.uid.clone() }),
            (Asked::Prune, _) => Some(self.prune(key, pod.uid.clone()?, pod)),
        }
    }

    /// Pods that the API server is known to have: taken before a full list, so that
    /// [`Sched::vanished`] does not count those that were created while it ran.
    pub fn expected_pods(&self) -> BTreeMap<PodKey, PodUid> {
        let known = |(key, pod): (&PodKey, &super::state::Pod)| {
            pod.uid.clone().filter(|_| !pod.gone).map(|uid| (*key, uid))
        };
        self.state.pods.iter().filter_map(known).collect()
    }

    /// What a full list says about pods that it does not contain.
    pub fn vanished(expected: &BTreeMap<PodKey, PodUid>, listed: &BTreeSet<PodUid>) -> Vec<What> {
        let missing = expected.iter().filter(|(_, uid)| !listed.contains(uid));
        missing.map(|(key, uid)| What::PodGone { pod: *key, uid: Some(uid.clone()) }).collect()
    }
}
