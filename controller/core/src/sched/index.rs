//! What can be derived from the state, kept so that no decision walks over all jobs.
//!
//! Each entry is added and removed by one function that reads only the state, so the whole can be
//! rebuilt from scratch; `sanity_check` does so and compares.

use super::Sched;
use super::fit::{Shape, Used};
use super::state::{Job, Pod, Retry, pods_of};
use crate::job::PodState;
use rackwright_wire::id::{JobId, NodeName, Owner, PodKey};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A job's place in the order: priority first, then submission (ids rise).
pub(super) type Order = (Reverse<i32>, JobId);

/// Something that time brings a decision for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Pod(PodKey),
    Job(JobId),
}

/// Everything derived.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Index {
    /// Room taken, by node.
    pub(super) used: BTreeMap<NodeName, Used>,
    /// Records of our pods, by node.
    pub(super) on_node: BTreeMap<NodeName, BTreeSet<PodKey>>,
    /// When each pod or job needs a decision next.
    pub(super) due: BTreeSet<(u64, Due)>,
    due_at: BTreeMap<Due, u64>,
    /// Groups whose turn to be tried again has not come.
    pub(super) backoff: BTreeSet<(u64, JobId, u32)>,
    /// Groups whose turn has come.
    pub(super) ready: BTreeMap<JobId, BTreeSet<u32>>,
    /// Jobs with something to start, by shape and in order.
    pub(super) queue: BTreeMap<Arc<Shape>, BTreeSet<Order>>,
    pub(super) shapes: BTreeMap<JobId, Arc<Shape>>,
    /// Jobs that wait for a job.
    pub(super) dependents: BTreeMap<JobId, BTreeSet<JobId>>,
    /// Ended, failed pods that still exist, by owner, oldest first.
    pub(super) failures: BTreeMap<Owner, BTreeSet<(u64, PodKey)>>,
    /// Finished pods that wait to be archived, or whose deletion is asked for.
    pub(super) backlog: usize,
    /// Pods whose creation is asked for and not answered yet.
    pub(super) reserved: usize,
    /// What the live pods of each job cost, where they cost anything.
    pub(super) costs: BTreeMap<JobId, LiveCost>,
}

/// What a job's live pods cost at any time `t`: `rate * t - placed`, in millionths times milliseconds per
/// hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LiveCost {
    /// The sum of their rates.
    pub(super) rate: i128,
    /// The sum of their rates times when they were placed.
    pub(super) placed: i128,
}

impl Index {
    fn add_pod(&mut self, key: PodKey, pod: &Pod, owner: Option<&Owner>) {
        self.on_node.entry(pod.node.clone()).or_default().insert(key);
        if pod.takes_room() {
            self.used.entry(pod.node.clone()).or_default().add(&pod.requests);
        }
        if is_backlog(pod) {
            self.backlog += 1;
        }
        if pod.state == PodState::Reserved {
            self.reserved += 1;
        }
        self.change_cost(key.job, pod, 1);
        if let Some((owner, at)) = owner.zip(failure_at(pod)) {
            self.failures.entry(owner.clone()).or_default().insert((at, key));
        }
    }

    fn remove_pod(&mut self, key: PodKey, pod: &Pod, owner: Option<&Owner>) {
        remove_from(&mut self.on_node, &pod.node, &key);
        if pod.takes_room() {
            self.remove_used(&pod.node, &pod.requests);
        }
        if is_backlog(pod) {
            self.backlog -= 1;
        }
        if pod.state == PodState::Reserved {
            self.reserved -= 1;
        }
        self.change_cost(key.job, pod, -1);
        if let Some((owner, at)) = owner.zip(failure_at(pod)) {
            remove_from(&mut self.failures, owner, &(at, key));
        }
    }

    fn change_cost(&mut self, job: JobId, pod: &Pod, sign: i128) {
        let rate = sign * i128::from(pod.rate_micros);
        if !pod.is_live() || rate == 0 {
            return;
        }
        let cost = self.costs.entry(job).or_default();
        cost.rate += rate;
        cost.placed += rate * i128::from(pod.placed_at_ms);
        if *cost == LiveCost::default() {
            self.costs.remove(&job);
        }
    }

    pub(super) fn remove_used(&mut self, node: &NodeName, requests: &crate::job::Resources) {
        if let Some(used) = self.used.get_mut(node) {
            used.remove(requests);
            if used.is_empty() {
                self.used.remove(node);
            }
        }
    }

    fn set_due(&mut self, what: Due, at: Option<u64>) {
        if let Some(before) = self.due_at.remove(&what) {
            self.due.remove(&(before, what));
        }
        if let Some(at) = at {
            self.due_at.insert(what, at);
            self.due.insert((at, what));
        }
    }

    pub(super) fn add_waiting(&mut self, job: JobId, group: u32, retry: Retry, clock_ms: u64) {
        if retry.not_before_ms <= clock_ms {
            self.ready.entry(job).or_default().insert(group);
        } else {
            self.backoff.insert((retry.not_before_ms, job, group));
        }
    }

