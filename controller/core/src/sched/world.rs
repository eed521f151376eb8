//! A small world to test the scheduler in: an API server, kubelets, containers, an executor, a log.
//!
//! It knows the truth (which containers really run) and breaks the laws loudly: it panics when a task
//! runs twice at once, or a pod is deleted before its history row is durable. Anything may be slow,
//! cut off or killed, the controller included; what the controller keeps is its log.

#![expect(clippy::wildcard_enum_match_arm, reason = "tests ask for one kind and pass over the rest")]

use super::{Config, Sched, Verdict};
use crate::job::{
    Action, Array, Capacity, Checkpointing, Class, DatasetPin, Event, ForeignPod, Gang, HeldDataset,
    JobRecord, JobSpec, NodeFacts, Outcome, PodPhase, Resources, What,
};
use rackwright_wire::id::*;
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) const NODES: usize = 3;
pub(super) const LEASE_MS: u64 = 1_000;

pub(super) fn config() -> Config {
    Config {
        lease_ms: LEASE_MS,
        lease_grace_ms: 200,
        backoff_ms: 100,
        backoff_max_ms: 800,
        prune_grace_ms: 500,
        kept_failed_per_owner: 2,
        kept_failed_ms: 5_000,
        max_backlog: 6,
        max_reserved: 8,
        hold_after_ms: 3_000,
        ..Config::default()
    }
}

pub(super) fn node_name(index: usize) -> NodeName {
    NodeName::new(&format!("ml{}", index + 1)).unwrap()
}

pub(super) fn version(number: u8) -> DatasetVersion {
    DatasetVersion::new(&format!("{number:02x}").repeat(32)).unwrap()
}

pub(super) fn job_id(number: usize) -> JobId {
    JobId::new(1_000 + number as u64).unwrap()
}

pub(super) fn resources(cpu: u64, memory_mib: u32) -> Resources {
    let cpu = MilliCpu::new(cpu).unwrap();
    Resources { cpu, memory: Bytes::mib(memory_mib), gpu: MilliGpu::ZERO, gpu_type: None }
}

pub(super) fn spec(cpu: u64, memory_mib: u32) -> JobSpec {
    JobSpec {
        name: JobName::new("fit").unwrap(),
        project: Project::new("default").unwrap(),
        model: None,
        datasets: Vec::new(),
        image: "busybox".to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: resources(cpu, memory_mib),
        array: None,
        gang: None,
        priority: "normal".to_owned(),
        class: Class::Flexible,
        max_run_time_s: 86_400,
        deadline_s: None,
        money_cap: None,
        retries: 0,
        checkpoint: None,
        results: false,
        cache_key: None,
        depends_on: Vec::new(),
    }
}

pub(super) fn record(id: JobId, spec: JobSpec, at_ms: u64) -> JobRecord {
    JobRecord {
        version: crate::job::JOB_VERSION,
        id,
        owner: Owner::new(if id.get().is_multiple_of(2) { "ada" } else { "grace" }).unwrap(),
        team: Team::new("vision").unwrap(),
        submitted_at_ms: at_ms,
        spec,
        datasets: Vec::new(),
        dependencies_met: Vec::new(),
    }
}

pub(super) fn facts(index: usize) -> NodeFacts {
    let cpu = MilliCpu::new(2_000).unwrap();
    let all = Capacity { cpu, memory: Bytes::mib(4096), gpu: MilliGpu::ZERO, pods: 4 };
    let held = [HeldDataset { version: version(1), generation: 1 }];
    NodeFacts {
        name: node_name(index),
        ready: true,
        labels: [("rackwright.dev/role".to_owned(), "ml".to_owned())].into(),
        taints: Vec::new(),
        capacity: all,
        allocatable: all,
        gpu_type: None,
        datasets: [(DatasetName::new("apt").unwrap(), held.to_vec())].into(),
        price_per_hour: Some("3600 EUR".parse().unwrap()),
    }
}

