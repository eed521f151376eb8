//! Where the scheduler stops: at what others ask for, what is being created, and what a job may cost.

use super::*;

#[test]
fn pods_of_others_that_ask_for_more_than_can_be_counted_take_all_room_and_give_it_back() {
    let mut rack = Rack::of(1);
    let web = |number: usize| PodUid::new(&format!("web-{number}")).unwrap();
    for number in 0..20 {
        let requests = crate::job::Resources { memory: Bytes::MAX, ..resources(1, 1) };
        let name = format!("default/web-{number}");
        let pod = ForeignPod { uid: web(number), name, node: node_name(0), requests };
        rack.tell(What::ForeignPodSeen { pod });
    }
    rack.submit(1, spec(100, 64));
    assert_eq!(rack.launches(), Vec::<String>::new());
    for number in 0..19 {
        rack.tell(What::ForeignPodGone { uid: web(number) });
    }
    assert_eq!(rack.launches(), Vec::<String>::new(), "one of them is left");
    rack.tell(What::ForeignPodGone { uid: web(19) });
    assert_eq!(rack.launches(), ["1/0/1@ml1"]);
}

#[test]
fn launches_pause_while_many_creations_are_not_answered_and_explain_says_so() {
    let mut rack = Rack::of(3);
    rack.submit(1, JobSpec { array: Some(Array { count: 12 }), ..spec(500, 64) });
    assert_eq!(rack.launches().len(), 8);
    let paused = (Verdict::Paused, "waits: 8 pods are being created already".to_owned());
    assert_eq!(rack.verdict(1), paused);
    assert_eq!(rack.launches(), Vec::<String>::new());
    rack.tell(What::PodCreated { pod: pod(1, 0, 1), uid: uid(pod(1, 0, 1)) });
    assert_eq!(rack.verdict(1).0, Verdict::Fits);
    assert_eq!(rack.launches(), ["1/8/1@ml3"]);
}

#[test]
fn the_time_to_start_counts_from_when_the_pod_was_made() {
    let mut rack = Rack::of(1);
    rack.submit(1, spec(1500, 64));
    rack.launches();
    rack.now_ms += config().start_limit_ms - 1;
    let key = pod(1, 0, 1);
    rack.tell(What::PodCreated { pod: key, uid: uid(key) });
    rack.now_ms += config().start_limit_ms - 1;
    assert_eq!(rack.decide(), []);
    rack.now_ms += 1;
    let stop = Action::StopPod { pod: key, uid: Some(uid(key)), why: StopReason::NotStarted };
    assert_eq!(rack.decide(), [stop]);
}

#[test]
fn a_job_with_a_money_cap_runs_only_where_its_cost_is_known() {
    let mut rack = Rack::of(0);
    rack.see(NodeFacts { price_per_hour: None, ..facts(0) });
    rack.see(NodeFacts { price_per_hour: Some("3600 USD".parse().unwrap()), ..facts(1) });
    let capped = || JobSpec { money_cap: Some("2 EUR".parse().unwrap()), ..spec(500, 64) };
    rack.submit(1, capped());
    rack.submit(2, spec(500, 64));
    assert_eq!(rack.launches(), ["2/0/1@ml1"], "without a cap any node will do");
    let said = "has a money cap in EUR, and no ml node has a price in that: change the cap or give a server a \
                contract";
    assert_eq!(rack.verdict(1), (Verdict::Never, said.to_owned()));
    let nodes = rack.sched.explain(job_id(1)).unwrap().nodes;
    assert_eq!(nodes[1].reasons, ["has no price in EUR, the currency of the money cap"]);
    rack.see(facts(2));
    assert_eq!(rack.launches(), ["1/0/1@ml3"]);
}