    pub(super) fn remove_waiting(&mut self, job: JobId, group: u32, retry: Retry) {
        self.backoff.remove(&(retry.not_before_ms, job, group));
        remove_from(&mut self.ready, &job, &group);
    }

    fn set_queued(&mut self, shape: &Arc<Shape>, order: Order, queued: bool) {
        if queued {
            self.queue.entry(Arc::clone(shape)).or_default().insert(order);
        } else {
            remove_from(&mut self.queue, shape, &order);
        }
    }

    /// The first difference to another index, in words.
    pub(super) fn compare(&self, other: &Self) -> Result<(), String> {
        differ("used", &self.used, &other.used)?;
        differ("on_node", &self.on_node, &other.on_node)?;
        differ("due", &self.due, &other.due)?;
        differ("due_at", &self.due_at, &other.due_at)?;
        differ("backoff", &self.backoff, &other.backoff)?;
        differ("ready", &self.ready, &other.ready)?;
        differ("queue", &self.queue, &other.queue)?;
        differ("shapes", &self.shapes, &other.shapes)?;
        differ("dependents", &self.dependents, &other.dependents)?;
        differ("failures", &self.failures, &other.failures)?;
        differ("backlog", &self.backlog, &other.backlog)?;
        differ("reserved", &self.reserved, &other.reserved)?;
        differ("costs", &self.costs, &other.costs)
    }
}

fn differ<T: PartialEq + std::fmt::Debug>(name: &str, rebuilt: &T, kept: &T) -> Result<(), String> {
    if rebuilt == kept {
        return Ok(());
    }
    Err(format!("index {name} is {kept:?}, rebuilt it is {rebuilt:?}"))
}

fn remove_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

fn is_backlog(pod: &Pod) -> bool {
    pod.state == PodState::Finished || pod.asked == Some(super::state::Asked::Prune)
}

/// When a pod failed that is still there to be looked at.
fn failure_at(pod: &Pod) -> Option<u64> {
    let there = !pod.is_live() && pod.is_failure() && !pod.gone && !pod.lost;
    pod.finished_at_ms.filter(|_| there && pod.asked != Some(super::state::Asked::Prune))
}

impl Sched {
    /// Every index, from the state alone.
    pub(super) fn rebuilt_index(&self) -> Index {
        let mut index = Index::default();
        for pod in self.state.foreign.values() {
            index.used.entry(pod.node.clone()).or_default().add(&pod.requests);
        }
        for (key, pod) in &self.state.pods {
            index.add_pod(*key, pod, self.owner_of(*key));
        }
        for (id, job) in &self.state.jobs {
            for other in &job.blocked_on {
                index.dependents.entry(*other).or_default().insert(*id);
            }
            for (group, retry) in &job.waiting {
                index.add_waiting(*id, *group, *retry, self.clock_ms);
            }
            let shape = Arc::new(Shape::of(&job.record.spec, &job.record.datasets));
            let queued = is_startable(job, index.ready.contains_key(id));
            index.set_queued(&shape, self.order_of(job), queued);
            index.shapes.insert(*id, shape);
            index.set_due(Due::Job(*id), self.job_due(&index, *id).map(|(at, _)| at));
        }
        for (key, pod) in &self.state.pods {
            let kept = self.owner_of(*key).is_some_and(|owner| self.is_kept(&index, owner, *key, pod));
            index.set_due(Due::Pod(*key), self.pod_due(*key, kept).map(|(at, _)| at));
        }
        index
    }

    pub(super) fn owner_of(&self, key: PodKey) -> Option<&Owner> {
        self.state.jobs.get(&key.job).map(|job| &job.record.owner)
    }

    pub(super) fn order_of(&self, job: &Job) -> Order {
        (Reverse(self.config.priority(&job.record.spec.priority)), job.record.id)
    }

    /// Whether a failed pod is one of its owner's newest, which stay longer.
    pub(super) fn is_kept(&self, index: &Index, owner: &Owner, key: PodKey, pod: &Pod) -> bool {
        let Some((at, set)) = failure_at(pod).zip(index.failures.get(owner)) else {
            return false;
        };
        set.iter().rev().take(self.config.kept_failed_per_owner).any(|entry| *entry == (at, key))
    }

    /// Adds a pod's record.
    pub(super) fn insert_pod(&mut self, key: PodKey, pod: Pod) {
        let owner = self.owner_of(key).cloned();
        self.index.add_pod(key, &pod, owner.as_ref());
        self.state.pods.insert(key, pod);
        self.touch_pod(key);
    }

    /// Changes a pod's record, indexes and all.
    pub(super) fn edit_pod(&mut self, key: PodKey, change: impl FnOnce(&mut Pod)) {
        let owner = self.owner_of(key).cloned();
        let Some(pod) = self.state.pods.get_mut(&key) else {
            return;
        };
        let was_failure = failure_at(pod);
        self.index.remove_pod(key, pod, owner.as_ref());
        change(pod);
        self.index.add_pod(key, pod, owner.as_ref());
        let changed = was_failure != failure_at(pod);
        self.touch_pod(key);
        if let Some(owner) = owner.filter(|_| changed) {
            self.touch_kept(&owner);
        }
    }

