//! `rackwright-serve` killed with kill -9: systemd starts it again, and it goes on where it was.

use super::rig::{Rig, count, phase, with};
use rackwright_tests::field::text;
use serde_json::json;

/// Kills the controller in three moments: right after a submit was answered, while tasks run, end and
/// wait, and while a gang runs.
pub(super) fn killed_while_jobs_run_and_wait(rig: &Rig<'_>) {
    // Three fit on a node at a time: half of them wait.
    let array = with(Rig::job("array", "400m", 4), &json!({"array": {"count": 12}}));
    let array = rig.submit(&array);
    let gang = with(Rig::job("gang", "700m", 3), &json!({"gang": {"size": 2, "spread": true}}));
    let gang = rig.submit(&gang);
    let last = Rig::job("last", "100m", 1);
    let last_id = rig.submit(&last);
    kill(rig);
    let again = rig.submit_again(&last);
    let replayed = again.body.get("replayed") == Some(&json!(true));
    assert!(
        again.status == 200 && replayed && text(&again.body, "id") == last_id,
        "a key that was answered before the kill answers with the first job: {}",
        again.body
    );
    rig.note("killed right after a submit");

    rig.until_job(&array, "has tasks that have ended and others that have not", |job| {
        (1..12).contains(&count(job, "succeeded"))
    });
    kill(rig);
    rig.note("killed while tasks run, end and wait");
    rig.until_job(&gang, "runs", |job| phase(job) == "running");
    kill(rig);
    rig.note("killed while a gang runs");

    let second = "systemd-run --quiet --pipe --wait -p User=rackwright-serve \
                  rackwright serve --config /etc/rackwright/serve.toml 2>&1; echo exit $?";
    let refused = rig.on("control1", second);
    assert!(
        refused.contains("in use by another controller") && refused.trim().ends_with("exit 1"),
        "a second controller on the same store does not start: {refused}"
    );

    rig.succeeded_once(&array, 12);
    rig.succeeded_once(&gang, 2);
    rig.succeeded_once(&last_id, 1);
    let restarts = rig.on("control1", "systemctl show -p NRestarts --value rackwright-serve");
    assert_eq!(restarts.trim(), "3", "systemd started it again after each kill, and only then");
    rig.is_idle();
    rig.note("all jobs of the killed controller ended, each task once");
}

/// Kills it and waits until its successor answers.
pub(super) fn kill(rig: &Rig<'_>) {
    let pid = "systemctl show -p MainPID --value rackwright-serve";
    let before = rig.on("control1", pid);
    rig.on("control1", "systemctl kill -s KILL rackwright-serve");
    rig.until("systemd starts the controller again", || {
        let now = rig.on("control1", pid);
        (now.trim() != "0" && now != before).then_some(())
    });
    let operator = rig.site.api("operator");
    rig.until("the controller answers again", || {
        operator.call("GET", "/readyz", None, &[]).is_ok_and(|answer| answer.status == 200).then_some(())
    });
}
