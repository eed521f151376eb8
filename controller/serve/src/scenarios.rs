//! The whole controller over a cluster in memory: what happens to jobs when things go wrong.

use crate::cluster::Cluster;
use crate::config::{Config, Jobs, Kubernetes, Limits, Tls};
use crate::data_source::{Checkpoint, DataSource};
use crate::fake::FakeCluster;
use crate::server::{Outside, Server};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rackwright_core::job::{CheckpointRef, DatasetPin, JobRecord};
use rackwright_wire::id::{DatasetName, TaskIndex};
use rackwright_wire::sealed::{SEALED_VERSION, SealedSet, SetKind, SetList};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longer than anything here takes; a state that is not reached by then never is.
const PATIENCE: Duration = Duration::from_secs(30);

struct Rig {
    lease_s: u32,
    folder: tempfile::TempDir,
    cluster: FakeCluster,
    data: Option<Arc<dyn DataSource>>,
    server: Option<Server>,
    http: reqwest::Client,
}

#[derive(Debug, Default)]
struct Checkpoints(Mutex<Option<Checkpoint>>);

impl DataSource for Checkpoints {
    fn newest(&self, _: &DatasetName) -> Option<DatasetPin> {
        None
    }
    fn checkpoint<'a>(&'a self, _: &'a JobRecord, _: TaskIndex) -> BoxFuture<'a, Option<Checkpoint>> {
        async { self.0.lock().unwrap().clone() }.boxed()
    }
    fn checkpoints<'a>(&'a self, _: &'a JobRecord) -> BoxFuture<'a, BTreeMap<TaskIndex, Checkpoint>> {
        let found = self.0.lock().unwrap().clone();
        async move { found.into_iter().map(|found| (found.set.task, found)).collect() }.boxed()
    }
    fn sets<'a>(&'a self, job: &'a JobRecord) -> BoxFuture<'a, Result<SetList, crate::data::Error>> {
        async move {
            let set = |attempt, refused: Option<&str>| SealedSet {
                version: SEALED_VERSION,
                kind: SetKind::Results,
                team: job.team.to_string(),
                project: job.spec.project.to_string(),
                job: job.id.to_string(),
                task: 0,
                attempt,
                step: 0,
                node: "ml1".to_owned(),
                files: Vec::new(),
                refused: refused.map(str::to_owned),
                left_out: 0,
            };
            let sets = vec![set(1, Some("too much")), set(2, None), set(3, None)];
            let outcomes = [(sets[1].id(), "20 rows".to_owned())].into();
            Ok(SetList { version: SEALED_VERSION, sets, outcomes })
        }
        .boxed()
    }
}

fn certificate(folder: &Path) -> (Tls, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let tls = Tls { cert: folder.join("serve.crt"), key: folder.join("serve.key") };
    std::fs::write(&tls.cert, made.cert.pem()).unwrap();
    std::fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
    (tls, made.cert.pem())
}

impl Rig {
    async fn new(cluster: FakeCluster, data: Option<Arc<dyn DataSource>>) -> Self {
        Self::with_lease(cluster, data, 1).await
    }

    async fn with_lease(cluster: FakeCluster, data: Option<Arc<dyn DataSource>>, lease_s: u32) -> Self {
        let _first_wins = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (_, pem) = certificate(folder.path());
        let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
        let http = reqwest::Client::builder().add_root_certificate(root).timeout(PATIENCE).build().unwrap();
        let mut rig = Self { lease_s, folder, cluster, data, server: None, http };
        rig.start().await;
        rig
    }

    fn config(&self) -> Config {
        let folder = self.folder.path();
        Config {
            cluster: "test".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            store: folder.join("jobs.db"),
            tls: Tls { cert: folder.join("serve.crt"), key: folder.join("serve.key") },
            kubernetes: Kubernetes {
                kubeconfig: PathBuf::new(),
                image_pull_policy: "Never".to_owned(),
                seccomp: true,
            },
            etcd: None,
            limits: Limits::default(),
            jobs: Jobs {
                prune_grace_s: 0,
                keep_failed_per_owner: 0,
                lease_s: self.lease_s,
                lease_grace_s: 0,
                full_pass_s: 1,
                ..Jobs::default()
            },
            data: None,
        }
    }