#[test]
fn a_money_cap_counts_every_live_pod_from_when_it_was_placed() {
    let mut rack = Rack::of(1);
    // A node costs 1 EUR a second here, and each task takes a quarter of it.
    let cap = Some("3 EUR".parse().unwrap());
    rack.submit(1, JobSpec { money_cap: cap, array: Some(Array { count: 2 }), ..spec(500, 64) });
    rack.launches();
    (0..2).for_each(|task| rack.run(pod(1, task, 1)));
    let began = rack.now_ms;
    assert_eq!(rack.sched.next_wake_ms(), Some(began + 6_000));
    rack.now_ms += 2_000;
    rack.end(pod(1, 0, 1), Outcome::Succeeded);
    rack.decide();
    rack.tell(What::Archived { pod: pod(1, 0, 1) });
    rack.tell(What::PodGone { pod: pod(1, 0, 1), uid: Some(uid(pod(1, 0, 1))) });
    // Half an euro each so far; what is left lasts one of them for eight more seconds.
    assert_eq!(rack.sched.next_wake_ms(), Some(began + 10_000));
    rack.sched = Sched::restore(config(), rack.sched.snapshot());
    rack.sched.sanity_check().unwrap();
    assert_eq!(rack.sched.next_wake_ms(), Some(began + 10_000), "after a restart too");
}

#[test]
fn what_does_not_start_in_time_has_failed_and_is_tried_again() {
    let mut rack = Rack::of(1);
    rack.submit(1, JobSpec { retries: 1, ..spec(1500, 64) });
    rack.launches();
    rack.tell(What::PodCreated { pod: pod(1, 0, 1), uid: uid(pod(1, 0, 1)) });
    rack.sched.sight(None);
    rack.now_ms += 10 * config().start_limit_ms;
    assert_eq!(rack.decide(), [], "it may have started unseen");
    rack.sched.sight(Some(rack.now_ms));
    rack.sched.sanity_check().unwrap();
    rack.now_ms += config().start_limit_ms - 1;
    assert_eq!(rack.decide(), []);
    rack.now_ms += 1;
    let key = pod(1, 0, 1);
    let stop = Action::StopPod { pod: key, uid: Some(uid(key)), why: StopReason::NotStarted };
    assert_eq!(rack.decide(), [stop]);
    rack.end(key, Outcome::Failed);
    rack.now_ms += config().backoff_ms;
    assert!(rack.decide().iter().any(|action| matches!(action, Action::CreatePod { .. })));
}

#[test]
fn time_limit_deadline_and_money_cap_each_end_a_job() {
    let mut rack = Rack::of(1);
    // A node costs 1 EUR a second here, and a quarter of it is taken.
    rack.submit(1, JobSpec { max_run_time_s: 3, retries: 5, ..spec(500, 64) });
    rack.submit(2, JobSpec { deadline_s: Some(rack.now_ms / 1000 + 5), ..spec(500, 64) });
    rack.submit(3, JobSpec { money_cap: Some("2 EUR".parse().unwrap()), ..spec(500, 64) });
    rack.launches();
    (1..=3).for_each(|number| rack.run(pod(number, 0, 1)));
    let expected = [
        (1, 3_000, StopReason::TimeLimit),
        (2, 5_000, StopReason::Deadline),
        (3, 8_000, StopReason::MoneyCap),
    ];
    let began = rack.now_ms;
    for (number, after_ms, why) in expected {
        assert_eq!(rack.sched.next_wake_ms(), Some(began + after_ms));
        rack.now_ms = began + after_ms;
        let stop = Action::StopPod { pod: pod(number, 0, 1), uid: Some(uid(pod(number, 0, 1))), why };
        let actions = rack.decide();
        assert!(actions.contains(&stop), "{actions:?}");
        rack.end(pod(number, 0, 1), Outcome::Failed);
        let finish = Action::FinishJob { job: job_id(number), outcome: why.outcome() };
        assert!(rack.decide().contains(&finish));
        rack.tell(What::Archived { pod: pod(number, 0, 1) });
        rack.tell(What::PodGone { pod: pod(number, 0, 1), uid: Some(uid(pod(number, 0, 1))) });
    }
}
