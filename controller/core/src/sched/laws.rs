//! The laws, on random sequences of everything that can happen (see [`super::world`]).

#![expect(clippy::wildcard_enum_match_arm, reason = "tests ask for one kind and pass over the rest")]

use super::fit::Used;
use super::world::{JobKind, Step, World, job_id};
use super::{Sched, Verdict};
use crate::job::Action;
use proptest::prelude::*;
use rackwright_wire::id::{JobId, NodeName};
use std::collections::{BTreeMap, BTreeSet};

fn kind() -> impl Strategy<Value = JobKind> {
    let shape = (1_u64..26, 1_u32..4, any::<bool>(), any::<bool>());
    let rest = (0_u8..3, 0_u32..3, 0_u8..3, prop::bool::weighted(0.2), 0_u8..8);
    (shape, rest).prop_map(|((cpu, tasks, gang, spread), (priority, retries, dataset, depends, limited))| {
        JobKind { cpu: cpu * 100, tasks, gang, spread, priority, retries, dataset, depends, limited }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => kind().prop_map(Step::Submit),
        1 => (0_usize..8).prop_map(Step::Cancel),
        8 => (0_usize..8).prop_map(Step::Execute),
        8 => (1_usize..5).prop_map(Step::Deliver),
        6 => Just(Step::Decide),
        8 => (0_usize..8).prop_map(Step::Kubelet),
        4 => (0_usize..8, any::<bool>()).prop_map(|(index, good)| Step::Exit(index, good)),
        2 => (0_usize..8).prop_map(Step::Checkpoint),
        1 => (0_usize..3).prop_map(Step::Cut),
        1 => (0_usize..3).prop_map(Step::PowerOff),
        2 => (0_usize..3).prop_map(Step::Heal),
        1 => (0_usize..3, 1_u64..15).prop_map(|(node, cpu)| Step::Foreign(node, cpu * 100)),
        1 => (0_usize..8).prop_map(Step::ForeignEnds),
        1 => (0_usize..8).prop_map(Step::KubectlDelete),
        1 => (0_usize..3).prop_map(Step::NewDataset),
        6 => (1_u64..700).prop_map(Step::Pass),
        1 => Just(Step::Crash),
        1 => Just(Step::FullPass),
    ]
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..most)
}

/// Law 9, from the state alone: what decide placed fits beside everything that it knew.
fn check_capacity(sched: &Sched, touched: &BTreeSet<NodeName>) {
    let mut used: BTreeMap<&NodeName, Used> = BTreeMap::new();
    for pod in sched.state.pods.values().filter(|pod| pod.takes_room()) {
        used.entry(&pod.node).or_default().add(&pod.requests);
    }
    for pod in sched.state.foreign.values() {
        used.entry(&pod.node).or_default().add(&pod.requests);
    }
    for node in touched {
        let all = sched.state.nodes[node].facts.allocatable;
        let used = used[node];
        assert!(
            used.cpu <= all.cpu.get() && used.memory <= u128::from(all.memory.get()) && used.pods <= all.pods,
            "law 9: {node} has {all:?}, {used:?} are used"
        );
    }
}

/// Jobs that something still waits for, with what `explain` says.
fn verdicts(sched: &Sched) -> BTreeMap<JobId, Verdict> {
    sched.jobs().map(|id| (id, sched.explain(id).unwrap().verdict)).collect()
}

/// Law 10 around one decision.
fn check_decide(world: &mut World) {
    world.sched.advance(world.now_ms);
    let first = first_in_order(&world.sched);
    let due = world.sched.next_wake_ms().is_some_and(|at| at <= world.now_ms);
    let before = verdicts(&world.sched);
    // A hold may pass from one starved job to another within a decision, when the first one starts.
    let held = held_back(&world.sched);
    let logged = world.log.len();
    world.decide();
    let decided: Vec<&Action> =
        world.log[logged..].iter().filter_map(|event| event.decided_action()).collect();
    let placed: BTreeSet<JobId> = decided.iter().filter_map(|action| placed_job(action)).collect();
    let touched = decided.iter().filter_map(|action| match action {
        Action::CreatePod { node, .. } => Some(node.clone()),
        _ => None,
    });
    check_capacity(&world.sched, &touched.collect());
    if let Some(first) = first.filter(|_| !due) {
        let fits = before[&first] == Verdict::Fits;
        assert_eq!(fits, placed.contains(&first), "law 10: {first} is first, {:?}", before[&first]);
    }
    for job in &placed {
        let said = before[job];
        let agrees = said == Verdict::Fits || due || held.contains(job);
        assert!(agrees, "law 10: {job} was placed, explain said {said:?}");
    }
    for (job, verdict) in verdicts(&world.sched) {
        assert_ne!(verdict, Verdict::Fits, "law 10: {job} fits and was not placed");
    }
}

