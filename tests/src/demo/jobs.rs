//! Stages 5 and 6: a sweep on the replicated table, a gang, a retry from a checkpoint, a job that cannot
//! start; then what is left of their pods.

use super::findings::Findings;
use super::{Demo, DemoError, must};
use crate::field::{number, text};
use crate::http::{Api, wait_until};
use crate::stage;
use serde_json::{Value, json};
use std::time::Duration;

const LONG: Duration = Duration::from_mins(3);
/// Tasks of the sweep: 5 regularisations x 4 feature widths.
pub(super) const SWEEP: u64 = 20;

impl Demo {
    /// Stage 5.
    pub(super) fn run_jobs(&mut self) -> Result<(), DemoError> {
        let (vision, ranking) = (self.site.api("vision"), self.site.api("ranking"));
        let before = vision.get("/v1/etcd")?;
        self.findings.etcd_before = in_use(&before);
        self.findings.pods_before = number(&before, "pods");
        self.measure_start(&vision)?;
        let sweep = self.submit(&vision, &self.sweep_job())?;
        self.sweep.clone_from(&sweep);
        let gang = self.submit(&ranking, &gang_job())?;
        let retry = self.submit(&ranking, &retry_job())?;
        let giant = self.submit(&vision, &giant_job())?;
        self.explain_giant(&vision, &giant)?;
        for (api, job) in [(&vision, &sweep), (&ranking, &gang), (&ranking, &retry)] {
            self.finish(api, job)?;
        }
        Self::check_gang(&ranking, &gang)?;
        Self::check_retry(&ranking, &retry)?;
        self.foreign_pods()?;
        vision.expect("POST", &format!("/v1/jobs/{giant}/cancel"), None, &[])?;
        let listed = self.rackwright(&["job", "list"])?;
        listed.lines().for_each(stage::note);
        Ok(())
    }

    /// Stage 6.
    pub(super) fn prune(&mut self) -> Result<(), DemoError> {
        let api = self.site.api("operator");
        let gone = wait_until("finished pods are pruned", LONG, || {
            let counters = api.get("/v1/etcd")?;
            let left = counters.get("job_pods").and_then(Value::as_u64).unwrap_or(u64::MAX);
            // A few failed pods are kept for a look, a bounded number per owner.
            Ok((left <= 6).then_some(counters))
        })?;
        self.findings.pods_peak = number(&gone, "pods_peak");
        self.findings.pods_after = number(&gone, "pods");
        self.findings.etcd_peak = number(&gone, "in_use_peak_bytes").max(self.findings.etcd_before);
        stage::command("curl -X POST …/v1/etcd/compact");
        let after = api.expect("POST", "/v1/etcd/compact", None, &[])?;
        self.findings.etcd_after = in_use(&after);
        self.findings.etcd_peak = self.findings.etcd_peak.max(self.findings.etcd_after);
        let Findings { pods_before: before, pods_peak: peak, pods_after: left, .. } = self.findings;
        stage::note(format_args!(
            "{before} pod records before, {peak} at the peak, {left} now; their history stays:"
        ));
        let history = self.rackwright(&["job", "list", "--limit", "3"])?;
        history.lines().for_each(stage::note);
        Ok(())
    }

    fn submit(&mut self, api: &Api, job: &Value) -> Result<String, DemoError> {
        let name = job.get("name").and_then(Value::as_str).unwrap_or("job").to_owned();
        stage::command(format_args!("curl -X POST …/v1/jobs -d @{name}.json"));
        let key = format!("Idempotency-Key: demo-{name}-{}", std::process::id());
        let submitted = api.expect("POST", "/v1/jobs", Some(job), &[&key])?;
        let again = api.expect("POST", "/v1/jobs", Some(job), &[&key])?;
        let id = text(&submitted, "id");
        must(text(&again, "id") == id, "a repeated key answers with the first job", &again)?;
        let tasks = number(&submitted, "tasks");
        let gang = job.get("gang").is_some();
        self.findings.jobs.submitted += if gang { 1 } else { tasks };
        stage::note(format_args!("{id} accepted: {tasks} tasks"));
        Ok(id)
    }

