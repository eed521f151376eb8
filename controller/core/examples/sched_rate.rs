//! How fast the scheduler decides, and how much memory a queued job takes.
//!
//! `cargo run --release -p rackwright-core --example sched_rate -- [NODES] [JOBS] [SHAPES]`: queues the
//! jobs, then lets pods end one by one and decides after each, as a busy rack does. No disk, no
//! network: the state machine alone.

#![expect(clippy::print_stdout, reason = "a benchmark's output is its purpose")]

use rackwright_core::job::{
    Action, Capacity, Event, JOB_VERSION, JobRecord, JobSpec, Limits, NodeFacts, Outcome, What,
};
use rackwright_core::sched::{Config, Sched};
use rackwright_wire::id::{JobId, NodeName, Owner, PodKey, PodUid, Team};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};
use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant};

type Answer<T> = Result<T, Box<dyn Error>>;

/// Pods that end, one decision after each.
const ENDS: usize = 2_000;

fn main() -> Answer<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (nodes, jobs, shapes) = (number(100)?, number(10_000)?, number(50)?.max(1));
    // The first decision places all that fits, however much it is.
    let mut sched = Sched::new(Config { max_reserved: usize::MAX, ..Config::default() });
    for index in 0..nodes {
        sched.apply(&Event::new(1, What::NodeSeen { node: Box::new(node(index)?) }));
    }
    let before = resident()?;
    let start = Instant::now();
    for index in 0..jobs {
        let job = Box::new(job(index, shapes)?);
        sched.apply(&Event::new(1, What::Submitted { job }));
    }
    let submits = start.elapsed();
    let mut running = VecDeque::new();
    let start = Instant::now();
    let placed = carry_out(&mut sched, 2, &mut running)?;
    println!("{jobs} jobs of {shapes} shapes on {nodes} nodes");
    println!("taken in within {submits:?}, {} bytes each", (resident()? - before) / jobs.max(1));
    println!("first decision: {placed} placements in {:?}", start.elapsed());
    busy(&mut sched, &mut running)
}

/// Pods end one by one; each end is followed by a decision.
fn busy(sched: &mut Sched, running: &mut VecDeque<PodKey>) -> Answer<()> {
    let mut waits = Vec::new();
    let mut placed = 0;
    for now_ms in (3..).take(ENDS) {
        let Some(pod) = running.pop_front() else { break };
        let start = Instant::now();
        let end = What::AttemptFinished {
            pod,
            uid: uid(pod)?,
            outcome: Outcome::Succeeded,
            exit_code: Some(0),
            reason: String::new(),
            started_at_ms: None,
            finished_at_ms: None,
        };
        sched.apply(&Event::new(now_ms, end));
        placed += carry_out(sched, now_ms, running)?;
        waits.push(start.elapsed());
    }
    waits.sort();
    let all: Duration = waits.iter().sum();
    let at = |percent: usize| waits.get(waits.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "{} ends: {placed} placements in {all:?}, decision p50 {:?}, p99 {:?}",
        waits.len(),
        at(50),
        at(99)
    );
    Ok(())
}

/// Decides, and answers every action at once; how many pods were placed.
fn carry_out(sched: &mut Sched, now_ms: u64, running: &mut VecDeque<PodKey>) -> Answer<usize> {
    let mut placed = 0;
    for action in sched.decide(now_ms) {
        let answer = match action {
            Action::CreatePod { pod, .. } => {
                placed += 1;
                running.push_back(pod);
                What::PodCreated { pod, uid: uid(pod)? }
            }
            Action::Archive { pod, .. } => What::Archived { pod },
            Action::Prune { pod, uid, .. } => What::PodGone { pod, uid: Some(uid) },
            Action::StopPod { .. }
            | Action::DeclareLost { .. }
            | Action::FinishJob { .. }
            | Action::StopJob { .. } => continue,
        };
        sched.apply(&Event::new(now_ms, answer));
    }
    Ok(placed)
}

fn uid(pod: PodKey) -> Answer<PodUid> {
    Ok(PodUid::new(&pod.to_string())?)
}

fn node(index: u64) -> Answer<NodeFacts> {
    let cpu = MilliCpu::new(64_000)?;
    let all = Capacity { cpu, memory: Bytes::mib(256 * 1024), gpu: MilliGpu::ZERO, pods: 110 };
    Ok(NodeFacts {
        name: NodeName::new(&format!("ml{index:05}"))?,
        ready: true,
        labels: [("rackwright.dev/role".to_owned(), "ml".to_owned())].into(),
        taints: Vec::new(),
        capacity: all,
        allocatable: all,
        gpu_type: None,
        datasets: [].into(),
        price_per_hour: None,
    })
}

/// A job of one of the shapes, large enough that a node takes a handful.
fn job(index: u64, shapes: u64) -> Answer<JobRecord> {
    let cpu = 8_000 + index % shapes;
    let body = format!(
        r#"{{"name": "fit", "image": "docker.io/rackwright/python:1", "command": ["python3", "/job/fit.py"],
            "args": ["--alpha", "0.{index}"], "resources": {{"cpu": "{cpu}m", "memory": "4GiB"}}}}"#
    );
    let spec = JobSpec::from_json(body.as_bytes(), &Limits::default());
    Ok(JobRecord {
        version: JOB_VERSION,
        id: JobId::new(1 + index)?,
        owner: Owner::new("ada")?,
        team: Team::new("vision")?,
        submitted_at_ms: 1,
        spec: spec.map_err(|findings| format!("{findings:?}"))?,
        datasets: Vec::new(),
        dependencies_met: Vec::new(),
    })
}

/// Bytes of this process in memory.
fn resident() -> Answer<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
