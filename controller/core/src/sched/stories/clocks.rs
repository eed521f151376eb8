//! Whose clock counts: ours, also where a kubelet's differs.

use super::*;

/// How far the kubelet's clock is off.
const OFF_MS: u64 = 600_000;

fn ended(pod: PodKey, started_at_ms: Option<u64>, finished_at_ms: u64) -> What {
    What::AttemptFinished {
        pod,
        uid: uid(pod),
        outcome: Outcome::Succeeded,
        exit_code: Some(0),
        reason: String::new(),
        started_at_ms,
        finished_at_ms: Some(finished_at_ms),
    }
}

fn placed(now_ms: u64) -> Rack {
    let mut rack = Rack { sched: Sched::new(config()), now_ms };
    rack.see(facts(0));
    rack.submit(1, JobSpec { max_run_time_s: 3, ..spec(500, 64) });
    assert_eq!(rack.launches(), ["1/0/1@ml1"]);
    rack
}

fn started(rack: &mut Rack, said_ms: u64) {
    let key = pod(1, 0, 1);
    let started_at_ms = Some(said_ms);
    rack.tell(What::PodObserved { pod: key, uid: uid(key), phase: PodPhase::Running, started_at_ms });
}

#[test]
fn a_start_before_the_placement_does_not_shorten_the_run() {
    let mut rack = placed(1_000_000);
    rack.now_ms += 500;
    started(&mut rack, 1_000_500 - OFF_MS);
    let seen = rack.sched.attempt(pod(1, 0, 1)).unwrap();
    assert_eq!(seen.started_at_ms, Some(1_000_500));
    assert_eq!(rack.sched.next_wake_ms(), Some(1_003_500), "it may run for three seconds");
    assert_eq!(rack.sched.view(job_id(1)).unwrap().started_at_ms, Some(1_000_500));
}

#[test]
fn a_start_in_the_future_does_not_lengthen_the_run() {
    let mut rack = placed(1_000_000);
    started(&mut rack, 1_000_000 + OFF_MS);
    assert_eq!(rack.sched.next_wake_ms(), Some(1_003_000));
}

#[test]
fn a_start_that_was_cut_to_whole_seconds_counts_from_the_placement_at_the_earliest() {
    let mut rack = placed(1_000_900);
    rack.now_ms += 50;
    started(&mut rack, 1_000_000);
    assert_eq!(rack.sched.attempt(pod(1, 0, 1)).unwrap().started_at_ms, Some(1_000_900));
}

#[test]
fn of_a_clock_that_differs_only_how_long_it_ran_counts() {
    for off in [|ms: u64| ms - OFF_MS, |ms: u64| ms + OFF_MS] {
        let mut rack = placed(1_000_000);
        rack.now_ms += 1_000;
        started(&mut rack, off(1_001_000));
        rack.now_ms += 60_000;
        rack.tell(ended(pod(1, 0, 1), Some(off(1_001_000)), off(1_003_000)));
        let seen = rack.sched.attempt(pod(1, 0, 1)).unwrap();
        assert_eq!((seen.started_at_ms, seen.finished_at_ms), (Some(1_001_000), Some(1_003_000)));
    }
}

#[test]
fn an_end_of_which_nothing_was_seen_before_lies_between_the_placement_and_now() {
    let mut rack = placed(1_000_000);
    rack.now_ms += 5_000;
    rack.tell(ended(pod(1, 0, 1), Some(1_000_000 - OFF_MS), 1_002_000 - OFF_MS));
    let seen = rack.sched.attempt(pod(1, 0, 1)).unwrap();
    assert_eq!((seen.started_at_ms, seen.finished_at_ms), (Some(1_003_000), Some(1_005_000)));
    let mut rack = placed(1_000_000);
    rack.now_ms += 5_000;
    rack.tell(ended(pod(1, 0, 1), None, 1_002_000 - OFF_MS));
    assert_eq!(rack.sched.attempt(pod(1, 0, 1)).unwrap().finished_at_ms, Some(1_005_000));
}