    /// One pod on an idle rack, from the accepted submit to the first instruction of its program, which says
    /// the time: Kubernetes' own times are whole seconds.
    fn measure_start(&mut self, api: &Api) -> Result<(), DemoError> {
        let job = json!({
            "name": "first", "project": "hello", "image": "docker.io/rackwright/python:1",
            "command": ["/usr/bin/python3", "-c", "import time; print(time.time_ns() // 1_000_000)"],
            "resources": {"cpu": "100m", "memory": "32MiB"},
        });
        let id = self.submit(api, &job)?;
        let done = self.finish(api, &id)?;
        let said = api.get(&format!("/v1/jobs/{id}/logs"))?;
        let running = said.as_u64().or_else(|| said.as_str()?.trim().parse().ok()).unwrap_or(0);
        let submitted = number(summary(&done), "submitted_at_ms");
        must(running >= submitted, "the time in the pod's log", &said)?;
        self.findings.jobs.submit_to_running_s = seconds(running.saturating_sub(submitted));
        stage::note(format_args!("submit to running: {:.2} s", self.findings.jobs.submit_to_running_s));
        Ok(())
    }

    fn sweep_job(&self) -> Value {
        let script = include_str!("../../demo/train.py");
        json!({
            "name": "sweep", "project": "apt-size", "model": "ridge",
            "datasets": [{"name": "packages"}],
            "image": "docker.io/rackwright/python:1",
            "command": ["/usr/bin/python3", "-c", script, "/data/packages", self.target()],
            "env": {"OPENBLAS_NUM_THREADS": "1"},
            "resources": {"cpu": "250m", "memory": "400MiB"},
            "array": {"count": SWEEP}, "results": true, "retries": 1,
        })
    }

    /// Waits for a job's end and counts its tasks.
    fn finish(&mut self, api: &Api, job: &str) -> Result<Value, DemoError> {
        let path = format!("/v1/jobs/{job}");
        let done = wait_until(&format!("{job} finished"), LONG, || {
            let now = api.get(&path)?;
            Ok((job_text(&now, "phase") == "finished").then_some(now))
        })?;
        let summary = summary(&done).clone();
        let counts = summary.get("counts").cloned().unwrap_or_default();
        let succeeded = job_text(&done, "outcome") == "succeeded";
        let (good, bad) = (number(&counts, "succeeded"), number(&counts, "failed"));
        let gang = done.pointer("/spec/gang").is_some_and(|gang| !gang.is_null());
        self.findings.jobs.succeeded += if gang { u64::from(succeeded) } else { good };
        self.findings.jobs.failed += if gang { u64::from(!succeeded) } else { bad };
        let attempts = done.get("attempts").and_then(Value::as_array).cloned().unwrap_or_default();
        let retried = attempts.iter().filter(|attempt| attempt_number(attempt) == 2).count();
        self.findings.jobs.retried += retried as u64;
        must(succeeded, &format!("{job} succeeds"), &summary)?;
        let took = number(&summary, "finished_at_ms").saturating_sub(number(&summary, "submitted_at_ms"));
        stage::note(format_args!("{job}: {good} tasks succeeded, {:.0} s after the submit", seconds(took)));
        Ok(done)
    }

    fn explain_giant(&mut self, api: &Api, job: &str) -> Result<(), DemoError> {
        let reason = wait_until("a reason", LONG, || {
            let explained = api.get(&format!("/v1/jobs/{job}/explain"))?;
            let sentence = text(&explained, "sentence");
            Ok((sentence.len() > 20).then_some(sentence))
        })?;
        stage::command(format_args!("rackwright job explain {job}"));
        stage::note(&reason);
        self.findings.jobs.waiting_reason = reason;
        Ok(())
    }

    /// Both members started within a second of each other, on two nodes.
    fn check_gang(api: &Api, job: &str) -> Result<(), DemoError> {
        let done = api.get(&format!("/v1/jobs/{job}"))?;
        let attempts = done.get("attempts").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut nodes: Vec<_> = attempts.iter().map(|attempt| text(attempt, "node")).collect();
        nodes.sort();
        nodes.dedup();
        must(attempts.len() == 2 && nodes.len() == 2, "two members on two nodes", &done)?;
        let log = api.call("GET", &format!("/v1/jobs/{job}/logs?task=0"), None, &[])?;
        stage::note(format_args!("gang on {}: {}", nodes.join(" and "), one_line(&log.body)));
        Ok(())
    }

    /// Attempt two says from which step it went on.
    fn check_retry(api: &Api, job: &str) -> Result<(), DemoError> {
        let log = api.call("GET", &format!("/v1/jobs/{job}/logs?attempt=2"), None, &[])?;
        let log = one_line(&log.body);
        must(log.contains("attempt 2 resumes from step 20"), "attempt 2 resumes from step 20", &log)?;
        stage::note(log);
        Ok(())
    }

