//! The log's, the store's and the snapshot's formats against their golden files: a changed byte is a
//! changed format, and an old log must still be read.
//!
//! Regenerate with `make golden`, then raise the format's version if an old reader would misread it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rackwright_core::job::{
    Action, Capacity, CheckpointRef, DatasetPin, Event, ForeignPod, HeldDataset, JOB_VERSION, JobRecord,
    JobSpec, Limits, NodeFacts, Outcome, PodPhase, Resources, StopReason, Taint, What,
};
use rackwright_core::sched::{Config, Sched};
use rackwright_wire::id::{
    AttemptNo, DatasetName, DatasetVersion, JobId, NodeName, Owner, PodKey, PodUid, TaskIndex, Team,
};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};

#[path = "../../../agent/wire/tests/support/recorded.rs"]
mod recorded;
use recorded::golden;

const NOW: u64 = 1_790_000_000_000;

fn pod() -> PodKey {
    PodKey { job: job().id, task: TaskIndex(3), attempt: AttemptNo(1) }
}

fn uid() -> PodUid {
    PodUid::new("6f1c3a52-0000-4000-8000-000000000001").unwrap()
}

fn node() -> NodeName {
    NodeName::new("ml1").unwrap()
}

fn version() -> DatasetVersion {
    DatasetVersion::new(&"0123456789abcdef".repeat(4)).unwrap()
}

fn apt() -> DatasetName {
    DatasetName::new("apt").unwrap()
}

fn requests() -> Resources {
    let cpu = MilliCpu::new(500).unwrap();
    Resources { cpu, memory: Bytes::mib(256), gpu: MilliGpu::ZERO, gpu_type: None }
}

/// Every key of a job's body, once.
const BODY: &str = r#"{
    "name": "fit", "project": "packages", "model": "ridge.v2", "image": "docker.io/rackwright/python:1",
    "datasets": [{"name": "apt", "version": "latest"}],
    "command": ["python3"], "args": ["/job/fit.py"], "env": {"ALPHA": "0.1"},
    "resources": {"cpu": 0.5, "memory": "256Mi", "gpu": 2, "gpu_type": "a100"},
    "array": {"count": 20}, "priority": "high", "class": "fixed", "max_run_time_s": 600,
    "deadline_s": 1790003600, "money_cap": "12.50 EUR", "retries": 2, "checkpoint": {"interval_s": 30},
    "results": true, "cache_key": "sweep-1", "depends_on": ["j0000000001"]
}"#;

fn job() -> JobRecord {
    JobRecord {
        version: JOB_VERSION,
        id: JobId::new(NOW).unwrap(),
        owner: Owner::new("ada").unwrap(),
        team: Team::new("vision").unwrap(),
        submitted_at_ms: NOW,
        spec: JobSpec::from_json(BODY.as_bytes(), &Limits::default()).unwrap(),
        datasets: vec![DatasetPin { name: apt(), version: version(), generation: 3 }],
        dependencies_met: vec![JobId::new(1).unwrap()],
    }
}

fn facts() -> NodeFacts {
    let all = |pods| Capacity {
        cpu: MilliCpu::new(4000).unwrap(),
        memory: Bytes::mib(8192),
        gpu: MilliGpu::new(2000).unwrap(),
        pods,
    };
    NodeFacts {
        name: node(),
        ready: true,
        labels: [("rackwright.dev/role".to_owned(), "ml".to_owned())].into(),
        taints: vec![Taint {
            key: "rackwright.dev/jobs".to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
        }],
        capacity: all(110),
        allocatable: all(110),
        gpu_type: Some("a100".parse().unwrap()),
        datasets: [(apt(), vec![HeldDataset { version: version(), generation: 3 }])].into(),
        price_per_hour: Some("0.75 EUR".parse().unwrap()),
    }
}

fn actions() -> Vec<Action> {
    let resume = Some(CheckpointRef { task: TaskIndex(3), step: 40, set: "checkpoint-1".to_owned() });
    let (job, uid) = (job().id, uid());
    vec![
        Action::CreatePod { pod: pod(), node: node(), resume },
        Action::StopPod { pod: pod(), uid: Some(uid.clone()), why: StopReason::TimeLimit },
        Action::DeclareLost { pod: pod(), node: node() },
        Action::Archive { pod: pod(), uid: Some(uid.clone()) },
        Action::Prune { pod: pod(), uid, force: false },
        Action::FinishJob { job, outcome: Outcome::Succeeded },
        Action::StopJob { job, why: StopReason::Deadline },
    ]
}

fn events() -> Vec<Event> {
    let (pod, uid) = (pod(), uid());
    let foreign =
        ForeignPod { uid: uid.clone(), name: "default/web".to_owned(), node: node(), requests: requests() };
    let whats = vec![
        What::Submitted { job: Box::new(job()) },
        What::CancelRequested { job: job().id, by: job().owner },
        What::NodeSeen { node: Box::new(facts()) },
        What::NodeGone { node: node() },
        What::ForeignPodSeen { pod: foreign },
        What::ForeignPodGone { uid: uid.clone() },
        What::PodCreated { pod, uid: uid.clone() },
        What::PodNotCreated { pod, reason: "forbidden".to_owned() },
        What::PodObserved { pod, uid: uid.clone(), phase: PodPhase::Running, started_at_ms: Some(NOW) },
        What::OrphanSeen { pod, uid: uid.clone(), node: node(), requests: requests() },
        What::PodRefused { pod, uid: uid.clone(), reason: "OutOfcpu".to_owned() },
        What::AttemptFinished {
            pod,
            uid: uid.clone(),
            outcome: Outcome::Failed,
            exit_code: Some(137),
            reason: "OOMKilled".to_owned(),
            started_at_ms: Some(NOW),
            finished_at_ms: Some(NOW + 1),
        },
        What::AttemptLost { pod, uid: uid.clone(), reason: "rebooted".to_owned() },
        What::PodGone { pod, uid: Some(uid) },
        What::CheckpointSealed { pod, step: 40, set: "checkpoint-1".to_owned() },
        What::CheckpointRejected { pod, step: 40 },
        What::Archived { pod },
        What::Tick,
    ];
    let decided = actions().into_iter().map(|action| Event::decided(NOW, action));
    whats.into_iter().map(|what| Event::new(NOW, what)).chain(decided).collect()
}

#[test]
fn every_event_is_written_as_recorded() {
    recorded::same("log-v1", &events());
    for event in events() {
        recorded::refused_when_newer("log-v1", &event);
    }
}

#[test]
fn a_job_is_written_as_recorded() {
    golden("job-v1", &job());
}

#[test]
fn a_snapshot_is_written_as_recorded() {
    let mut sched = Sched::new(Config::default());
    let whats = [What::NodeSeen { node: Box::new(facts()) }, What::Submitted { job: Box::new(job()) }];
    for what in whats {
        sched.apply(&Event::new(NOW, what));
    }
    sched.decide(NOW);
    let first = PodKey { task: TaskIndex(0), ..pod() };
    sched.apply(&Event::new(NOW + 5, What::PodCreated { pod: first, uid: uid() }));
    golden("snapshot-v1", &sched.snapshot());
}