/// What a random job looks like; small numbers so that shrinking makes small jobs.
#[derive(Debug, Clone)]
pub(super) struct JobKind {
    pub(super) cpu: u64,
    pub(super) tasks: u32,
    pub(super) gang: bool,
    pub(super) spread: bool,
    pub(super) priority: u8,
    pub(super) retries: u32,
    pub(super) dataset: u8,
    pub(super) depends: bool,
    pub(super) limited: u8,
}

impl JobKind {
    fn record(&self, id: JobId, at_ms: u64, before: Option<JobId>) -> JobRecord {
        let mut spec = spec(self.cpu, 256);
        spec.array = (!self.gang && self.tasks > 1).then_some(Array { count: self.tasks });
        spec.gang = self.gang.then_some(Gang { size: self.tasks, spread: self.spread });
        spec.priority = ["low", "normal", "high"][usize::from(self.priority % 3)].to_owned();
        spec.retries = self.retries;
        spec.checkpoint = Some(Checkpointing { interval_s: 1 });
        spec.depends_on = before.into_iter().filter(|_| self.depends).collect();
        match self.limited % 8 {
            5 => spec.max_run_time_s = 1,
            6 => spec.deadline_s = Some(at_ms / 1000 + 3),
            7 => spec.money_cap = Some("2 EUR".parse().unwrap()),
            _ => {}
        }
        let mut record = record(id, spec, at_ms);
        if self.dataset > 0 {
            let generation = u64::from(self.dataset);
            let name = DatasetName::new("apt").unwrap();
            record.datasets = vec![DatasetPin { name, version: version(self.dataset), generation }];
        }
        record
    }
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Submit(JobKind),
    Cancel(usize),
    /// The executor carries out one action that waits.
    Execute(usize),
    /// The controller takes in some of what it was told.
    Deliver(usize),
    Decide,
    /// A kubelet does the next thing about a pod.
    Kubelet(usize),
    /// A container ends.
    Exit(usize, bool),
    Checkpoint(usize),
    /// A node loses its network, or gets it back.
    Cut(usize),
    Heal(usize),
    /// A node loses power; it comes back with `Heal`.
    PowerOff(usize),
    Foreign(usize, u64),
    ForeignEnds(usize),
    /// A person deletes a pod behind our back.
    KubectlDelete(usize),
    NewDataset(usize),
    Pass(u64),
    /// The controller dies and starts again from its log.
    Crash,
    /// The periodic full pass.
    FullPass,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pending,
    Running,
    Ended(Outcome),
}

#[derive(Debug, Clone)]
struct ApiPod {
    key: PodKey,
    node: usize,
    phase: Phase,
    requests: Resources,
    stop: bool,
    deleting: bool,
}

#[derive(Debug, Default, Clone)]
struct Server {
    cut_at_ms: Option<u64>,
    off: bool,
}

impl Server {
    fn is_reachable(&self) -> bool {
        self.cut_at_ms.is_none() && !self.off
    }
}

pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) sched: Sched,
    pub(super) log: Vec<Event>,
    api: BTreeMap<PodUid, ApiPod>,
    /// The truth: containers that run, by pod uid.
    containers: BTreeMap<PodUid, (PodKey, usize)>,
    servers: Vec<Server>,
    facts: Vec<NodeFacts>,
    foreign: BTreeMap<PodUid, ForeignPod>,
    inbox: VecDeque<What>,
    todo: Vec<Action>,
    pub(super) history: BTreeSet<PodKey>,
    pub(super) accepted: Vec<JobId>,
    pub(super) finished: BTreeMap<JobId, Outcome>,
    snapshot: Option<(usize, super::Snapshot)>,
    uids: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            now_ms: 10_000,
            sched: Sched::new(config()),
            log: Vec::new(),
            api: BTreeMap::new(),
            containers: BTreeMap::new(),
            servers: vec![Server::default(); NODES],
            facts: (0..NODES).map(facts).collect(),
            foreign: BTreeMap::new(),
            inbox: VecDeque::new(),
            todo: Vec::new(),
            history: BTreeSet::new(),
            accepted: Vec::new(),
            finished: BTreeMap::new(),
            snapshot: None,
            uids: 0,
        };
        for node in 0..NODES {
            world.tell_node(node, true);
        }
        world.deliver(usize::MAX);
        world
    }

    fn uid(&mut self) -> PodUid {
        self.uids += 1;
        PodUid::new(&format!("uid-{:05}", self.uids)).unwrap()
    }

    /// Logs and applies, as the real loop does.
    pub(super) fn happen(&mut self, what: What) {
        let event = Event::new(self.now_ms, what);
        if self.sched.is_news(&event) {
            self.log.push(event.clone());
            self.sched.apply(&event);
        }
    }

    fn tell_node(&mut self, node: usize, ready: bool) {
        self.facts[node].ready = ready;
        self.inbox.push_back(What::NodeSeen { node: Box::new(self.facts[node].clone()) });
    }

    fn deliver(&mut self, count: usize) {
        for _ in 0..count.min(self.inbox.len()) {
            let what = self.inbox.pop_front().unwrap();
            self.happen(what);
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::Submit(kind) => self.submit(kind),
            Step::Cancel(index) => {
                if let Some(job) = pick(&self.accepted, *index) {
                    self.happen(What::CancelRequested { job, by: Owner::new("ada").unwrap() });
                }
            }
            Step::Execute(index) => self.execute(*index),
            Step::Deliver(count) => self.deliver(*count),
            Step::Decide => self.decide(),
            Step::Kubelet(index) => self.kubelet(*index),
            Step::Exit(index, good) => {
                self.exit(*index, if *good { Outcome::Succeeded } else { Outcome::Failed });
            }
            Step::Checkpoint(index) => self.checkpoint(*index),
            Step::Cut(node) => self.cut(*node % NODES),
            Step::PowerOff(node) => self.power_off(*node % NODES),
            Step::Heal(node) => self.heal(*node % NODES),
            Step::Foreign(node, cpu) => self.foreign(*node % NODES, *cpu),
            Step::ForeignEnds(index) => self.foreign_ends(*index),
            Step::KubectlDelete(index) => self.kubectl_delete(*index),
            Step::NewDataset(node) => self.new_dataset(*node % NODES),
            Step::Pass(ms) => self.pass(*ms),
            Step::Crash => self.crash(),
            Step::FullPass => self.full_pass(),
        }
    }

    fn submit(&mut self, kind: &JobKind) {
        let id = job_id(self.accepted.len());
        let record = kind.record(id, self.now_ms, self.accepted.last().copied());
        self.accepted.push(id);
        self.happen(What::Submitted { job: Box::new(record) });
    }

    pub(super) fn decide(&mut self) {
        for action in self.sched.decide(self.now_ms) {
            self.log.push(Event::decided(self.now_ms, action.clone()));
            if let Action::FinishJob { job, outcome } = &action {
                assert!(self.finished.insert(*job, *outcome).is_none(), "{job} finished twice");
            }
            self.todo.push(action);
        }
    }

    /// The chosen action, or an earlier one about the same pod.
    fn execute(&mut self, index: usize) {
        if self.todo.is_empty() {
            return;
        }
        let pod = pod_of(&self.todo[index % self.todo.len()]);
        let first = self.todo.iter().position(|action| pod_of(action) == pod).unwrap();
        match self.todo.remove(first) {
            Action::CreatePod { pod, node, .. } => self.create(pod, &node),
            Action::StopPod { pod, uid, .. } => self.stop(pod, uid),
            Action::Archive { pod, .. } => {
                self.history.insert(pod);
                self.inbox.push_back(What::Archived { pod });
            }
            Action::Prune { pod, uid, force } => self.prune(pod, uid, force),
            Action::DeclareLost { .. } | Action::FinishJob { .. } | Action::StopJob { .. } => {}
        }
    }

    fn create(&mut self, key: PodKey, node: &NodeName) {
        let existing = self.api.iter().find(|(_, pod)| pod.key == key).map(|(uid, _)| uid.clone());
        let uid = existing.unwrap_or_else(|| {
            let uid = self.uid();
            let node = (0..NODES).find(|index| node_name(*index) == *node).unwrap();
            let requests =
                self.sched.state.pods.get(&key).map_or_else(|| resources(1, 1), |pod| pod.requests.clone());
            let pod = ApiPod { key, node, phase: Phase::Pending, requests, stop: false, deleting: false };
            self.api.insert(uid.clone(), pod);
            uid
        });
        self.inbox.push_back(What::PodCreated { pod: key, uid });
    }

    fn stop(&mut self, key: PodKey, uid: Option<PodUid>) {
        let by_name = || self.api.iter().find(|(_, pod)| pod.key == key).map(|(uid, _)| uid.clone());
        match uid.or_else(by_name) {
            Some(known) if self.api.contains_key(&known) => {
                self.api.get_mut(&known).unwrap().stop = true;
                self.inbox.push_back(What::PodCreated { pod: key, uid: known });
            }
            Some(known) => self.inbox.push_back(What::PodGone { pod: key, uid: Some(known) }),
            None => self.inbox.push_back(What::PodGone { pod: key, uid: None }),
        }
    }

    fn prune(&mut self, key: PodKey, uid: PodUid, force: bool) {
        assert!(self.history.contains(&key), "law 7: {key} is pruned before its history row is durable");
        let Some(pod) = self.api.get_mut(&uid) else {
            self.inbox.push_back(What::PodGone { pod: key, uid: Some(uid) });
            return;
        };
        pod.deleting = true;
        let server = &self.servers[pod.node];
        let silent = server.off || server.cut_at_ms.is_some_and(|at| self.now_ms >= at + LEASE_MS);
        if (force && silent) || matches!(pod.phase, Phase::Ended(_)) {
            self.remove_from_api(&uid);
        }
    }

    fn remove_from_api(&mut self, uid: &PodUid) {
        if let Some(pod) = self.api.remove(uid) {
            self.inbox.push_back(What::PodGone { pod: pod.key, uid: Some(uid.clone()) });
        }
    }

    /// The next thing that a reachable kubelet does about one of its pods.
    fn kubelet(&mut self, index: usize) {
        let reachable = |pod: &ApiPod| self.servers[pod.node].is_reachable();
        let open = |pod: &ApiPod| !matches!(pod.phase, Phase::Ended(_)) || pod.deleting;
        let pods: Vec<PodUid> = self
            .api
            .iter()
            .filter(|(_, pod)| reachable(pod) && open(pod))
            .map(|(uid, _)| uid.clone())
            .collect();
        let Some(uid) = pick(&pods, index) else {
            return;
        };
        let pod = self.api[&uid].clone();
        if pod.deleting {
            self.containers.remove(&uid);
            self.remove_from_api(&uid);
        } else if pod.stop {
            self.end(&uid, Outcome::Failed);
        } else if pod.phase == Phase::Pending && self.kubelet_admits(&pod) {
            self.start(&uid, &pod);
        } else if pod.phase == Phase::Pending {
            self.api.get_mut(&uid).unwrap().phase = Phase::Ended(Outcome::Refused);
            self.inbox.push_back(What::PodRefused { pod: pod.key, uid, reason: "OutOfcpu".to_owned() });
        }
    }

    fn kubelet_admits(&self, pod: &ApiPod) -> bool {
        let ours =
            self.containers.iter().filter(|(_, (_, node))| *node == pod.node).map(|(uid, (key, _))| {
                let requests = self.api.get(uid).map(|pod| pod.requests.cpu.get());
                requests
                    .or_else(|| Some(self.sched.state.pods.get(key)?.requests.cpu.get()))
                    .unwrap_or_default()
            });
        let name = node_name(pod.node);
        let others = self.foreign.values().filter(|pod| pod.node == name).map(|pod| pod.requests.cpu.get());
        ours.chain(others).sum::<u64>() + pod.requests.cpu.get() <= 2_000
    }

    fn start(&mut self, uid: &PodUid, pod: &ApiPod) {
        let key = pod.key;
        let twin = self.containers.values().find(|(other, _)| (other.job, other.task) == (key.job, key.task));
        assert!(twin.is_none(), "law 6: {key} starts while {} runs", twin.unwrap().0);
        self.containers.insert(uid.clone(), (key, pod.node));
        self.api.get_mut(uid).unwrap().phase = Phase::Running;
        let phase = PodPhase::Running;
        self.inbox.push_back(What::PodObserved {
            pod: key,
            uid: uid.clone(),
            phase,
            started_at_ms: Some(self.now_ms),
        });
    }

    /// A container ends and its kubelet says so, now or when it is reachable again.
    fn end(&mut self, uid: &PodUid, outcome: Outcome) {
        self.containers.remove(uid);
        let Some(pod) = self.api.get_mut(uid) else {
            return;
        };
        pod.phase = Phase::Ended(outcome);
        let key = pod.key;
        if self.servers[pod.node].is_reachable() {
            self.tell_end(key, uid, outcome);
        }
    }

    fn tell_end(&mut self, pod: PodKey, uid: &PodUid, outcome: Outcome) {
        let uid = uid.clone();
        self.inbox.push_back(match outcome {
            Outcome::Lost => What::AttemptLost { pod, uid, reason: "rebooted".to_owned() },
            Outcome::Refused => What::PodRefused { pod, uid, reason: "OutOfcpu".to_owned() },
            _ => What::AttemptFinished {
                pod,
                uid,
                outcome,
                exit_code: Some(i32::from(outcome != Outcome::Succeeded)),
                reason: String::new(),
                started_at_ms: None,
                finished_at_ms: Some(self.now_ms),
            },
        });
    }

    fn exit(&mut self, index: usize, outcome: Outcome) {
        let running: Vec<PodUid> = self.containers.keys().cloned().collect();
        if let Some(uid) = pick(&running, index) {
            self.end(&uid, outcome);
        }
    }

    fn checkpoint(&mut self, index: usize) {
        let running: Vec<PodKey> = self.containers.values().map(|(key, _)| *key).collect();
        if let Some(pod) = pick(&running, index) {
            let step = self.now_ms;
            self.inbox.push_back(What::CheckpointSealed {
                pod,
                step,
                set: format!("checkpoint-{pod}-{step}"),
            });
        }
    }

    fn cut(&mut self, node: usize) {
        if self.servers[node].is_reachable() {
            self.servers[node].cut_at_ms = Some(self.now_ms);
            self.tell_node(node, false);
        }
    }

    fn power_off(&mut self, node: usize) {
        if self.servers[node].off {
            return;
        }
        if self.servers[node].is_reachable() {
            self.tell_node(node, false);
        }
        self.servers[node] = Server { cut_at_ms: None, off: true };
        self.stop_containers(node);
    }

    /// Containers on a node end without anybody being told.
    fn stop_containers(&mut self, node: usize) {
        let here: Vec<PodUid> =
            self.containers.iter().filter(|(_, (_, on))| *on == node).map(|(uid, _)| uid.clone()).collect();
        for uid in here {
            self.containers.remove(&uid);
            if let Some(pod) = self.api.get_mut(&uid) {
                pod.phase = Phase::Ended(Outcome::Lost);
            }
        }
    }

    fn heal(&mut self, node: usize) {
        if self.servers[node].is_reachable() {
            return;
        }
        self.servers[node] = Server::default();
        // The kubelet kills what the API server no longer has, and reports the rest.
        let api = &self.api;
        self.containers.retain(|uid, (_, on)| *on != node || api.contains_key(uid));
        let mine = |pod: &ApiPod| (pod.node == node).then_some((pod.key, pod.phase));
        let ended: Vec<(PodUid, PodKey, Outcome)> = self
            .api
            .iter()
            .filter_map(|(uid, pod)| match mine(pod)? {
                (key, Phase::Ended(outcome)) => Some((uid.clone(), key, outcome)),
                _ => None,
            })
            .collect();
        for (uid, key, outcome) in ended {
            self.tell_end(key, &uid, outcome);
        }
        self.tell_node(node, true);
    }

    fn foreign(&mut self, node: usize, cpu: u64) {
        let uid = self.uid();
        let name = format!("default/web-{uid}");
        let pod = ForeignPod { uid: uid.clone(), name, node: node_name(node), requests: resources(cpu, 64) };
        self.foreign.insert(uid, pod.clone());
        self.inbox.push_back(What::ForeignPodSeen { pod });
    }

    fn foreign_ends(&mut self, index: usize) {
        let uids: Vec<PodUid> = self.foreign.keys().cloned().collect();
        if let Some(uid) = pick(&uids, index) {
            self.foreign.remove(&uid);
            self.inbox.push_back(What::ForeignPodGone { uid });
        }
    }

    fn kubectl_delete(&mut self, index: usize) {
        let uids: Vec<PodUid> = self.api.keys().cloned().collect();
        if let Some(uid) = pick(&uids, index) {
            if matches!(self.api[&uid].phase, Phase::Ended(_)) {
                self.remove_from_api(&uid);
            } else {
                self.api.get_mut(&uid).unwrap().deleting = true;
            }
        }
    }

    fn new_dataset(&mut self, node: usize) {
        let held =
            [(1, 1), (2, 2)].map(|(number, generation)| HeldDataset { version: version(number), generation });
        let count = 1 + self.facts[node].datasets.len() % 2;
        self.facts[node].datasets = [(DatasetName::new("apt").unwrap(), held[..count].to_vec())].into();
        if self.facts[node].datasets.values().flatten().count() == 1 {
            self.facts[node].datasets = [(DatasetName::new("apt").unwrap(), held.to_vec())].into();
        }
        self.tell_node(node, self.servers[node].is_reachable());
    }

    /// Time passes; a node that is cut off stops its job pods when its lease ends.
    pub(super) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        for node in 0..NODES {
            if self.servers[node].cut_at_ms.is_some_and(|at| self.now_ms >= at + LEASE_MS) {
                self.stop_containers(node);
            }
        }
    }

    /// The controller dies: what it was told and had not logged, and what it had not carried out, is
    /// forgotten. Its successor has the log, half of the time with a snapshot.
    fn crash(&mut self) {
        self.inbox.clear();
        self.todo.clear();
        self.check_replay();
        let (from, mut sched) = match self.snapshot.take() {
            Some((from, snapshot)) => (from, Sched::restore(config(), snapshot)),
            None => (0, Sched::new(config())),
        };
        for event in &self.log[from..] {
            sched.apply(event);
        }
        assert_eq!(sched.snapshot().state, self.sched.snapshot().state, "law 16: replay differs");
        self.sched = sched;
        if self.log.len().is_multiple_of(2) {
            self.snapshot = Some((self.log.len(), self.sched.snapshot()));
        }
        self.full_pass();
    }

    /// Law 16: the log alone gives the same state.
    pub(super) fn check_replay(&self) {
        let mut again = Sched::new(config());
        for event in &self.log {
            let written = serde_json::to_string(event).unwrap();
            again.apply(&serde_json::from_str(&written).unwrap());
        }
        assert_eq!(again.snapshot().state, self.sched.snapshot().state, "law 16: replay differs");
        again.sanity_check().unwrap();
    }

    /// Everything is listed, and what was asked and not answered is asked again.
    fn full_pass(&mut self) {
        self.deliver(usize::MAX);
        let expected = self.sched.expected_pods();
        let listed: BTreeSet<PodUid> = self.api.keys().cloned().collect();
        for what in Sched::vanished(&expected, &listed) {
            self.happen(what);
        }
        for (uid, pod) in self.api.clone() {
            let node = node_name(pod.node);
            if !self.sched.knows(&pod.key) {
                self.happen(What::OrphanSeen { pod: pod.key, uid, node, requests: pod.requests });
                continue;
            }
            let phase = if pod.phase == Phase::Running { PodPhase::Running } else { PodPhase::Pending };
            self.happen(What::PodObserved { pod: pod.key, uid: uid.clone(), phase, started_at_ms: None });
            if let Phase::Ended(outcome) = pod.phase
                && self.servers[pod.node].is_reachable()
            {
                self.tell_end(pod.key, &uid, outcome);
            }
        }
        for node in 0..NODES {
            self.tell_node(node, self.servers[node].is_reachable());
        }
        let foreign: Vec<PodUid> = self.sched.state.foreign.keys().cloned().collect();
        for uid in foreign.into_iter().filter(|uid| !self.foreign.contains_key(uid)) {
            self.inbox.push_back(What::ForeignPodGone { uid });
        }
        for pod in self.foreign.values() {
            self.inbox.push_back(What::ForeignPodSeen { pod: pod.clone() });
        }
        self.deliver(usize::MAX);
        let waiting: BTreeSet<PodKey> = self.todo.iter().filter_map(pod_of).collect();
        let again = self.sched.outstanding();
        self.todo.extend(
            again.into_iter().filter(|action| pod_of(action).is_none_or(|pod| !waiting.contains(&pod))),
        );
    }

    /// Everything heals, everything succeeds, nobody asks for anything new: all must come to an end.
    pub(super) fn settle(&mut self) {
        (0..NODES).for_each(|node| self.heal(node));
        while !self.foreign.is_empty() {
            self.foreign_ends(0);
        }
        (0..NODES).for_each(|node| self.new_dataset(node));
        for _ in 0..3_000 {
            self.round();
            let open: Vec<JobId> =
                self.accepted.iter().filter(|id| !self.finished.contains_key(id)).copied().collect();
            for id in &open {
                let never = |explained: super::Explanation| explained.verdict == Verdict::Never;
                if self.sched.explain(*id).is_some_and(never) {
                    self.step(&Step::Cancel(self.accepted.iter().position(|job| job == id).unwrap()));
                }
            }
            if open.is_empty() && self.api.is_empty() && self.sched.state.pods.is_empty() {
                return;
            }
        }
        panic!("does not come to an end: {:?}", self.sched.state);
    }

    /// Everybody does all they can, then a little time passes.
    pub(super) fn round(&mut self) {
        self.full_pass();
        self.decide();
        while !self.todo.is_empty() {
            self.execute(0);
        }
        for _ in 0..self.api.len() {
            (0..self.api.len()).for_each(|index| self.kubelet(index));
        }
        self.exit(0, Outcome::Succeeded);
        self.deliver(usize::MAX);
        self.pass(50);
    }

    /// The executor cannot do this: the history is not writable.
    pub(super) fn refuse_to(&mut self, refused: impl Fn(&Action) -> bool) {
        self.todo.retain(|action| !refused(action));
    }

    pub(super) fn records(&self) -> usize {
        self.api.len()
    }

    pub(super) fn running(&self) -> usize {
        self.api.values().filter(|pod| !matches!(pod.phase, Phase::Ended(_))).count()
    }
}

impl Event {
    /// The action, if this event records a decision.
    pub(super) fn decided_action(&self) -> Option<&Action> {
        match &self.what {
            What::Decided { action } => Some(action),
            _ => None,
        }
    }
}

fn pick<T: Clone>(items: &[T], index: usize) -> Option<T> {
    items.get(index.checked_rem(items.len())?).cloned()
}

fn pod_of(action: &Action) -> Option<PodKey> {
    match action {
        Action::CreatePod { pod, .. }
        | Action::StopPod { pod, .. }
        | Action::DeclareLost { pod, .. }
        | Action::Archive { pod, .. }
        | Action::Prune { pod, .. } => Some(*pod),
        Action::FinishJob { .. } | Action::StopJob { .. } => None,
    }
}
