//! How attempts end, and what becomes of their group: it goes on, is tried again or has ended too.
//!
//! A group is what starts together: a gang, or a single task. Its gravest end decides: a failure costs
//! a retry, a loss or a refusal does not, and what was stopped for good is not tried again.

use super::Sched;
use super::state::{Live, Pod, Retry, pods_of};
use crate::job::{Outcome, PodState, StopReason};
use rackwright_wire::id::{JobId, PodKey, PodUid};

/// How far a kubelet's clock may be from ours: its times are cut to whole seconds, and clocks that are kept
/// right differ by less than another one.
const CLOCKS_DIFFER_MS: u64 = 2_000;

/// How an attempt ended.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) exit_code: Option<i32>,
    pub(super) reason: String,
    pub(super) started_at_ms: Option<u64>,
    pub(super) finished_at_ms: Option<u64>,
    pub(super) lost: bool,
    pub(super) gone: bool,
}

impl End {
    pub(super) fn of(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            exit_code: None,
            reason: reason.into(),
            started_at_ms: None,
            finished_at_ms: None,
            lost: false,
            gone: false,
        }
    }
}

impl Sched {
    /// An attempt has ended: its room is free, and its group goes on, is retried or has ended too.
    pub(super) fn end_pod(&mut self, key: PodKey, uid: Option<&PodUid>, end: End) {
        self.no_place.clear();
        let now = self.clock_ms;
        let Some(pod) = self.state.pods.get(&key) else {
            return;
        };
        if !pod.is_live() {
            // Declared lost before, now seen to have ended: its room is free at last.
            self.edit_pod(key, |pod| pod.lost = false);
            self.settle(key);
            return;
        }
        let stopped = pod.stop.map(StopReason::outcome).filter(|_| end.outcome != Outcome::Succeeded);
        let outcome = stopped.unwrap_or(end.outcome);
        let (started_at, finished_at) = times(pod, &end, now);
        let cost = pod.cost(finished_at);
        let late = pod.stop == Some(StopReason::NotStarted) && outcome == Outcome::Failed;
        let reason = if late { format!("did not start in time: {}", end.reason) } else { end.reason };
        self.edit_pod(key, |pod| {
            pod.state = PodState::Finished;
            pod.uid = pod.uid.take().or_else(|| uid.cloned());
            pod.outcome = Some(outcome);
            pod.exit_code = end.exit_code;
            pod.reason = reason;
            pod.started_at_ms = started_at;
            pod.finished_at_ms = Some(finished_at);
            pod.lost = end.lost;
            pod.gone = end.gone;
            pod.asked = None;
        });
        if let Some(job) = self.state.jobs.get_mut(&key.job) {
            job.spent += cost;
            job.started_at_ms = job.started_at_ms.or(started_at);
            job.finished_at_ms = Some(finished_at);
        }
        self.note_end(key, outcome);
        self.settle(key);
    }

    /// One member of a group has ended; when it ended badly, the others are to stop.
    fn note_end(&mut self, key: PodKey, outcome: Outcome) {
        let Some((group, live)) = self.group_of(key).filter(|_| outcome != Outcome::Succeeded) else {
            return;
        };
        live.worst = live.worst.max_by_gravity(outcome);
        let members = self.state.jobs.get(&key.job).map(|job| job.members(group));
        for task in members.into_iter().flatten() {
            self.want_stop(PodKey { task, ..key }, StopReason::Gang);
        }
    }

    /// Nothing of one member runs any more, or can start again. A lost pod that still exists may be one
    /// that its kubelet has not started yet: its successor waits until it is gone.
    pub(super) fn settle(&mut self, key: PodKey) {
        if self.state.pods.get(&key).is_some_and(Pod::takes_room) {
            return;
        }
        let Some((group, live)) = self.group_of(key) else {
            return;
        };
        live.left = live.left.saturating_sub(1);
        let live = *live;
        if live.left == 0
            && let Some(job) = self.state.jobs.get_mut(&key.job)
        {
            job.live.remove(&group);
            self.conclude(key.job, group, live);
        }
        self.touch_job(key.job);
    }

    /// The live group that an attempt is part of.
    fn group_of(&mut self, key: PodKey) -> Option<(u32, &mut Live)> {
        let job = self.state.jobs.get_mut(&key.job)?;
        let group = job.group_of(key.task);
        let live = job.live.get_mut(&group).filter(|live| live.tries.attempts == key.attempt.0)?;
        Some((group, live))
    }

