//! What the scheduler does, example by example.

mod clocks;
mod limits;

use super::world::{config, facts, job_id, node_name, record, resources, spec, version};
use super::{Sched, Verdict};
use crate::job::{
    Action, Array, CheckpointRef, DatasetPin, Event, ForeignPod, Gang, HeldDataset, JobPhase, JobRecord,
    JobSpec, NodeFacts, Outcome, PodPhase, StopReason, Taint, What,
};
use rackwright_wire::id::{AttemptNo, DatasetName, Owner, PodKey, PodUid, TaskIndex};
use rackwright_wire::units::Bytes;

/// A scheduler with a clock, and the usual answers to its actions.
struct Rack {
    sched: Sched,
    now_ms: u64,
}

impl Rack {
    /// `nodes` nodes of 2 CPUs, 4 GiB and 4 pods.
    fn of(nodes: usize) -> Self {
        let mut rack = Self { sched: Sched::new(config()), now_ms: 10_000 };
        (0..nodes).for_each(|index| rack.see(facts(index)));
        rack
    }

    fn see(&mut self, node: NodeFacts) {
        self.tell(What::NodeSeen { node: Box::new(node) });
    }

    fn tell(&mut self, what: What) {
        self.sched.apply(&Event::new(self.now_ms, what));
        self.sched.sanity_check().unwrap();
    }

    fn submit(&mut self, number: usize, spec: JobSpec) {
        self.accept(record(job_id(number), spec, self.now_ms));
    }

    fn accept(&mut self, record: JobRecord) {
        self.tell(What::Submitted { job: Box::new(record) });
    }

    fn decide(&mut self) -> Vec<Action> {
        let actions = self.sched.decide(self.now_ms);
        self.sched.sanity_check().unwrap();
        actions
    }

    /// The pods that the next decision creates, as `job/task/attempt@node`.
    fn launches(&mut self) -> Vec<String> {
        let create = |action: Action| {
            let Action::CreatePod { pod, node, .. } = action else { return None };
            Some(format!("{}/{}/{}@{node}", pod.job.get() - 1000, pod.task, pod.attempt))
        };
        self.decide().into_iter().filter_map(create).collect()
    }

    fn run(&mut self, pod: PodKey) {
        self.tell(What::PodCreated { pod, uid: uid(pod) });
        let started_at_ms = Some(self.now_ms);
        self.tell(What::PodObserved { pod, uid: uid(pod), phase: PodPhase::Running, started_at_ms });
    }

    fn end(&mut self, pod: PodKey, outcome: Outcome) {
        self.tell(What::AttemptFinished {
            pod,
            uid: uid(pod),
            outcome,
            exit_code: Some(i32::from(outcome != Outcome::Succeeded)),
            reason: String::new(),
            started_at_ms: None,
            finished_at_ms: None,
        });
    }

    fn verdict(&self, number: usize) -> (Verdict, String) {
        let explained = self.sched.explain(job_id(number)).unwrap();
        (explained.verdict, explained.sentence)
    }
}

fn pod(number: usize, task: u32, attempt: u32) -> PodKey {
    PodKey { job: job_id(number), task: TaskIndex(task), attempt: AttemptNo(attempt) }
}

fn uid(pod: PodKey) -> PodUid {
    PodUid::new(&format!("uid-{pod}")).unwrap()
}

fn with_priority(priority: &str, spec: JobSpec) -> JobSpec {
    JobSpec { priority: priority.to_owned(), ..spec }
}

fn gang(size: u32, spread: bool, spec: JobSpec) -> JobSpec {
    JobSpec { gang: Some(Gang { size, spread }), ..spec }
}

#[test]
fn priority_goes_first_then_the_order_of_submission() {
    let mut rack = Rack::of(1);
    rack.submit(1, with_priority("low", spec(900, 64)));
    rack.submit(2, spec(900, 64));
    rack.submit(3, spec(900, 64));
    rack.submit(4, with_priority("high", spec(900, 64)));
    assert_eq!(rack.launches(), ["4/0/1@ml1", "2/0/1@ml1"]);
}

