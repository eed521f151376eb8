//! How each event changes the state. Total: an event about something unknown, or one that says what is
//! known already, changes nothing; nothing here can fail.

use super::Sched;
use super::attempt::{End, in_our_time};
use super::fit::dominant_share;
use super::state::{Asked, Job, KEPT_CHECKPOINTS, Live, Node, Pod, Sealed, Tries};
use crate::job::{
    Action, CheckpointRef, Event, ForeignPod, JobRecord, NodeFacts, Outcome, PodPhase, PodState, Resources,
    StopReason, What,
};
use rackwright_wire::id::{JobId, NodeName, PodKey, PodUid};

impl Sched {
    /// Takes in one event. Time never goes back: an event with an earlier time counts as happening now.
    pub fn apply(&mut self, event: &Event) {
        self.advance(event.at_ms);
        if !self.is_news(event) {
            return;
        }
        match &event.what {
            What::Submitted { job } => self.on_submitted(job),
            What::CancelRequested { job, .. } => self.stop_job(*job, StopReason::Cancelled),
            What::NodeSeen { node } => self.on_node_seen(node),
            What::NodeGone { node } => self.on_node_gone(node),
            What::ForeignPodSeen { pod } => self.on_foreign(&pod.uid, Some(pod)),
            What::ForeignPodGone { uid } => self.on_foreign(uid, None),
            What::PodObserved { pod, uid, phase, started_at_ms } => {
                self.on_observed(*pod, uid, *phase, *started_at_ms);
            }
            What::PodCreated { pod, uid } => self.on_observed(*pod, uid, PodPhase::Pending, None),
            What::PodNotCreated { pod, reason } => {
                self.end_pod(*pod, None, End { gone: true, ..End::of(Outcome::Failed, reason) });
            }
            What::OrphanSeen { pod, uid, node, requests } => self.on_orphan(*pod, uid, node, requests),
            What::PodRefused { pod, uid, reason } => {
                self.end_pod(*pod, Some(uid), End::of(Outcome::Refused, reason));
            }
            What::AttemptFinished { pod, uid, outcome, exit_code, reason, started_at_ms, finished_at_ms } => {
                let end = End {
                    exit_code: *exit_code,
                    started_at_ms: *started_at_ms,
                    finished_at_ms: *finished_at_ms,
                    ..End::of(*outcome, reason)
                };
                self.end_pod(*pod, Some(uid), end);
            }
            What::AttemptLost { pod, uid, reason } => {
                self.end_pod(*pod, Some(uid), End::of(Outcome::Lost, reason));
            }
            What::PodGone { pod, uid } => self.on_pod_gone(*pod, uid.as_ref()),
            What::CheckpointSealed { pod, step, set } => self.on_sealed(*pod, *step, set),
            What::CheckpointRejected { pod, step } => self.on_rejected(*pod, *step),
            What::Archived { pod } => self.on_archived(*pod),
            What::Decided { action } => self.on_decided(action),
            What::Tick => {}
        }
    }

    /// Lets time pass: retries whose turn has come may be placed.
    pub(super) fn advance(&mut self, now_ms: u64) {
        self.clock_ms = self.clock_ms.max(now_ms);
        while let Some((at, job, group)) = self.index.backoff.first().copied()
            && at <= self.clock_ms
        {
            self.index.backoff.pop_first();
            self.index.ready.entry(job).or_default().insert(group);
            self.touch_job(job);
        }
    }

    fn on_submitted(&mut self, record: &JobRecord) {
        let mut job = Job::new(record.clone());
        for other in &record.spec.depends_on {
            if record.dependencies_met.contains(other) {
                continue;
            }
            match self.state.outcomes.get(other) {
                Some(Outcome::Succeeded) => {}
                None if self.state.jobs.contains_key(other) => {
                    job.blocked_on.insert(*other);
                    self.index.dependents.entry(*other).or_default().insert(record.id);
                }
                _ => job.doomed = true,
            }
        }
        self.state.jobs.insert(record.id, job);
        self.touch_job(record.id);
    }

    fn on_node_seen(&mut self, facts: &NodeFacts) {
        let since = self.state.nodes.get(&facts.name).and_then(|node| node.unready_since_ms);
        let unready_since_ms = if facts.ready { None } else { since.or(Some(self.clock_ms)) };
        let node = Node { facts: facts.clone(), unready_since_ms, gone: false };
        self.state.nodes.insert(facts.name.clone(), node);
        self.touch_node(&facts.name);
    }