    /// Every member of a group has ended.
    fn conclude(&mut self, id: JobId, group: u32, live: Live) {
        let Some(job) = self.state.jobs.get_mut(&id) else {
            return;
        };
        let members = job.record.spec.members();
        let Some(worst) = live.worst else {
            job.ended.succeeded += members;
            return;
        };
        if job.stop.is_some() {
            job.ended.cancelled += members;
            return;
        }
        let mut tries = live.tries;
        let (again, wait) = match worst {
            Outcome::Failed => {
                tries.failures += 1;
                (tries.failures <= job.record.spec.retries, self.config.backoff(tries.failures))
            }
            Outcome::Refused => {
                tries.refusals += 1;
                (true, self.config.backoff(tries.refusals))
            }
            Outcome::Lost | Outcome::GangStopped => {
                tries.losses += 1;
                (tries.losses <= self.config.lost_limit, self.config.backoff(tries.losses))
            }
            Outcome::Succeeded
            | Outcome::Cancelled
            | Outcome::TimeLimit
            | Outcome::Deadline
            | Outcome::MoneyCap
            | Outcome::DependencyFailed => (false, 0),
        };
        if !again {
            job.ended.failed += members;
            job.worst.get_or_insert(worst);
            return;
        }
        let retry = Retry { tries, not_before_ms: self.clock_ms.saturating_add(wait) };
        job.waiting.insert(group, retry);
        self.index.add_waiting(id, group, retry, self.clock_ms);
    }

    /// Ends what is left of a job: what waits is cancelled now, what lives is to be stopped.
    pub(super) fn stop_job(&mut self, id: JobId, why: StopReason) {
        let Some(job) = self.state.jobs.get_mut(&id).filter(|job| job.stop.is_none()) else {
            return;
        };
        job.stop = Some(why);
        let members = job.record.spec.members();
        let waiting = u32::try_from(job.waiting.len()).unwrap_or(u32::MAX);
        job.ended.cancelled += (job.groups() - job.fresh + waiting) * members;
        job.fresh = job.groups();
        for (group, retry) in std::mem::take(&mut job.waiting) {
            self.index.remove_waiting(id, group, retry);
        }
        let pods: Vec<PodKey> = self.state.pods.range(pods_of(id)).map(|(key, _)| *key).collect();
        for key in pods {
            self.want_stop(key, why);
        }
        self.touch_job(id);
    }

    fn want_stop(&mut self, key: PodKey, why: StopReason) {
        if self.state.pods.get(&key).is_some_and(|pod| pod.is_live() && pod.stop.is_none()) {
            self.edit_pod(key, |pod| pod.stop = Some(why));
        }
    }
}

/// A time that a kubelet names, between the placement and now; `None` when its clock differs from ours.
pub(super) fn in_our_time(said_ms: u64, placed_ms: u64, now_ms: u64) -> Option<u64> {
    let early = said_ms.saturating_add(CLOCKS_DIFFER_MS) < placed_ms;
    let late = said_ms > now_ms.saturating_add(CLOCKS_DIFFER_MS);
    (!early && !late).then(|| said_ms.clamp(placed_ms, now_ms.max(placed_ms)))
}

/// When an attempt started and ended, by our clock. Where the kubelet's clock differs, only how long it says
/// that the attempt ran counts, from the start that we saw or up to now: bills and limits count durations.
fn times(pod: &Pod, end: &End, now_ms: u64) -> (Option<u64>, u64) {
    let ours = |said: u64| in_our_time(said, pod.placed_at_ms, now_ms);
    if [end.started_at_ms, end.finished_at_ms].into_iter().flatten().all(|said| ours(said).is_some()) {
        let finished = end.finished_at_ms.and_then(ours).unwrap_or(now_ms);
        let started = end.started_at_ms.and_then(ours).or(pod.started_at_ms);
        return (started.map(|at| at.min(finished)), finished);
    }
    let said = end.started_at_ms.zip(end.finished_at_ms);
    let Some(ran_ms) = said.and_then(|(from, until)| until.checked_sub(from)) else {
        return (pod.started_at_ms, now_ms);
    };
    let started = pod.started_at_ms.unwrap_or(now_ms.saturating_sub(ran_ms)).max(pod.placed_at_ms);
    (Some(started), started.saturating_add(ran_ms).min(now_ms))
}

/// Which of several bad ends decides what becomes of a group.
trait Gravity {
    fn max_by_gravity(self, other: Outcome) -> Option<Outcome>;
}

impl Gravity for Option<Outcome> {
    fn max_by_gravity(self, other: Outcome) -> Option<Outcome> {
        let gravity = |outcome: &Outcome| match outcome {
            Outcome::Succeeded => 0,
            Outcome::GangStopped => 1,
            Outcome::Refused => 2,
            Outcome::Lost => 3,
            Outcome::Failed => 4,
            Outcome::Cancelled | Outcome::DependencyFailed | Outcome::Deadline | Outcome::MoneyCap => 5,
            Outcome::TimeLimit => 6,
        };
        self.into_iter().chain([other]).max_by_key(gravity)
    }
}