#[test]
fn a_pod_goes_where_it_leaves_least_so_that_large_ones_keep_their_place() {
    let mut rack = Rack::of(2);
    rack.submit(1, spec(1200, 64));
    rack.submit(2, spec(600, 64));
    rack.submit(3, spec(2000, 64));
    assert_eq!(rack.launches(), ["1/0/1@ml1", "2/0/1@ml1", "3/0/1@ml2"]);
}

#[test]
fn what_does_not_fit_blocks_nothing_smaller_behind_it() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(500, 64));
    rack.submit(2, spec(2000, 64));
    rack.submit(3, spec(500, 64));
    assert_eq!(rack.launches(), ["1/0/1@ml1", "3/0/1@ml1"]);
}

#[test]
fn a_job_that_has_waited_long_is_not_starved_by_smaller_ones() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(1000, 64));
    rack.submit(2, spec(2000, 64));
    assert_eq!(rack.launches(), ["1/0/1@ml1"]);
    rack.run(pod(1, 0, 1));
    rack.now_ms += config().hold_after_ms;
    rack.submit(3, spec(500, 64));
    assert_eq!(rack.launches(), Vec::<String>::new());
    let (verdict, sentence) = rack.verdict(3);
    assert_eq!(verdict, Verdict::Waits);
    assert_eq!(sentence, format!("waits: ml1 is held for {}, which has waited long", job_id(2)));
    let all = rack.sched.explain_all(&[job_id(3), job_id(2)]);
    for (id, explanation) in &all {
        assert_eq!(Some(explanation), rack.sched.explain(*id).as_ref(), "one by one it is the same");
    }
    assert_eq!(all.len(), 2);
    rack.end(pod(1, 0, 1), Outcome::Succeeded);
    assert_eq!(rack.launches(), ["2/0/1@ml1"]);
}

#[test]
fn a_gang_starts_together_or_not_at_all() {
    let mut rack = Rack::of(2);
    rack.submit(1, spec(1500, 64));
    rack.submit(2, gang(2, true, spec(1000, 64)));
    assert_eq!(rack.launches(), ["1/0/1@ml1"]);
    assert_eq!(rack.verdict(2).0, Verdict::Waits);
    rack.run(pod(1, 0, 1));
    rack.end(pod(1, 0, 1), Outcome::Succeeded);
    assert_eq!(rack.launches(), ["2/0/1@ml1", "2/1/1@ml2"]);
}

#[test]
fn a_gang_without_spread_may_share_a_node() {
    let mut rack = Rack::of(2);
    rack.submit(1, gang(2, false, spec(1000, 64)));
    assert_eq!(rack.launches(), ["1/0/1@ml1", "1/1/1@ml1"]);
}

#[test]
fn when_a_member_fails_the_gang_stops_and_is_tried_again_as_a_whole() {
    let mut rack = Rack::of(2);
    rack.submit(1, JobSpec { retries: 1, ..gang(2, true, spec(1000, 64)) });
    rack.launches();
    rack.run(pod(1, 0, 1));
    rack.run(pod(1, 1, 1));
    rack.end(pod(1, 0, 1), Outcome::Failed);
    let stop = Action::StopPod { pod: pod(1, 1, 1), uid: Some(uid(pod(1, 1, 1))), why: StopReason::Gang };
    let actions = rack.decide();
    assert!(actions.contains(&stop), "{actions:?}");
    rack.now_ms += 10_000;
    assert_eq!(rack.launches(), Vec::<String>::new(), "the second member still runs");
    rack.end(pod(1, 1, 1), Outcome::Failed);
    rack.now_ms += 10_000;
    assert_eq!(rack.launches(), ["1/0/2@ml1", "1/1/2@ml2"]);
    assert_eq!(rack.sched.attempt(pod(1, 1, 1)).unwrap().outcome, Some(Outcome::GangStopped));
}