    async fn start(&mut self) {
        let outside = Outside {
            cluster: Arc::new(self.cluster.clone()) as Arc<dyn Cluster>,
            data: self.data.clone(),
            routes: None,
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let config = self.config();
        let store = crate::server::open(&config).unwrap();
        self.server = Some(Server::start_with(config, store, outside, stop, tasks).await.unwrap());
    }

    async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.server.as_ref().unwrap().address().port())
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("operator.token")).unwrap().trim().to_owned()
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.http.get(self.url(path)).bearer_auth(self.token()).send().await.unwrap();
        response.json().await.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        let response = self.http.get(self.url(path)).bearer_auth(self.token()).send().await.unwrap();
        response.text().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(self.url(path)).bearer_auth(self.token()).json(&body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    async fn submit(&self, more: Value) -> String {
        let mut body = json!({"name": "fit", "image": "docker.io/rackwright/busybox:1",
            "resources": {"cpu": "500m", "memory": "64MiB"}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/jobs", body).await["id"].as_str().unwrap().to_owned()
    }

    /// Waits until the cluster has a pod of this name.
    async fn pod(&self, name: &str) {
        self.until(&format!("pod {name}"), async || self.cluster.get(name).is_some()).await;
    }

    /// Submits a job and waits until the first pod of its first task is there; answers both names.
    async fn placed(&self, more: Value) -> (String, String) {
        let id = self.submit(more).await;
        let pod = format!("{id}-0-1");
        self.pod(&pod).await;
        (id, pod)
    }

    /// As [`Rig::placed`], and has that pod run.
    async fn running(&self, more: Value) -> (String, String) {
        let (id, pod) = self.placed(more).await;
        self.cluster.run(&pod);
        self.job(&id, phase_is("running")).await;
        (id, pod)
    }

    /// Waits until the job stands so; answers it.
    async fn job(&self, id: &str, check: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let job = self.get(&format!("/v1/jobs/{id}")).await;
            if check(&job) {
                return job;
            }
            assert!(Instant::now() < deadline, "not reached: {job:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until(&self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !check().await {
            assert!(Instant::now() < deadline, "{what} was not reached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn phase_is(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |job| job["job"]["phase"] == phase
}

#[tokio::test]
async fn a_job_runs_is_archived_and_its_pod_pruned() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, pod) = rig.placed(json!({})).await;
    assert_eq!(rig.cluster.namespaces(), ["team-ops"]);
    rig.cluster.run(&pod);
    rig.job(&id, phase_is("running")).await;
    rig.cluster.end(&pod, 0);
    let job = rig
        .job(&id, |job| {
            job["job"]["outcome"] == "succeeded" && !job["attempts"].as_array().unwrap().is_empty()
        })
        .await;
    assert_eq!(job["attempts"][0]["pod"], pod);
    assert_eq!(job["attempts"][0]["node"], "ml1");
    rig.until("prune", async || rig.cluster.names().is_empty()).await;
    assert_eq!(rig.text(&format!("/v1/jobs/{id}/logs")).await, format!("{pod} said this\n"));
    let none = rig.get(&format!("/v1/jobs/{id}/logs?attempt=99")).await;
    assert_eq!(
        (&none["code"], &none["detail"]),
        (&json!("not-found"), &json!(format!("no attempt 99 of task 0 of job {id} here")))
    );
    assert_eq!(none["hint"], "the task has 1 attempt so far, counted from 1");
    let usage = rig.get("/v1/usage").await;
    assert_eq!(usage["rows"].as_array().unwrap().len(), 1);
    assert_eq!(rig.get("/v1/etcd").await["pods_peak"], 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_restart_with_jobs_running_loses_and_doubles_nothing() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let ids = [rig.submit(json!({})).await, rig.submit(json!({})).await, rig.submit(json!({})).await];
    let pods: Vec<String> = ids.iter().map(|id| format!("{id}-0-1")).collect();
    for pod in &pods {
        rig.pod(pod).await;
        rig.cluster.run(pod);
    }
    rig.job(&ids[0], phase_is("running")).await;
    rig.stop().await;
    rig.cluster.end(&pods[0], 0);
    rig.start().await;
    rig.job(&ids[0], |job| job["job"]["outcome"] == "succeeded").await;
    rig.job(&ids[1], phase_is("running")).await;
    for pod in &pods[1..] {
        rig.cluster.end(pod, 0);
    }
    for id in &ids {
        rig.job(id, |job| job["job"]["outcome"] == "succeeded").await;
    }
    assert!(rig.cluster.creations().values().all(|count| *count == 1), "{:?}", rig.cluster.creations());
    assert_eq!(rig.cluster.creations().len(), 3);
    rig.stop().await;
}

#[tokio::test]
async fn a_pod_whose_creation_was_not_answered_is_adopted() {
    let cluster = FakeCluster::with_node("ml1");
    cluster.lose_replies(1);
    let mut rig = Rig::new(cluster, None).await;
    let id = rig.submit(json!({})).await;
    rig.job(&id, phase_is("starting")).await;
    let pod = format!("{id}-0-1");
    rig.pod(&pod).await;
    rig.cluster.run(&pod);
    rig.job(&id, phase_is("running")).await;
    assert_eq!(rig.cluster.creations(), [(pod, 1)].into());
    rig.stop().await;
}

#[tokio::test]
async fn a_pod_made_while_a_list_takes_longer_than_a_full_pass_is_not_taken_for_gone() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let has_node = async || !rig.get("/v1/nodes").await["nodes"].as_array().unwrap().is_empty();
    rig.until("the node", has_node).await;
    rig.cluster.hold_lists(true);
    rig.until("a list is held", async || rig.cluster.lists().1 > 0).await;
    let (id, pod) = rig.running(json!({})).await;
    let (since, full_pass) = (Instant::now(), rig.config().jobs.full_pass());
    rig.until("more full passes are due", async || since.elapsed() > full_pass * 2).await;
    let (before, held) = rig.cluster.lists();
    assert_eq!(held, 1, "one at a time");
    rig.cluster.hold_lists(false);
    rig.until("the next list", async || rig.cluster.lists().0 > before).await;
    rig.cluster.end(&pod, 0);
    rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    assert_eq!(rig.cluster.creations(), [(pod, 1)].into());
    rig.stop().await;
}

#[tokio::test]
async fn submits_are_accepted_while_the_apiserver_is_away() {
    let cluster = FakeCluster::with_node("ml1");
    cluster.set_away(true);
    let mut rig = Rig::new(cluster, None).await;
    assert!(rig.text("/readyz").await.starts_with("ready; the cluster was not seen yet"));
    let id = rig.submit(json!({})).await;
    rig.job(&id, phase_is("pending")).await;
    rig.cluster.set_away(false);
    let pod = format!("{id}-0-1");
    rig.pod(&pod).await;
    rig.cluster.set_away(true);
    rig.cluster.end(&pod, 0);
    rig.cluster.set_away(false);
    rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_log_is_not_given_up_while_the_apiserver_is_away() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, pod) = rig.placed(json!({})).await;
    rig.cluster.end_and_leave(&pod);
    rig.job(&id, phase_is("finished")).await;
    rig.cluster.set_away(false);
    rig.job(&id, |job| job["attempts"][0]["log_tail"] == format!("{pod} said this\n")).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_log_is_not_given_up_while_its_kubelet_does_not_answer() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, pod) = rig.placed(json!({})).await;
    rig.cluster.silence_logs(1);
    rig.cluster.end(&pod, 0);
    rig.job(&id, |job| job["attempts"][0]["log_tail"] == format!("{pod} said this\n")).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_log_that_a_dead_server_does_not_hand_out_is_unavailable_and_not_a_timeout_of_ours() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, _pod) = rig.running(json!({})).await;
    rig.cluster.silence_logs(1);
    let answer = rig.text(&format!("/v1/jobs/{id}/logs")).await;
    assert!(answer.contains("log-unavailable") && !answer.contains("Idempotency-Key"), "{answer}");
    rig.stop().await;
}

