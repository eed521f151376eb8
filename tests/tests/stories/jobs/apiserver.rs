//! The API server away for a minute: submits are accepted durably, what runs goes on, and all of it is
//! caught up with afterwards.

use super::controller;
use super::rig::{Rig, count, phase, with};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const OUTAGE: Duration = Duration::from_mins(1);
/// Between two submits while it is away.
const EVERY: Duration = Duration::from_secs(6);

/// Stops the API server with tasks running, submits and kills the controller meanwhile, and starts it
/// again after a minute.
pub(super) fn away_for_a_minute(rig: &Rig<'_>) {
    // Their ends fall into the outage: nobody sees them when they happen.
    let unseen = with(Rig::job("unseen", "250m", 15), &json!({"array": {"count": 4}}));
    let unseen = rig.submit(&unseen);
    rig.until_job(&unseen, "runs as a whole", |job| count(job, "running") == 4);
    // Killed, because it takes a minute to say goodbye to its watchers.
    rig.on("control1", "systemctl stop --no-block kube-apiserver; systemctl kill -s KILL kube-apiserver");
    let away = Instant::now();
    rig.until("the API server is away", || {
        let state = rig.on("control1", "systemctl show -p ActiveState --value kube-apiserver");
        matches!(state.trim(), "inactive" | "failed").then_some(())
    });
    rig.note("the API server is away");
    let answer = rig.kubernetes.call("GET", "/livez", None, &[]);
    assert!(answer.is_err(), "the API server is really away: {answer:?}");

    let mut meanwhile = vec![rig.submit(&Rig::job("meanwhile-0", "100m", 0))];
    let dropped = rig.submit(&Rig::job("dropped", "100m", 0));
    let path = format!("/v1/jobs/{dropped}/cancel");
    let cancelled = rig.api.call("POST", &path, None, &[]).unwrap();
    assert_eq!(
        cancelled.status, 200,
        "a cancel is accepted while the API server is away: {}",
        cancelled.body
    );
    controller::kill(rig);
    rig.note("the controller was killed meanwhile");
    while away.elapsed() < OUTAGE {
        let job = Rig::job(&format!("meanwhile-{}", meanwhile.len()), "100m", 0);
        meanwhile.push(rig.submit(&job));
        for id in &meanwhile {
            let shown = rig.show(id).unwrap();
            assert!(
                matches!(phase(&shown).as_str(), "pending" | "starting"),
                "{id} is kept and waits while the API server is away: {shown:#}"
            );
        }
        std::thread::sleep(EVERY.min(OUTAGE.saturating_sub(away.elapsed())));
    }
    let shown = rig.show(&unseen).unwrap();
    assert_eq!(count(&shown, "running"), 4, "what nobody saw end still counts as running: {shown:#}");
    rig.on("control1", "systemctl start kube-apiserver");
    rig.note(&format!("the API server is back; {} jobs were accepted meanwhile", meanwhile.len()));

    rig.succeeded_once(&unseen, 4);
    for id in &meanwhile {
        rig.succeeded_once(id, 1);
    }
    // Nothing of it was ever started, or its pod was stopped: either way nothing of it succeeded.
    let dropped = rig.until_job(&dropped, "has ended", |job| phase(job) == "finished");
    assert_eq!(dropped["job"]["outcome"], Value::from("cancelled"), "{dropped:#}");
    rig.is_idle();
    rig.note("all jobs of the outage ended, each task once");
}