    /// Forgets a pod, and its node or job when nothing else needs them.
    pub(super) fn remove_pod(&mut self, key: PodKey) {
        let owner = self.owner_of(key).cloned();
        let Some(pod) = self.state.pods.remove(&key) else {
            return;
        };
        self.index.remove_pod(key, &pod, owner.as_ref());
        self.index.set_due(Due::Pod(key), None);
        if let Some(owner) = owner.filter(|_| failure_at(&pod).is_some()) {
            self.touch_kept(&owner);
        }
        self.drop_node_if_unneeded(&pod.node);
        self.drop_job_if_unneeded(key.job);
    }

    /// Computes anew when a pod needs a decision.
    pub(super) fn touch_pod(&mut self, key: PodKey) {
        let kept = match (self.owner_of(key), self.state.pods.get(&key)) {
            (Some(owner), Some(pod)) => self.is_kept(&self.index, owner, key, pod),
            _ => false,
        };
        let at = self.pod_due(key, kept).map(|(at, _)| at);
        self.index.set_due(Due::Pod(key), at);
        self.touch_job(key.job);
    }

    /// The pods at both sides of the border between kept and not: one of them may have crossed it.
    fn touch_kept(&mut self, owner: &Owner) {
        let limit = self.config.kept_failed_per_owner;
        let border: Vec<PodKey> = self.index.failures.get(owner).map_or_else(Vec::new, |set| {
            set.iter().rev().skip(limit.saturating_sub(1)).take(2).map(|(_, key)| *key).collect()
        });
        for key in border {
            self.touch_pod(key);
        }
    }

    /// Computes anew whether a job is queued and when it needs a decision.
    pub(super) fn touch_job(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else {
            return;
        };
        let order = self.order_of(job);
        let queued = is_startable(job, self.index.ready.contains_key(&id));
        let shape = match self.index.shapes.get(&id) {
            Some(shape) => Arc::clone(shape),
            None => Arc::new(Shape::of(&job.record.spec, &job.record.datasets)),
        };
        let at = self.job_due(&self.index, id).map(|(at, _)| at);
        self.index.set_queued(&shape, order, queued);
        self.index.shapes.insert(id, shape);
        self.index.set_due(Due::Job(id), at);
        self.changed.insert(id, None);
    }

    /// Drops a job that has ended and has no pods left.
    pub(super) fn drop_job_if_unneeded(&mut self, id: JobId) {
        let ended = self.state.jobs.get(&id).is_some_and(|job| job.outcome.is_some());
        if !ended || self.state.pods.range(pods_of(id)).next().is_some() {
            return;
        }
        let view = self.view(id);
        self.changed.insert(id, view);
        if let Some(shape) = self.index.shapes.remove(&id)
            && let Some(job) = self.state.jobs.remove(&id)
        {
            let order = self.order_of(&job);
            self.index.set_queued(&shape, order, false);
            for other in &job.blocked_on {
                remove_from(&mut self.index.dependents, other, &id);
            }
            for (group, retry) in &job.waiting {
                self.index.remove_waiting(id, *group, *retry);
            }
        }
        self.index.set_due(Due::Job(id), None);
    }

    pub(super) fn drop_node_if_unneeded(&mut self, name: &NodeName) {
        let gone = self.state.nodes.get(name).is_some_and(|node| node.gone);
        if gone && !self.index.on_node.contains_key(name) {
            self.state.nodes.remove(name);
        }
    }

    /// What must hold in every state.
    pub(super) fn check_jobs(&self) -> Result<(), String> {
        for (id, job) in &self.state.jobs {
            let members = job.record.spec.members();
            let pending = (job.groups() - job.fresh) * members + small(job.waiting.len()) * members;
            let live = small(job.live.len()) * members;
            let ended = job.ended.succeeded + job.ended.failed + job.ended.cancelled;
            let tasks = job.record.spec.tasks();
            if pending + live + ended != tasks {
                return Err(format!("{id}: {pending} pending, {live} live, {ended} ended of {tasks} tasks"));
            }
            for (group, live) in &job.live {
                let current =
                    |key: &PodKey| key.attempt.0 == live.tries.attempts && job.group_of(key.task) == *group;
                let pods = self.state.pods.range(pods_of(*id));
                let left = pods.filter(|(key, pod)| current(key) && pod.takes_room()).count();
                if small(left) != live.left || left == 0 {
                    return Err(format!(
                        "{id} group {group}: {left} pods hold room, {} members left",
                        live.left
                    ));
                }
            }
        }
        Ok(())
    }
}

fn is_startable(job: &Job, has_ready: bool) -> bool {
    job.may_start() && (job.fresh < job.groups() || has_ready)
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