    /// kube-scheduler places everybody else's pods; the taint keeps them off the ml nodes.
    fn foreign_pods(&self) -> Result<(), DemoError> {
        let api = self.site.kubernetes();
        for (name, tolerates) in [("plain", false), ("tolerant", true)] {
            let path = "/apis/apps/v1/namespaces/default/deployments";
            let answer = api.call("POST", path, Some(&deployment(name, tolerates)), &[])?;
            must(matches!(answer.status, 200 | 201 | 409), "the deployment is accepted", &answer.body)?;
        }
        let nodes = wait_until("both foreign pods run", LONG, || {
            let pods = api.get("/api/v1/namespaces/default/pods")?;
            let placed = |name: &str| running_on(&pods, name);
            Ok(placed("plain").zip(placed("tolerant")))
        })?;
        stage::note(format_args!("foreign pods: plain on {}, tolerant on {}", nodes.0, nodes.1));
        must(!nodes.0.starts_with("ml"), "a plain pod stays off the ml nodes", &nodes.0)?;
        must(nodes.1.starts_with("ml"), "a tolerant pod lands on an ml node", &nodes.1)?;
        let ours = self.site.api("vision");
        wait_until("our scheduler counts the foreign pod", LONG, || {
            let listed = ours.get("/v1/nodes")?;
            Ok(others_cpu(&listed, &nodes.1).filter(|milli| *milli >= 50))
        })?;
        for name in ["plain", "tolerant"] {
            api.call("DELETE", &format!("/apis/apps/v1/namespaces/default/deployments/{name}"), None, &[])?;
        }
        Ok(())
    }
}

fn gang_job() -> Value {
    json!({
        "name": "gang", "project": "allreduce", "image": "docker.io/rackwright/busybox:1",
        "command": ["/bin/sh", "-c", "echo rank $RACKWRIGHT_GANG_RANK of $RACKWRIGHT_GANG_SIZE; sleep 1"],
        "resources": {"cpu": "200m", "memory": "64MiB"},
        "gang": {"size": 2, "spread": true},
    })
}

fn retry_job() -> Value {
    json!({
        "name": "retry", "project": "steps", "image": "docker.io/rackwright/python:1",
        "command": ["/usr/bin/python3", "-c", include_str!("../../demo/steps.py")],
        "resources": {"cpu": "100m", "memory": "100MiB"},
        "retries": 2, "checkpoint": {"interval_s": 1},
    })
}

fn giant_job() -> Value {
    json!({
        "name": "giant", "project": "dreams", "image": "docker.io/rackwright/busybox:1",
        "command": ["/bin/true"],
        "resources": {"cpu": "100m", "memory": "512GiB"},
    })
}

fn deployment(name: &str, tolerates: bool) -> Value {
    let mut pod = json!({
        "containers": [{
            "name": "main", "image": "docker.io/rackwright/pause:1", "imagePullPolicy": "Never",
            "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}},
        }],
    });
    if tolerates && let Some(spec) = pod.as_object_mut() {
        spec.insert("tolerations".to_owned(), json!([{"key": "rackwright.dev/jobs", "operator": "Exists"}]));
        spec.insert("nodeSelector".to_owned(), json!({"rackwright.dev/role": "ml"}));
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    })
}

fn running_on(pods: &Value, app: &str) -> Option<String> {
    let pods = pods.get("items")?.as_array()?;
    let pod = pods.iter().find(|pod| {
        let is = |path: &str, wanted: &str| pod.pointer(path).and_then(Value::as_str) == Some(wanted);
        is("/metadata/labels/app", app) && is("/status/phase", "Running")
    })?;
    Some(pod.pointer("/spec/nodeName")?.as_str()?.to_owned())
}

fn others_cpu(nodes: &Value, name: &str) -> Option<u64> {
    let nodes = nodes.get("nodes")?.as_array()?;
    let node = nodes.iter().find(|node| node.get("name").and_then(Value::as_str) == Some(name))?;
    node.pointer("/others/cpu_milli")?.as_u64()
}

/// `<job>-<task>-<attempt>`: the attempt.
fn attempt_number(attempt: &Value) -> u64 {
    let pod = attempt.get("pod");
    let named = pod.and_then(Value::as_str).and_then(|name| name.rsplit_once('-')?.1.parse().ok());
    named.or_else(|| pod?.get("attempt")?.as_u64()).unwrap_or(0)
}

fn summary(job: &Value) -> &Value {
    job.get("job").unwrap_or(job)
}

fn job_text(job: &Value, key: &str) -> String {
    text(summary(job), key)
}

fn in_use(counters: &Value) -> u64 {
    counters.pointer("/size/in_use_bytes").and_then(Value::as_u64).unwrap_or(0)
}

fn one_line(body: &Value) -> String {
    body.as_str().map_or_else(|| body.to_string(), |text| text.trim().replace('\n', "; "))
}

#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