#[tokio::test]
async fn a_log_is_read_also_when_its_node_is_not_ready_yet_after_an_absence_of_the_apiserver() {
    let mut rig = Rig::with_lease(FakeCluster::with_node("ml1"), None, 600).await;
    let (id, pod) = rig.running(json!({})).await;
    rig.cluster.node("ml1", false);
    rig.until("the node", async || rig.get("/v1/nodes").await["nodes"][0]["ready"] == false).await;
    rig.cluster.end(&pod, 0);
    rig.job(&id, |job| job["attempts"][0]["log_tail"] == format!("{pod} said this\n")).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_pod_that_somebody_deletes_is_tried_again_at_no_cost_of_a_retry() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, first) = rig.running(json!({"retries": 0})).await;
    rig.cluster.delete_by_hand(&first);
    let second = format!("{id}-0-2");
    rig.pod(&second).await;
    rig.cluster.end(&second, 0);
    let job = rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    assert_eq!(job["attempts"][0]["outcome"], "lost");
    assert!(job["attempts"][0]["reason"].as_str().unwrap().starts_with("its pod was deleted"), "{job:#}");
    rig.stop().await;
}

#[tokio::test]
async fn a_container_that_a_reboot_ended_is_tried_again_at_no_cost_of_a_retry() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, first) = rig.placed(json!({"retries": 0})).await;
    rig.cluster.run(&first);
    // What a kubelet says after a power cut, word for word.
    let ended = json!({"exitCode": 255, "reason": "Unknown"});
    let status = json!({"name": "job", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": ended}});
    rig.cluster.status(&first, json!({"phase": "Failed", "containerStatuses": [status]}));
    let second = format!("{id}-0-2");
    rig.pod(&second).await;
    rig.cluster.end(&second, 0);
    let job = rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    assert_eq!(job["attempts"][0]["outcome"], "lost");
    rig.stop().await;
}

#[tokio::test]
async fn a_pod_that_the_kubelet_refuses_costs_no_retry() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, first) = rig.placed(json!({})).await;
    rig.cluster.status(&first, json!({"phase": "Failed", "reason": "OutOfcpu", "message": "no room"}));
    let second = format!("{id}-0-2");
    rig.pod(&second).await;
    rig.cluster.end(&second, 0);
    let job = rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    assert_eq!(job["attempts"][0]["outcome"], "refused");
    rig.stop().await;
}