/// Jobs that would have a place if no node were held for a starved one.
fn held_back(sched: &Sched) -> BTreeSet<JobId> {
    let fits = |shape| sched.rack().place(shape, None).is_some();
    let queued = |id: &JobId| sched.index.queue.values().flatten().any(|(_, job)| job == id);
    let jobs = sched.index.shapes.iter().filter(|(id, shape)| queued(id) && fits(shape));
    jobs.map(|(id, _)| *id).filter(|id| sched.explain(*id).unwrap().verdict == Verdict::Waits).collect()
}

fn placed_job(action: &Action) -> Option<JobId> {
    match action {
        Action::CreatePod { pod, .. } => Some(pod.job),
        _ => None,
    }
}

fn first_in_order(sched: &Sched) -> Option<JobId> {
    sched.index.queue.values().filter_map(|jobs| jobs.first()).min().map(|(_, job)| *job)
}

/// Runs the steps with everything that must hold after each of them.
fn run(steps: &[Step]) -> World {
    let mut world = World::new();
    for step in steps {
        if matches!(step, Step::Decide) {
            check_decide(&mut world);
        } else {
            world.step(step);
        }
        if let Err(difference) = world.sched.sanity_check() {
            panic!("after {step:?}: {difference}");
        }
        assert!(
            world.sched.index.backlog < world.sched.config.max_backlog + 16,
            "law 8: the backlog is unbounded"
        );
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// Laws 6, 7, 9, 10 and 16, with sanity checks after each step. The world panics on 6 and 7.
    #[test]
    fn no_job_is_lost_or_runs_twice_at_once_whatever_is_killed_or_cut_off(steps in steps(250)) {
        let mut world = run(&steps);
        world.settle();
        world.check_replay();
        let finished: Vec<JobId> = world.finished.keys().copied().collect();
        prop_assert_eq!(&finished, &world.accepted, "law 6: every accepted job ends, once");
        world.sched.sanity_check().unwrap();
    }

    /// Law 8 with an executor that keeps up: records of pods <= running + 2 x finished within a grace
    /// + the failures kept for their owners.
    #[test]
    fn records_of_pods_stay_under_the_bound(kinds in prop::collection::vec((kind(), 0_u32..3), 1..60)) {
        let mut world = World::new();
        let mut ends: Vec<(u64, usize)> = Vec::new();
        let mut records_before = 0;
        for (kind, exits) in &kinds {
            world.step(&Step::Submit(kind.clone()));
            for exit in 0..*exits {
                world.step(&Step::Exit(exit as usize, exit == 0));
            }
            world.round();
            let history = world.history.len();
            ends.push((world.now_ms, history - records_before));
            records_before = history;
            let config = &world.sched.config;
            let recent = |(at, _): &&(u64, usize)| *at + 2 * config.prune_grace_ms > world.now_ms;
            let finished: usize = ends.iter().filter(recent).map(|(_, count)| count).sum();
            let kept = 2 * config.kept_failed_per_owner;
            prop_assert!(world.records() <= world.running() + finished + kept + 3, "law 8: {} records", world.records());
        }
        world.settle();
    }
}

#[test]
fn a_backlog_of_unarchived_pods_pauses_launches_and_explain_says_so() {
    let mut world = World::new();
    let kind = JobKind {
        cpu: 100,
        tasks: 40,
        gang: false,
        spread: false,
        priority: 0,
        retries: 0,
        dataset: 0,
        depends: false,
        limited: 0,
    };
    world.step(&Step::Submit(kind));
    for _ in 0..50 {
        world.decide();
        let archives = |action: &Action| matches!(action, Action::Archive { .. });
        world.refuse_to(archives);
        for index in 0..20 {
            world.step(&Step::Execute(index));
            world.step(&Step::Kubelet(index));
        }
        (0..12).for_each(|_| world.step(&Step::Exit(0, true)));
        world.step(&Step::Deliver(100));
    }
    let explained = world.sched.explain(job_id(0)).unwrap();
    assert_eq!(explained.verdict, Verdict::Paused, "{}", explained.sentence);
    // Those that were running when the sixth finished may add to the backlog, no more.
    assert!(world.records() <= 6 + 12, "{} records", world.records());
    world.settle();
    assert_eq!(world.finished.len(), 1);
}