#[test]
fn a_retry_waits_its_turn_and_resumes_from_the_newest_checkpoint_that_holds() {
    let mut rack = Rack::of(1);
    rack.submit(1, JobSpec { retries: 2, ..spec(1000, 64) });
    rack.launches();
    rack.run(pod(1, 0, 1));
    for step in [10, 30, 20] {
        rack.tell(What::CheckpointSealed { pod: pod(1, 0, 1), step, set: format!("set-{step}") });
    }
    rack.tell(What::CheckpointRejected { pod: pod(1, 0, 1), step: 30 });
    rack.end(pod(1, 0, 1), Outcome::Failed);
    assert_eq!(rack.launches(), Vec::<String>::new());
    let (verdict, sentence) = rack.verdict(1);
    assert_eq!((verdict, sentence.as_str()), (Verdict::Backoff, "waits 1 s before its next attempt"));
    rack.now_ms += config().backoff_ms;
    let resume = Some(CheckpointRef { task: TaskIndex(0), step: 20, set: "set-20".to_owned() });
    let again = Action::CreatePod { pod: pod(1, 0, 2), node: node_name(0), resume };
    assert_eq!(rack.decide(), [again]);
}

#[test]
fn a_task_fails_after_its_last_retry_and_the_job_says_so_when_all_have_ended() {
    let mut rack = Rack::of(1);
    rack.submit(1, JobSpec { retries: 1, array: Some(Array { count: 2 }), ..spec(500, 64) });
    assert_eq!(rack.launches(), ["1/0/1@ml1", "1/1/1@ml1"]);
    rack.run(pod(1, 0, 1));
    rack.run(pod(1, 1, 1));
    rack.end(pod(1, 0, 1), Outcome::Failed);
    rack.end(pod(1, 1, 1), Outcome::Succeeded);
    rack.now_ms += 1_000;
    assert_eq!(rack.launches(), ["1/0/2@ml1"]);
    rack.run(pod(1, 0, 2));
    rack.end(pod(1, 0, 2), Outcome::Failed);
    let finish = Action::FinishJob { job: job_id(1), outcome: Outcome::Failed };
    assert!(rack.decide().contains(&finish));
    let view = rack.sched.view(job_id(1)).unwrap();
    assert_eq!((view.phase, view.counts.succeeded, view.counts.failed), (JobPhase::Finished, 1, 1));
}

#[test]
fn a_refused_pod_goes_back_to_the_queue_and_costs_no_retry() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(1000, 64));
    for attempt in 1..5 {
        assert_eq!(rack.launches(), [format!("1/0/{attempt}@ml1")]);
        rack.tell(What::PodCreated { pod: pod(1, 0, attempt), uid: uid(pod(1, 0, attempt)) });
        let reason = "OutOfcpu".to_owned();
        rack.tell(What::PodRefused { pod: pod(1, 0, attempt), uid: uid(pod(1, 0, attempt)), reason });
        rack.now_ms += 1_000;
    }
    assert_eq!(rack.sched.view(job_id(1)).unwrap().phase, JobPhase::Pending);
}

#[test]
fn a_lost_attempt_is_tried_again_only_after_lease_and_grace_and_when_its_pod_is_gone() {
    let mut rack = Rack::of(2);
    rack.submit(1, spec(1500, 64));
    rack.launches();
    rack.run(pod(1, 0, 1));
    rack.see(NodeFacts { ready: false, ..facts(0) });
    rack.now_ms += config().lease_ms + config().lease_grace_ms - 1;
    assert_eq!(rack.decide(), []);
    rack.now_ms += 1;
    let (key, of) = (pod(1, 0, 1), Some(uid(pod(1, 0, 1))));
    let lost = Action::DeclareLost { pod: key, node: node_name(0) };
    assert_eq!(rack.decide(), [lost, Action::Archive { pod: key, uid: of.clone() }]);
    rack.tell(What::Archived { pod: key });
    assert_eq!(rack.decide(), [Action::Prune { pod: key, uid: uid(key), force: true }]);
    rack.now_ms += 10_000;
    assert_eq!(rack.launches(), Vec::<String>::new(), "its pod still exists");
    rack.tell(What::PodGone { pod: key, uid: of });
    rack.now_ms += 10_000;
    assert_eq!(rack.launches(), ["1/0/2@ml2"]);
}