#[tokio::test]
async fn a_retry_resumes_from_the_newest_checkpoint() {
    let checkpoints = Arc::new(Checkpoints::default());
    let data = Arc::clone(&checkpoints) as Arc<dyn DataSource>;
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), Some(data)).await;
    let (id, first) = rig.running(json!({"retries": 1, "checkpoint": {"interval_s": 1}})).await;
    rig.cluster.end(&first, 1);
    // Sealed after the container had ended: the retry must still see it.
    let set = CheckpointRef { task: TaskIndex(0), step: 20, set: format!("checkpoint-{id}-0-1-20") };
    *checkpoints.0.lock().unwrap() = Some(Checkpoint { attempt: 1, set: set.clone() });
    let second = format!("{id}-0-2");
    rig.pod(&second).await;
    let pod = serde_json::to_value(rig.cluster.get(&second).unwrap()).unwrap();
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "RACKWRIGHT_RESUME_STEP", "value": "20"})), "{env:?}");
    assert_eq!(pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["resume"], set.set);
    rig.stop().await;
}

#[tokio::test]
async fn a_money_cap_ends_a_job_by_what_its_node_says_that_an_hour_costs() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let priced = async || !rig.get("/v1/nodes").await["nodes"][0]["price_per_hour"].is_null();
    rig.until("the price", priced).await;
    let (id, pod) = rig.placed(json!({"money_cap": "0.01 EUR"})).await;
    rig.cluster.run(&pod);
    let job = rig.job(&id, |job| job["job"]["outcome"] == "money_cap").await;
    assert_eq!(job["job"]["phase"], "finished", "{job:#}");
    rig.stop().await;
}