    fn on_node_gone(&mut self, name: &NodeName) {
        if let Some(node) = self.state.nodes.get_mut(name) {
            node.gone = true;
            node.unready_since_ms.get_or_insert(self.clock_ms);
        }
        self.touch_node(name);
        self.drop_node_if_unneeded(name);
    }

    fn touch_node(&mut self, name: &NodeName) {
        self.no_place.clear();
        let pods: Vec<PodKey> = self.index.on_node.get(name).into_iter().flatten().copied().collect();
        for key in pods {
            self.touch_pod(key);
        }
    }

    fn on_foreign(&mut self, uid: &PodUid, seen: Option<&ForeignPod>) {
        self.no_place.clear();
        if let Some(before) = self.state.foreign.remove(uid) {
            self.index.remove_used(&before.node, &before.requests);
        }
        if let Some(pod) = seen {
            self.index.used.entry(pod.node.clone()).or_default().add(&pod.requests);
            self.state.foreign.insert(uid.clone(), pod.clone());
        }
    }

    fn on_observed(&mut self, key: PodKey, uid: &PodUid, phase: PodPhase, started_at_ms: Option<u64>) {
        let now = self.clock_ms;
        self.edit_pod(key, |pod| {
            if pod.uid.is_none() {
                pod.uid = Some(uid.clone());
                pod.created_at_ms = Some(now);
            }
            pod.asked = pod.asked.filter(|asked| *asked != Asked::Create);
            if pod.state == PodState::Reserved {
                pod.state = PodState::Starting;
            }
            if phase == PodPhase::Running {
                pod.state = PodState::Running;
                let said = started_at_ms.and_then(|at| in_our_time(at, pod.placed_at_ms, now));
                pod.started_at_ms = Some(said.unwrap_or(now));
            }
        });
        if let Some(started) = self.state.pods.get(&key).and_then(|pod| pod.started_at_ms)
            && let Some(job) = self.state.jobs.get_mut(&key.job)
        {
            job.started_at_ms.get_or_insert(started);
        }
    }

    /// A pod of an attempt that nobody remembers runs on until its record is deleted; until then it
    /// takes room. It counts as lost: there is nothing to retry.
    fn on_orphan(&mut self, key: PodKey, uid: &PodUid, node: &NodeName, requests: &Resources) {
        let pod = Pod {
            uid: Some(uid.clone()),
            state: PodState::Finished,
            outcome: Some(Outcome::Lost),
            reason: "is not known to the scheduler".to_owned(),
            finished_at_ms: Some(self.clock_ms),
            lost: true,
            asked: None,
            ..reserved(node, requests, self.clock_ms)
        };
        self.insert_pod(key, pod);
    }

    fn on_pod_gone(&mut self, key: PodKey, uid: Option<&PodUid>) {
        let Some(pod) = self.state.pods.get(&key) else {
            return;
        };
        if pod.is_live() {
            let reason = if uid.is_some() { "its pod was deleted" } else { "its pod was never created" };
            self.end_pod(key, uid, End { gone: true, ..End::of(Outcome::Lost, reason) });
            return;
        }
        let (archived, lost) = (pod.state == PodState::Archived, pod.lost);
        self.no_place.clear();
        self.edit_pod(key, |pod| {
            pod.gone = true;
            pod.asked = pod.asked.filter(|asked| *asked != Asked::Prune);
        });
        if lost {
            self.settle(key);
        }
        if archived {
            self.remove_pod(key);
        }
    }

    fn on_archived(&mut self, key: PodKey) {
        self.edit_pod(key, |pod| {
            pod.state = PodState::Archived;
            pod.asked = None;
        });
        if let Some(job) = self.state.jobs.get_mut(&key.job) {
            let group = job.group_of(key.task);
            if !job.live.contains_key(&group) && !job.waiting.contains_key(&group) {
                job.checkpoints.remove(&key.task.0);
            }
        }
        if self.state.pods.get(&key).is_some_and(|pod| pod.gone || pod.uid.is_none()) {
            self.remove_pod(key);
        }
    }

