//! The rack with jobs on it, and what must hold of every job that has ended.
//!
//! Runs are counted three times, by three that do not know of each other: our history, the API server's
//! audit log, and what the tasks themselves wrote.

use rackwright_tests::field::{list, number, text};
use rackwright_tests::http::{Answer, Api, wait_until};
use rackwright_tests::rack::StoryRack;
use rackwright_tests::shell::ShellError;
use rackwright_tests::site::Site;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Longer than anything here takes when nothing is broken.
pub(super) const LONG: Duration = Duration::from_mins(3);

/// Writes one line a start, and a result where it has a volume for it; ends at once when it is told to.
const TASK: &str = "trap 'exit 143' TERM; echo start
    [ ! -d /work ] || echo '{\"done\": true}' > /work/results/row.jsonl
    sleep ${SLEEP:-0} & wait $!; echo end";

/// A rack that is up, with a token of one team.
pub(super) struct Rig<'a> {
    pub(super) rack: &'a StoryRack,
    pub(super) site: Site,
    pub(super) api: Api,
    pub(super) kubernetes: Api,
    since: Instant,
}

/// One attempt of a task and how it ended: `(task, attempt, outcome)`.
pub(super) type Run = (u64, u64, &'static str);

impl<'a> Rig<'a> {
    /// Raises the servers and the cluster.
    pub(super) fn raise(rack: &'a StoryRack) -> Self {
        let since = Instant::now();
        for args in [&["lab", "up"][..], &["apply", "--yes"]] {
            let outcome = rack.run(args).unwrap();
            assert_eq!(outcome.code, 0, "{args:?}: {}", outcome.stderr);
        }
        let site = rack.site().unwrap();
        site.open_kubernetes().unwrap();
        site.make_operator().unwrap();
        site.make_token("vision", "submitter").unwrap();
        let (api, kubernetes) = (site.api("vision"), site.kubernetes());
        let rig = Self { rack, site, api, kubernetes, since };
        rig.note("the rack is up");
        rig
    }

    /// A line with the time, for whoever reads the story's output.
    pub(super) fn note(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.since.elapsed().as_secs_f64());
    }

    /// Runs a command line on a server.
    pub(super) fn on(&self, server: &str, line: &str) -> String {
        self.site.on(server, line).unwrap()
    }

    /// Changes the lab: `kill`, `start`.
    pub(super) fn lab(&self, verb: &str, server: &str) {
        let outcome = self.rack.run(&["lab", verb, server]).unwrap();
        assert_eq!(outcome.code, 0, "lab {verb} {server}: {}", outcome.stderr);
    }

    /// Waits for something, looking a few times a second.
    pub(super) fn until<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        wait_until(what, LONG, || Ok::<_, ShellError>(probe())).unwrap()
    }

    /// A job whose tasks say when they start and sleep.
    pub(super) fn job(name: &str, cpu: &str, sleep_s: u32) -> Value {
        json!({
            "name": name, "project": "faults", "image": "docker.io/rackwright/busybox:1",
            "command": ["/bin/sh", "-c", TASK], "env": {"SLEEP": sleep_s.to_string()},
            "resources": {"cpu": cpu, "memory": "32MiB"},
        })
    }

    /// As [`Rig::job`], but only the first attempt sleeps.
    pub(super) fn slow_once(name: &str, cpu: &str, sleep_s: u32) -> Value {
        let task = format!("[ $RACKWRIGHT_ATTEMPT = 1 ] || SLEEP=0; {TASK}");
        with(Self::job(name, cpu, sleep_s), &json!({"command": ["/bin/sh", "-c", task]}))
    }

    /// Submits under a key, which must be accepted as new.
    pub(super) fn submit(&self, job: &Value) -> String {
        let answer = self.submit_again(job);
        assert_eq!(answer.status, 201, "the submit is accepted: {}", answer.body);
        text(&answer.body, "id")
    }

    /// Submits under the key that stands for this job's name.
    pub(super) fn submit_again(&self, job: &Value) -> Answer {
        let key = format!("Idempotency-Key: story-{}", text(job, "name"));
        self.api.call("POST", "/v1/jobs", Some(job), &[&key]).unwrap()
    }

    /// A job as the controller shows it; `None` while it does not answer.
    pub(super) fn show(&self, id: &str) -> Option<Value> {
        self.api.get(&format!("/v1/jobs/{id}")).ok()
    }

    /// Waits until the job stands so.
    pub(super) fn until_job(&self, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_until(&format!("{id} {what}"), LONG, || {
            last = self.show(id).unwrap_or_default();
            Ok::<_, ShellError>(holds(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error}; it is {last:#}"))
    }

    /// Waits for the job's end and checks that exactly these runs happened, each once.
    pub(super) fn ended(&self, id: &str, outcome: &str, runs: &[Run]) -> Value {
        let job = self.until_job(id, "has ended and its logs are kept", |job| {
            let kept = |attempt: &Value| {
                let ran = matches!(text(attempt, "outcome").as_str(), "succeeded" | "cancelled");
                !ran || !text(attempt, "log_tail").is_empty()
            };
            phase(job) == "finished" && list(job, "attempts").iter().all(kept)
        });
        assert_eq!(text(summary(&job), "outcome"), outcome, "{id} ends as {outcome}: {job:#}");
        let attempts = list(&job, "attempts");
        let mut seen: Vec<(u64, u64, String)> = attempts
            .iter()
            .map(|attempt| {
                let (task, attempt_no) = task_and_attempt(&text(attempt, "pod"));
                (task, attempt_no, text(attempt, "outcome"))
            })
            .collect();
        seen.sort();
        let wanted: Vec<_> = runs.iter().map(|(task, no, how)| (*task, *no, (*how).to_owned())).collect();
        assert_eq!(seen, wanted, "{id}: exactly these runs, each once: {job:#}");
        let uids: BTreeSet<_> = attempts.iter().map(|attempt| text(attempt, "uid")).collect();
        assert_eq!(uids.len(), attempts.len(), "{id}: every run was a pod of its own: {job:#}");
        let made = self.creations(id);
        let pods: BTreeMap<_, _> = attempts.iter().map(|attempt| (text(attempt, "pod"), 1)).collect();
        assert_eq!(made, pods, "{id}: the API server made each of these pods once and no other");
        for attempt in attempts.iter().filter(|attempt| text(attempt, "outcome") == "succeeded") {
            let wrote = text(attempt, "log_tail");
            assert_eq!(wrote, "start\nend\n", "{id}: a run that succeeded started once: {attempt:#}");
        }
        job
    }

    /// As [`Rig::ended`], for a job whose tasks all succeed at the first attempt.
    pub(super) fn succeeded_once(&self, id: &str, tasks: u64) {
        let runs: Vec<Run> = (0..tasks).map(|task| (task, 1, "succeeded")).collect();
        let job = self.ended(id, "succeeded", &runs);
        let counts = summary(&job).get("counts").cloned().unwrap_or_default();
        let others: u64 = ["pending", "starting", "running", "failed", "cancelled"]
            .iter()
            .map(|name| number(&counts, name))
            .sum();
        assert_eq!(
            (number(&counts, "succeeded"), others),
            (tasks, 0),
            "{id}: the counts are right: {counts}"
        );
    }

    /// How often the API server made each pod of a job, by its own audit log.
    fn creations(&self, job: &str) -> BTreeMap<String, u32> {
        let line = format!(
            "grep -h '\"verb\":\"create\"' /var/log/kubernetes/audit*.log | grep '\"name\":\"{job}-' || true"
        );
        let mut made = BTreeMap::new();
        for event in self.on("control1", &line).lines() {
            let event: Value = serde_json::from_str(event).unwrap();
            let is = |path: &str, wanted: &Value| event.pointer(path) == Some(wanted);
            if is("/objectRef/resource", &json!("pods")) && is("/responseStatus/code", &json!(201)) {
                *made.entry(text(&event["objectRef"], "name")).or_default() += 1;
            }
        }
        made
    }

    /// A pod as the API server has it.
    pub(super) fn pod(&self, name: &str) -> Option<Value> {
        let answer =
            self.kubernetes.call("GET", &format!("/api/v1/namespaces/team-vision/pods/{name}"), None, &[]);
        answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.body)
    }

    /// Nothing runs, nothing waits, no room is held and no pod of ours is left but a few failures.
    pub(super) fn is_idle(&self) {
        self.until("nothing holds room and nothing waits", || {
            let nodes = list(&self.api.get("/v1/nodes").ok()?, "nodes");
            let held: u64 = nodes.iter().map(|node| number(&node["jobs"], "pods")).sum();
            let waiting = self.api.get("/v1/queue").ok().map(|queue| number(&queue, "waiting"));
            (held == 0 && waiting == Some(0) && !nodes.is_empty()).then_some(())
        });
    }
}

impl Drop for Rig<'_> {
    /// A failed story leaves no rack to look at: what the controller said last goes with the failure.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said =
                self.site.on("control1", "journalctl -u rackwright-serve -o cat --no-pager | tail -40");
            eprintln!("the controller said last:\n{}", said.unwrap_or_else(|error| error.to_string()));
        }
    }
}

/// A copy with some fields set.
pub(super) fn with(mut job: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        job[key.as_str()] = value.clone();
    }
    job
}

/// The part of an answer that lists have too.
pub(super) fn summary(job: &Value) -> &Value {
    job.get("job").unwrap_or(job)
}

pub(super) fn phase(job: &Value) -> String {
    text(summary(job), "phase")
}

/// Tasks of a job that stand so.
pub(super) fn count(job: &Value, state: &str) -> u64 {
    summary(job).get("counts").map_or(0, |counts| number(counts, state))
}

/// `<job>-<task>-<attempt>`.
fn task_and_attempt(pod: &str) -> (u64, u64) {
    let mut parts = pod.rsplit('-').map(|part| part.parse().unwrap());
    let (attempt, task) = (parts.next().unwrap(), parts.next().unwrap());
    (task, attempt)
}