#[tokio::test]
async fn what_does_not_start_in_its_place_says_what_the_kubelet_says() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, pod) = rig.placed(json!({"image": "docker.io/rackwright/nowhere:1"})).await;
    let waiting = json!({"reason": "ErrImageNeverPull", "message": "nowhere:1 is not present"});
    let status = json!({"name": "job", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": waiting}});
    rig.cluster.status(&pod, json!({"phase": "Pending", "containerStatuses": [status]}));
    let path = format!("/v1/jobs/{id}/explain");
    let says = |answer: &Value, text: &str| answer["sentence"].as_str().unwrap().contains(text);
    rig.until("its reason", async || says(&rig.get(&path).await, "does not start: ErrImageNeverPull")).await;
    // What became of it once its time to start was over, as a kubelet says it.
    let unknown =
        json!({"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "could not be located"});
    let status = json!({"name": "job", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": unknown}});
    let ended = json!({"phase": "Failed", "reason": "Error", "message": "was active for longer than it may",
        "containerStatuses": [status]});
    rig.cluster.status(&pod, ended);
    let job = rig.job(&id, |job| job["job"]["phase"] == "finished").await;
    let reason = job["attempts"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("ErrImageNeverPull: nowhere:1 is not present"), "{reason}");
    rig.stop().await;
}

#[tokio::test]
async fn what_a_job_left_is_told_with_what_became_of_it() {
    let data = Arc::new(Checkpoints::default()) as Arc<dyn DataSource>;
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), Some(data)).await;
    let id = rig.submit(json!({"results": true})).await;
    let results = rig.get(&format!("/v1/jobs/{id}/results")).await;
    let sets = results["sets"].as_array().unwrap();
    let outcomes: Vec<_> = sets.iter().map(|set| set["outcome"].clone()).collect();
    assert_eq!(outcomes, [json!("refused: too much"), json!("20 rows"), Value::Null]);
    assert_eq!(sets[1]["id"], format!("results-{id}-0-2-0"));
    rig.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_keeps_its_record_until_it_is_archived() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let (id, pod) = rig.running(json!({})).await;
    assert_eq!(rig.post(&format!("/v1/jobs/{id}/cancel"), json!({})).await["already_ended"], false);
    let job = rig
        .job(&id, |job| {
            // An attempt that has ended is shown at once, its log once it is archived.
            job["job"]["outcome"] == "cancelled" && job["attempts"][0]["log_tail"] != ""
        })
        .await;
    assert_eq!(job["attempts"][0]["log_tail"], format!("{pod} said this\n"));
    rig.until("prune", async || rig.cluster.names().is_empty()).await;
    assert_eq!(rig.post(&format!("/v1/jobs/{id}/cancel"), json!({})).await["already_ended"], true);
    rig.stop().await;
}

#[tokio::test]
async fn a_job_on_a_dead_node_is_tried_again_elsewhere() {
    let cluster = FakeCluster::with_node("ml1");
    let mut rig = Rig::new(cluster, None).await;
    let (id, _first) = rig.running(json!({})).await;
    rig.cluster.node("ml2", true);
    rig.cluster.node("ml1", false);
    let second = format!("{id}-0-2");
    rig.pod(&second).await;
    let node = rig.cluster.get(&second).unwrap().spec.unwrap().node_name.unwrap();
    assert_eq!(node, "ml2");
    rig.cluster.end(&second, 0);
    let job = rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    assert_eq!(job["job"]["counts"]["succeeded"], 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_node_that_came_back_while_the_apiserver_was_away_keeps_its_pods() {
    let lease = Duration::from_secs(3);
    let mut rig = Rig::with_lease(FakeCluster::with_node("ml1"), None, 3).await;
    let (id, pod) = rig.running(json!({})).await;
    rig.cluster.node("ml1", false);
    rig.cluster.set_away(true);
    let since = Instant::now();
    rig.until("the lease has ended", async || since.elapsed() > lease + lease / 2).await;
    // Its lease would have ended long ago, if anybody had looked; but it was back before.
    rig.cluster.node("ml1", true);
    rig.cluster.set_away(false);
    rig.until("the cluster is seen", async || rig.get("/v1/nodes").await["nodes"][0]["ready"] == true).await;
    rig.cluster.end(&pod, 0);
    let job = rig.job(&id, |job| job["job"]["outcome"] == "succeeded").await;
    assert_eq!(rig.cluster.creations(), [(pod, 1)].into(), "{job:#}");
    rig.stop().await;
}

#[tokio::test]
async fn what_cannot_run_says_precisely_why() {
    let mut rig = Rig::new(FakeCluster::with_node("ml1"), None).await;
    let id = rig.submit(json!({"resources": {"cpu": "64", "memory": "64MiB"}})).await;
    let nodes_seen = |answer: &Value| !answer["nodes"].as_array().unwrap().is_empty();
    let path = format!("/v1/jobs/{id}/explain");
    rig.until("nodes", async || nodes_seen(&rig.get(&path).await)).await;
    let answer = rig.get(&path).await;
    assert_eq!(answer["verdict"], "never", "{answer}");
    assert!(answer["sentence"].as_str().unwrap().contains("64"), "{answer}");
    let queue = rig.get("/v1/queue").await;
    assert_eq!(queue["jobs"][0]["id"], id);
    rig.stop().await;
}