    fn on_decided(&mut self, action: &Action) {
        match action {
            Action::CreatePod { pod, node, resume } => self.on_placed(*pod, node, resume.as_ref()),
            Action::StopPod { pod, why, .. } => self.edit_pod(*pod, |pod| {
                pod.stop.get_or_insert(*why);
                pod.asked = Some(Asked::Stop);
            }),
            Action::DeclareLost { pod, node } => {
                let reason = format!("{node} could not be reached for longer than its lease");
                self.end_pod(*pod, None, End { lost: true, ..End::of(Outcome::Lost, reason) });
            }
            Action::Archive { pod, .. } => self.edit_pod(*pod, |pod| pod.asked = Some(Asked::Archive)),
            Action::Prune { pod, .. } => self.edit_pod(*pod, |pod| pod.asked = Some(Asked::Prune)),
            Action::FinishJob { job, outcome } => self.on_job_finished(*job, *outcome),
            Action::StopJob { job, why } => self.stop_job(*job, *why),
        }
    }

    fn on_placed(&mut self, key: PodKey, node: &NodeName, resume: Option<&CheckpointRef>) {
        let Some(job) = self.state.jobs.get_mut(&key.job) else {
            return;
        };
        let group = job.group_of(key.task);
        if !job.live.contains_key(&group) {
            let tries = match job.waiting.remove(&group) {
                Some(retry) => {
                    self.index.remove_waiting(key.job, group, retry);
                    retry.tries
                }
                None => Tries::default(),
            };
            job.fresh = job.fresh.max(group + 1);
            let tries = Tries { attempts: key.attempt.0, ..tries };
            job.live.insert(group, Live { tries, left: job.record.spec.members(), worst: None });
        }
        let requests = job.record.spec.resources.clone();
        let cap = job.record.spec.money_cap;
        let facts = self.state.nodes.get(node).map(|node| &node.facts);
        let price = facts.and_then(|facts| facts.price_per_hour.map(|price| (price, &facts.allocatable)));
        let rate = price.filter(|(price, _)| cap.is_some_and(|cap| cap.currency() == price.currency()));
        let rate_micros = rate.map_or(0, |(price, allocatable)| {
            let share = i128::from(dominant_share(&requests, allocatable));
            i64::try_from(i128::from(price.micros()) * share / 1_000_000).unwrap_or(i64::MAX)
        });
        let pod = reserved(node, &requests, self.clock_ms);
        self.insert_pod(key, Pod { resumed: resume.cloned(), rate_micros, ..pod });
    }

    fn on_job_finished(&mut self, id: JobId, outcome: Outcome) {
        let now = self.clock_ms;
        if let Some(job) = self.state.jobs.get_mut(&id) {
            job.outcome = Some(outcome);
            job.finished_at_ms.get_or_insert(now);
        }
        self.touch_job(id);
        self.state.outcomes.insert(id, outcome);
        while self.state.outcomes.len() > self.config.remembered_outcomes {
            self.state.outcomes.pop_first();
        }
        for dependent in self.index.dependents.remove(&id).unwrap_or_default() {
            if let Some(job) = self.state.jobs.get_mut(&dependent) {
                job.blocked_on.remove(&id);
                job.doomed |= outcome != Outcome::Succeeded;
            }
            self.touch_job(dependent);
        }
        self.drop_job_if_unneeded(id);
    }

    fn on_sealed(&mut self, key: PodKey, step: u64, set: &str) {
        if let Some(job) = self.state.jobs.get_mut(&key.job) {
            let known = job.checkpoints.entry(key.task.0).or_default();
            known.push(Sealed { attempt: key.attempt, step, set: set.to_owned() });
            known.sort_by_key(|sealed| (sealed.step, sealed.attempt));
            if known.len() > KEPT_CHECKPOINTS {
                known.remove(0);
            }
        }
    }

    fn on_rejected(&mut self, key: PodKey, step: u64) {
        if let Some(known) =
            self.state.jobs.get_mut(&key.job).and_then(|job| job.checkpoints.get_mut(&key.task.0))
        {
            known.retain(|sealed| sealed.attempt != key.attempt || sealed.step != step);
        }
    }
}

/// A pod whose creation is asked for.
fn reserved(node: &NodeName, requests: &Resources, now_ms: u64) -> Pod {
    Pod {
        node: node.clone(),
        uid: None,
        state: PodState::Reserved,
        outcome: None,
        exit_code: None,
        reason: String::new(),
        placed_at_ms: now_ms,
        created_at_ms: None,
        started_at_ms: None,
        finished_at_ms: None,
        requests: requests.clone(),
        resumed: None,
        rate_micros: 0,
        stop: None,
        lost: false,
        gone: false,
        asked: Some(Asked::Create),
    }
}