#[test]
fn nothing_is_declared_lost_while_nobody_looks_and_leases_count_from_when_somebody_does() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(1500, 64));
    rack.launches();
    rack.run(pod(1, 0, 1));
    rack.see(NodeFacts { ready: false, ..facts(0) });
    rack.sched.sight(None);
    rack.now_ms += 100 * config().lease_ms;
    assert_eq!(rack.decide(), [], "the node may have come back unseen");
    rack.sched.sight(Some(rack.now_ms));
    rack.sched.sanity_check().unwrap();
    rack.now_ms += config().lease_ms + config().lease_grace_ms - 1;
    assert_eq!(rack.decide(), []);
    rack.now_ms += 1;
    let key = pod(1, 0, 1);
    assert_eq!(rack.decide()[0], Action::DeclareLost { pod: key, node: node_name(0) });
    rack.tell(What::Archived { pod: key });
    rack.sched.sight(Some(rack.now_ms));
    assert_eq!(rack.decide(), [Action::Prune { pod: key, uid: uid(key), force: false }]);
}

#[test]
fn a_node_that_is_back_before_its_lease_ends_keeps_its_pods() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(1500, 64));
    rack.launches();
    rack.run(pod(1, 0, 1));
    rack.see(NodeFacts { ready: false, ..facts(0) });
    rack.now_ms += config().lease_ms;
    rack.see(facts(0));
    rack.now_ms += 100 * config().lease_ms;
    assert_eq!(rack.decide(), []);
}

#[test]
fn pods_of_others_take_room_and_give_it_back() {
    let mut rack = Rack::of(1);
    let name = "default/web".to_owned();
    let of_others = PodUid::new("web-1").unwrap();
    let web = ForeignPod { uid: of_others.clone(), name, node: node_name(0), requests: resources(1500, 64) };
    rack.tell(What::ForeignPodSeen { pod: web });
    rack.submit(1, spec(1000, 64));
    assert_eq!(rack.launches(), Vec::<String>::new());
    assert_eq!(
        rack.verdict(1).1,
        "waits: 1 of 1 ml node full, 0.5 of 2 cpu free on ml1, 1 cpu and 64 MiB of memory needed"
    );
    rack.tell(What::ForeignPodGone { uid: of_others });
    assert_eq!(rack.launches(), ["1/0/1@ml1"]);
}

#[test]
fn only_ready_nodes_with_the_role_and_no_foreign_taint_are_used() {
    let mut rack = Rack::of(0);
    let taint =
        |key: &str| Taint { key: key.to_owned(), value: String::new(), effect: "NoSchedule".to_owned() };
    rack.see(NodeFacts { ready: false, ..facts(0) });
    rack.see(NodeFacts {
        labels: [("rackwright.dev/role".to_owned(), "data".to_owned())].into(),
        ..facts(1)
    });
    rack.see(NodeFacts { taints: vec![taint("node.kubernetes.io/unschedulable")], ..facts(2) });
    rack.submit(1, spec(100, 64));
    assert_eq!(rack.launches(), Vec::<String>::new());
    let said = rack.verdict(1).1;
    let taint_said = "ml3 has taint node.kubernetes.io/unschedulable, which jobs do not tolerate";
    assert_eq!(said, format!("waits: ml1 is not ready; {taint_said}"));
    rack.see(NodeFacts { taints: vec![taint("rackwright.dev/jobs")], ..facts(2) });
    assert_eq!(rack.launches(), ["1/0/1@ml3"]);
}

#[test]
fn a_job_runs_only_where_its_dataset_version_is() {
    let mut rack = Rack::of(2);
    let name = DatasetName::new("apt").unwrap();
    let pin = DatasetPin { name: name.clone(), version: version(2), generation: 4 };
    let job = JobRecord { datasets: vec![pin], ..record(job_id(1), spec(100, 64), rack.now_ms) };
    rack.accept(job);
    assert_eq!(rack.launches(), Vec::<String>::new());
    assert_eq!(
        rack.verdict(1).1,
        "waits: ml1 waits for dataset apt@020202020202, generation 4 (has generation 1); \
         ml2 waits for dataset apt@020202020202, generation 4 (has generation 1)"
    );
    let held = vec![HeldDataset { version: version(2), generation: 4 }];
    rack.see(NodeFacts { datasets: [(name, held)].into(), ..facts(1) });
    assert_eq!(rack.launches(), ["1/0/1@ml2"]);
}

