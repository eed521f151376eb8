//! What time brings: stops, losses, archiving, pruning, deadlines and caps.
//!
//! For each pod and each job one function says what is to be done next and when; the index keeps the
//! times, so that waking up costs nothing for what is not due.

use super::Sched;
use super::index::{Index, LiveCost};
use super::state::{Asked, Node, Pod};
use crate::job::{Action, PodState, StopReason};
use rackwright_wire::id::{JobId, PodKey, PodUid};

impl Sched {
    /// What is to be done next about a pod, and when. `kept` says that it is one of its owner's newest
    /// failures.
    pub(super) fn pod_due(&self, key: PodKey, kept: bool) -> Option<(u64, Action)> {
        let pod = self.state.pods.get(&key)?;
        match pod.state {
            PodState::Reserved | PodState::Starting | PodState::Running => self.live_due(key, pod),
            PodState::Finished if pod.asked == Some(Asked::Archive) => None,
            PodState::Finished => Some((0, Action::Archive { pod: key, uid: pod.uid.clone() })),
            PodState::Archived if pod.asked == Some(Asked::Prune) => None,
            PodState::Archived => {
                let uid = pod.uid.clone()?;
                Some((self.prune_at(pod, kept), self.prune(key, uid, pod)))
            }
        }
    }

    /// A pod whose creation is not answered yet is left alone: if it was declared dead and then
    /// created after all, it would run beside its successor.
    fn live_due(&self, key: PodKey, pod: &Pod) -> Option<(u64, Action)> {
        let uid = pod.uid.clone()?;
        let stop = |why| Action::StopPod { pod: key, uid: Some(uid.clone()), why };
        if let Some(why) = pod.stop
            && pod.asked != Some(Asked::Stop)
        {
            return Some((0, stop(why)));
        }
        let unready = self.state.nodes.get(&pod.node).and_then(|node| node.unready_since_ms);
        let lost = unready.zip(self.sight_ms).map(|(since, sight)| {
            let at = self.silent_at(since.max(sight));
            (at, Action::DeclareLost { pod: key, node: pod.node.clone() })
        });
        let limit = self.limit(key, pod).filter(|_| pod.stop.is_none()).map(|(at, why)| (at, stop(why)));
        lost.into_iter().chain(limit).min_by_key(|(at, _)| *at)
    }

    /// When a pod has had its time: to start, or to run. The time to start counts from when the pod was made:
    /// an apiserver that takes long is no fault of the job. What started while nobody looked is seen before it
    /// is over, which is why it also counts from when somebody looks.
    fn limit(&self, key: PodKey, pod: &Pod) -> Option<(u64, StopReason)> {
        let Some(started) = pod.started_at_ms else {
            let since = self.sight_ms?.max(pod.created_at_ms.unwrap_or(pod.placed_at_ms));
            return Some((since.saturating_add(self.config.start_limit_ms), StopReason::NotStarted));
        };
        let spec = &self.state.jobs.get(&key.job)?.record.spec;
        Some((started.saturating_add(spec.max_run_time_s.saturating_mul(1000)), StopReason::TimeLimit))
    }

    /// When a node that says nothing has stopped what it ran.
    fn silent_at(&self, since_ms: u64) -> u64 {
        since_ms.saturating_add(self.config.lease_ms).saturating_add(self.config.lease_grace_ms)
    }

    /// The deletion of an archived pod; by force when its node was away for as long as we could see.
    pub(super) fn prune(&self, key: PodKey, uid: PodUid, pod: &Pod) -> Action {
        let away = self.state.nodes.get(&pod.node).is_none_or(|node| !node.is_usable());
        let silent = self.sight_ms.is_some_and(|sight| self.silent_at(sight) <= self.clock_ms);
        Action::Prune { pod: key, uid, force: away && silent }
    }

    /// When an archived pod may go: at once when nobody will look, after a grace otherwise, much later
    /// for the newest failures of its owner.
    fn prune_at(&self, pod: &Pod, kept: bool) -> u64 {
        let ended = pod.finished_at_ms.unwrap_or_default();
        if pod.lost {
            0
        } else if kept {
            ended.saturating_add(self.config.kept_failed_ms.max(self.config.prune_grace_ms))
        } else {
            ended.saturating_add(self.config.prune_grace_ms)
        }
    }

    /// What is to be done next about a job as a whole, and when; `index` knows what its pods cost.
    pub(super) fn job_due(&self, index: &Index, id: JobId) -> Option<(u64, Action)> {
        let job = self.state.jobs.get(&id)?;
        if job.outcome.is_some() {
            return None;
        }
        if job.is_done() {
            return Some((0, Action::FinishJob { job: id, outcome: job.final_outcome() }));
        }
        if job.stop.is_some() {
            return None;
        }
        let stop = |why| Action::StopJob { job: id, why };
        if job.doomed {
            return Some((0, stop(StopReason::Dependency)));
        }
        let deadline =
            job.record.spec.deadline_s.map(|at_s| (at_s.saturating_mul(1000), stop(StopReason::Deadline)));
        let cap = self.cap_reached_at(index, id).map(|at| (at, stop(StopReason::MoneyCap)));
        deadline.into_iter().chain(cap).min_by_key(|(at, _)| *at)
    }

    /// When the job will have cost its cap, if nothing changes: each live pod costs its rate from its
    /// placement on, so spent + sum(rate * (t - placed)) = cap is solved for t.
    fn cap_reached_at(&self, index: &Index, id: JobId) -> Option<u64> {
        const HOUR_MS: i128 = 3_600_000;
        let job = self.state.jobs.get(&id)?;
        let cap = i128::from(job.record.spec.money_cap?.micros()) * HOUR_MS;
        if job.spent >= cap {
            return Some(0);
        }
        let LiveCost { rate, placed } = index.costs.get(&id).copied().unwrap_or_default();
        if rate <= 0 {
            return None;
        }
        u64::try_from((cap - job.spent + placed + rate - 1) / rate).ok()
    }
}

impl Node {
    /// Whether it is there and ready.
    pub(super) fn is_usable(&self) -> bool {
        self.facts.ready && !self.gone
    }
}
