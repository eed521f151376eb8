//! A node that loses its power: for a moment, and for good.

use super::people;
use super::rig::{Rig, count, phase, with};
use rackwright_tests::field::{list, text};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// `lease_s` and `lease_grace_s` of the controller's defaults.
const LEASE_AND_GRACE_MS: u64 = 50_000;

/// A node that reboots within its lease says itself what it lost: tried again at once, at no retry's cost.
pub(super) fn without_power_for_a_moment(rig: &Rig<'_>) {
    let pair = with(Rig::slow_once("reboot", "650m", 8), &json!({"array": {"count": 2}}));
    let pair = rig.submit(&pair);
    let running = rig.until_job(&pair, "runs on both nodes", |job| count(job, "running") == 2);
    let hit = task_on(&running, "ml1");
    rig.lab("kill", "ml1");
    rig.lab("start", "ml1");
    rig.note("ml1 lost its power for a moment");
    let job = rig.ended(&pair, "succeeded", &runs_when_lost(hit, "succeeded"));
    people::never_at_once(&job);
    ready(rig);
    rig.is_idle();
    rig.note("what the reboot ended was tried again");
}

/// A node dies with a task and half of a gang on it; people go on working meanwhile; it comes back.
pub(super) fn dead_with_jobs_on_it(rig: &Rig<'_>) {
    let gang = with(Rig::slow_once("torn", "100m", 600), &json!({"gang": {"size": 2, "spread": true}}));
    let gang = rig.submit(&gang);
    // Two do not fit on one node, and the one that survives has ended before the other is tried again.
    let pair = with(Rig::slow_once("pair", "650m", 45), &json!({"array": {"count": 2}, "results": true}));
    let pair = rig.submit(&pair);
    rig.until_job(&gang, "runs", |job| count(job, "running") == 2);
    let running = rig.until_job(&pair, "runs on both nodes", |job| count(job, "running") == 2);
    let hit = task_on(&running, "ml1");
    let before = traces(rig);
    for kind in ["work/", "csi-", "\n"] {
        assert!(before.contains(kind), "ml1 has containers and volumes of its pods: {before}");
    }
    rig.lab("kill", "ml1");
    let killed_ms = now_ms();
    rig.note("ml1 is dead");
    rig.until("the cluster says that ml1 is not ready", || (rig.site.ready_nodes().len() == 4).then_some(()));
    rig.note("ml1 is not ready; what runs there is not given up yet");
    people::cancel_a_running_job(rig);
    people::delete_a_pod_behind_our_back(rig);
    let job = rig.ended(&pair, "succeeded", &runs_when_lost(hit, "succeeded"));
    people::never_at_once(&job);
    let attempts = list(&job, "attempts");
    let again = attempts.iter().find(|attempt| text(attempt, "pod").ends_with("-2")).unwrap();
    assert_eq!(text(again, "node"), "ml2", "it is tried again elsewhere: {again:#}");
    let placed_ms = again["placed_at_ms"].as_u64().unwrap();
    assert!(
        placed_ms >= killed_ms + LEASE_AND_GRACE_MS,
        "law 6: not before lease and grace have run out; {} ms after the kill",
        placed_ms.saturating_sub(killed_ms)
    );
    rig.note(&format!("tried again elsewhere {} s after the kill", (placed_ms - killed_ms) / 1000));

    let torn = rig.until_job(&gang, "waits as a whole", |job| phase(job) == "pending");
    assert_eq!(count(&torn, "pending"), 2, "no member runs without the other: {torn:#}");
    rig.lab("start", "ml1");
    let runs = [(0, 1, "x"), (0, 2, "succeeded"), (1, 1, "x"), (1, 2, "succeeded")].map(|(task, no, how)| {
        let first = if torn_on(&torn, task) == "ml1" { "lost" } else { "gang_stopped" };
        (task, no, if no == 1 { first } else { how })
    });
    let job = rig.ended(&gang, "succeeded", &runs);
    people::never_at_once(&job);
    rig.note("ml1 is back, and the gang ran as a whole");
    ready(rig);
    no_leftovers(rig);
    rig.is_idle();
}

/// Both tasks ran once; the one that was hit ran again.
fn runs_when_lost(hit: u64, second: &'static str) -> Vec<super::rig::Run> {
    let mut runs = vec![(1 - hit, 1, "succeeded"), (hit, 1, "lost"), (hit, 2, second)];
    runs.sort_unstable();
    runs
}

/// The task that runs on a node.
fn task_on(job: &Value, node: &str) -> u64 {
    let live = list(job, "live");
    let found = live.iter().find(|attempt| text(attempt, "node") == node);
    let pod = text(found.unwrap_or_else(|| panic!("nothing runs on {node}: {job:#}")), "pod");
    pod.rsplit('-').nth(1).unwrap().parse().unwrap()
}

/// Where the first attempt of a task ran.
fn torn_on(job: &Value, task: u64) -> String {
    let attempts = list(job, "attempts");
    let found = attempts.iter().find(|attempt| text(attempt, "pod").ends_with(&format!("-{task}-1")));
    found.map(|attempt| text(attempt, "node")).unwrap_or_default()
}

fn ready(rig: &Rig<'_>) {
    rig.until("five nodes are Ready again", || (rig.site.ready_nodes().len() == 5).then_some(()));
}

/// What the dead node had of its pods is cleared away once it is back: what runs, kubelet's folders, and
/// the work volumes of attempts that nobody waits for. (Dead containers' records go with kubelet's own
/// collection, a minute or two later.)
fn no_leftovers(rig: &Rig<'_>) {
    rig.until("the API server has no pod of ours", || {
        let answer = rig.kubernetes.get("/api/v1/namespaces/team-vision/pods").ok()?;
        list(&answer, "items").is_empty().then_some(())
    });
    rig.until("nothing of its old pods is left on ml1", || traces(rig).is_empty().then_some(()));
    rig.note("nothing of its old pods is left on ml1");
}

/// What ml1 has of pods: running tasks, kubelet's folders, volumes, folders of attempts.
fn traces(rig: &Rig<'_>) -> String {
    let look = "ctr -n k8s.io tasks ls -q; ls /var/lib/kubelet/pods /data/rackwright/volumes; \
                find /data/rackwright/work -mindepth 1 -name '*-[0-9]*'";
    rig.on("ml1", &format!("({look}) 2>/dev/null | grep -v ':$' || true")).trim().to_owned()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