#[test]
fn what_can_never_fit_is_told_so_with_what_there_is() {
    let mut rack = Rack::of(2);
    let memory = Bytes::mib(512 * 1024);
    rack.submit(
        1,
        JobSpec { resources: crate::job::Resources { memory, ..resources(100, 64) }, ..spec(1, 1) },
    );
    rack.submit(2, gang(3, true, spec(100, 64)));
    rack.submit(3, spec(2001, 64));
    assert_eq!(rack.launches(), Vec::<String>::new());
    let change = "change the request or add a node";
    let said = [
        format!("needs 512 GiB of memory; the largest ml node (ml1) can ever offer 4 GiB: {change}"),
        format!(
            "needs 3 pods at once with 0.1 cpu and 64 MiB of memory each, each on a node of its own; the 2 nodes \
             with role ml cannot take them all even when empty: {change}"
        ),
        format!("needs 2.001 of cpu; the largest ml node (ml1) can ever offer 2: {change}"),
    ];
    for (number, sentence) in (1..).zip(said) {
        assert_eq!(rack.verdict(number), (Verdict::Never, sentence));
    }
    assert_eq!(Rack::of(0).sched.explain(job_id(1)), None);
}

#[test]
fn a_cancelled_job_keeps_its_pods_until_they_are_archived() {
    let mut rack = Rack::of(1);
    rack.submit(1, JobSpec { array: Some(Array { count: 100 }), ..spec(900, 64) });
    rack.launches();
    rack.run(pod(1, 0, 1));
    rack.tell(What::CancelRequested { job: job_id(1), by: Owner::new("ada").unwrap() });
    // The second pod's creation is not confirmed yet: it is stopped when it is.
    let stop = |key| Action::StopPod { pod: key, uid: Some(uid(key)), why: StopReason::Cancelled };
    assert_eq!(rack.decide(), [stop(pod(1, 0, 1))]);
    rack.tell(What::PodCreated { pod: pod(1, 1, 1), uid: uid(pod(1, 1, 1)) });
    assert_eq!(rack.decide(), [stop(pod(1, 1, 1))]);
    rack.end(pod(1, 0, 1), Outcome::Failed);
    rack.end(pod(1, 1, 1), Outcome::Succeeded);
    let actions = rack.decide();
    assert!(actions.contains(&Action::FinishJob { job: job_id(1), outcome: Outcome::Cancelled }));
    assert!(!actions.iter().any(|action| matches!(action, Action::Prune { .. })));
    let counts = rack.sched.view(job_id(1)).unwrap().counts;
    assert_eq!((counts.cancelled, counts.succeeded), (99, 1), "what had succeeded stays so");
}

#[test]
fn a_dependent_starts_after_success_and_ends_after_failure() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(500, 64));
    rack.submit(2, spec(500, 64));
    rack.submit(3, JobSpec { depends_on: vec![job_id(1)], ..spec(500, 64) });
    rack.submit(4, JobSpec { depends_on: vec![job_id(2)], ..spec(500, 64) });
    assert_eq!(rack.launches(), ["1/0/1@ml1", "2/0/1@ml1"]);
    assert_eq!(rack.verdict(3), (Verdict::Dependency, format!("waits for {} to succeed", job_id(1))));
    for (number, outcome) in [(1, Outcome::Succeeded), (2, Outcome::Failed)] {
        rack.run(pod(number, 0, 1));
        rack.end(pod(number, 0, 1), outcome);
    }
    let actions = rack.decide();
    let ended = Action::FinishJob { job: job_id(4), outcome: Outcome::DependencyFailed };
    assert!(actions.contains(&ended), "{actions:?}");
    let started = Action::CreatePod { pod: pod(3, 0, 1), node: node_name(0), resume: None };
    assert!(actions.contains(&started), "{actions:?}");
    assert!(rack.sched.view(job_id(4)).is_none(), "nothing of it is left to remember");
    let changed = rack.sched.take_changed();
    let last = changed.iter().find(|view| view.id == job_id(4)).unwrap();
    assert_eq!(last.outcome, Some(Outcome::DependencyFailed), "but those who watch are told");
}

