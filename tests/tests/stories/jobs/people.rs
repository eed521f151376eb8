//! What people do to jobs that run: cancel them, and delete their pods behind our back.

use super::rig::{Rig, phase};
use rackwright_tests::field::{list, text};
use serde_json::Value;

/// A cancelled job's pods end and go, its history stays.
pub(super) fn cancel_a_running_job(rig: &Rig<'_>) {
    let id = rig.submit(&Rig::job("cancelled", "100m", 600));
    rig.until_job(&id, "runs", |job| phase(job) == "running");
    rig.api.expect("POST", &format!("/v1/jobs/{id}/cancel"), None, &[]).unwrap();
    let job = rig.ended(&id, "cancelled", &[(0, 1, "cancelled")]);
    let attempt = &list(&job, "attempts")[0];
    assert!(text(attempt, "log_tail").starts_with("start\n"), "its log is kept: {attempt:#}");
    let pod = text(attempt, "pod");
    rig.until("the cancelled pod has left the cluster", || rig.pod(&pod).is_none().then_some(()));
    rig.note("a cancelled job's pod ended, was archived and left");
}

/// A pod that somebody deletes while it runs is lost, not failed: it is tried again at no cost of a retry.
pub(super) fn delete_a_pod_behind_our_back(rig: &Rig<'_>) {
    let id = rig.submit(&Rig::slow_once("deleted", "100m", 600));
    let running = rig.until_job(&id, "runs", |job| phase(job) == "running");
    let pod = text(&list(&running, "live")[0], "pod");
    let path = format!("/api/v1/namespaces/team-vision/pods/{pod}");
    rig.kubernetes.expect("DELETE", &path, None, &[]).unwrap();
    let job = rig.ended(&id, "succeeded", &[(0, 1, "lost"), (0, 2, "succeeded")]);
    let reason = text(&list(&job, "attempts")[0], "reason");
    assert!(reason.contains("deleted"), "the history says what happened: {reason:?}");
    never_at_once(&job);
    rig.note("a pod deleted behind our back was tried again");
}

/// Law 6: a later attempt of a task starts only after the one before it has ended.
pub(super) fn never_at_once(job: &Value) {
    let attempts = list(job, "attempts");
    let task = |attempt: &Value| text(attempt, "pod").rsplit_once('-').unwrap().0.to_owned();
    let ms = |attempt: &Value, key: &str| attempt[key].as_u64().unwrap();
    for pair in attempts.windows(2).filter(|pair| task(&pair[0]) == task(&pair[1])) {
        assert!(
            ms(&pair[1], "placed_at_ms") >= ms(&pair[0], "finished_at_ms"),
            "law 6: an attempt is placed only after the one before it has ended: {job:#}"
        );
    }
}