#[test]
fn finished_pods_go_after_a_grace_and_the_newest_failures_of_an_owner_later() {
    let mut rack = Rack::of(1);
    rack.submit(2, JobSpec { array: Some(Array { count: 4 }), ..spec(500, 64) });
    rack.launches();
    for task in 0..4 {
        rack.run(pod(2, task, 1));
    }
    for task in 0..4 {
        rack.now_ms += 1;
        rack.end(pod(2, task, 1), if task == 0 { Outcome::Succeeded } else { Outcome::Failed });
        rack.decide();
        rack.tell(What::Archived { pod: pod(2, task, 1) });
    }
    let pruned = |actions: Vec<Action>| -> Vec<u32> {
        let task = |action: Action| {
            let Action::Prune { pod, .. } = action else { return None };
            Some(pod.task.0)
        };
        actions.into_iter().filter_map(task).collect()
    };
    rack.now_ms += config().prune_grace_ms;
    assert_eq!(pruned(rack.decide()), [0, 1], "two failures are kept for their owner");
    rack.now_ms += config().kept_failed_ms;
    assert_eq!(pruned(rack.decide()), [2, 3]);
}

#[test]
fn a_pod_that_nobody_remembers_takes_room_and_is_archived_and_pruned() {
    let mut rack = Rack::of(1);
    let key = pod(77, 0, 1);
    let requests = resources(1500, 64);
    rack.tell(What::OrphanSeen { pod: key, uid: uid(key), node: node_name(0), requests });
    rack.submit(1, spec(1000, 64));
    assert_eq!(rack.decide(), [Action::Archive { pod: key, uid: Some(uid(key)) }]);
    rack.tell(What::Archived { pod: key });
    assert_eq!(rack.decide(), [Action::Prune { pod: key, uid: uid(key), force: false }]);
    rack.tell(What::PodGone { pod: key, uid: Some(uid(key)) });
    assert_eq!(rack.launches(), ["1/0/1@ml1"]);
}

#[test]
fn after_a_restart_everything_unanswered_is_asked_again() {
    let mut rack = Rack::of(1);
    rack.submit(1, JobSpec { array: Some(Array { count: 2 }), ..spec(900, 64) });
    let asked = rack.decide();
    assert_eq!(asked.len(), 2);
    rack.sched = Sched::restore(config(), rack.sched.snapshot());
    assert_eq!(rack.decide(), [], "nothing is decided twice");
    assert_eq!(rack.sched.outstanding(), asked);
    rack.run(pod(1, 0, 1));
    assert_eq!(rack.sched.outstanding(), asked[1..]);
    rack.tell(What::CancelRequested { job: job_id(1), by: Owner::new("ada").unwrap() });
    let by_name = Action::StopPod { pod: pod(1, 1, 1), uid: None, why: StopReason::Cancelled };
    assert!(rack.sched.outstanding().contains(&by_name), "what may exist is looked for by name");
    rack.tell(What::PodGone { pod: pod(1, 1, 1), uid: None });
    assert_eq!(rack.sched.attempt(pod(1, 1, 1)).unwrap().outcome, Some(Outcome::Cancelled));
}

#[test]
fn ten_thousand_queued_jobs_of_one_shape_cost_one_look() {
    let mut rack = Rack { sched: Sched::new(config()), now_ms: 10_000 };
    rack.see(facts(0));
    for number in 0..10_000 {
        let job = record(job_id(number), spec(2000, 64), rack.now_ms);
        rack.sched.apply(&Event::new(rack.now_ms, What::Submitted { job: Box::new(job) }));
    }
    rack.sched.decide(rack.now_ms);
    assert_eq!(rack.sched.index.queue.len(), 1);
    assert_eq!(rack.sched.no_place.len(), 1, "the shape found no place and is not tried again");
}

#[test]
fn an_array_of_a_hundred_thousand_tasks_is_a_few_numbers() {
    let mut rack = Rack::of(3);
    rack.submit(1, JobSpec { array: Some(Array { count: 100_000 }), ..spec(500, 64) });
    assert_eq!(rack.launches().len(), config().max_reserved);
    let written = serde_json::to_string(&rack.sched.snapshot()).unwrap();
    assert!(written.len() < 16_384, "{} bytes", written.len());
    assert_eq!(rack.sched.view(job_id(1)).unwrap().counts.pending, 99_992);
}
