//! The controller against a real apiserver and etcd. There is no kubelet: the test is the node, writes
//! what one would write, and hands out logs. The programs are those of the lock, from this machine's cache; before
//! `rackwright artifacts fetch` has had them built once, the test says so and passes.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rackwright_artifacts::Artifacts;
use rackwright_artifacts::cache::{Cache, Lookup};
use rackwright_serve::config::{Jobs, Kubernetes, Limits, Tls};
use rackwright_serve::{Config, Server};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longer than an apiserver needs to come up on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
const TOKEN: &str = "for-this-test-only";

/// Ended with the test, whatever becomes of it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _gone_already = self.0.wait();
    }
}

struct Binaries {
    etcd: PathBuf,
    apiserver: PathBuf,
}

fn binaries() -> Option<Binaries> {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../artifacts.lock");
    let artifacts = Artifacts::load_into(&lock, Cache::default_dir()).unwrap();
    let find = |name: &str| match artifacts.lookup(name).unwrap() {
        Lookup::Hit(found) => Some(found.path),
        Lookup::Missing | Lookup::Corrupt { .. } => None,
    };
    Some(Binaries { etcd: find("etcd")?, apiserver: find("kube-apiserver")? })
}

struct Control {
    folder: tempfile::TempDir,
    binaries: Binaries,
    etcd_port: u16,
    port: u16,
    _etcd: Process,
    apiserver: Option<Process>,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(program: &Path, log: &Path, arguments: &[String]) -> Process {
    let log = std::fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Process(command.spawn().unwrap())
}

impl Control {
    fn start(binaries: Binaries) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let etcd = spawn(
            &binaries.etcd,
            &folder.path().join("etcd.log"),
            &[
                format!("--data-dir={}", folder.path().join("etcd").display()),
                format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        );
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("sa.key"), key.serialize_pem()).unwrap();
        std::fs::write(folder.path().join("sa.pub"), key.public_key_pem()).unwrap();
        std::fs::write(folder.path().join("tokens.csv"), format!("{TOKEN},test,test,\"system:masters\"\n"))
            .unwrap();
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]});
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let mut control = Self { folder, binaries, etcd_port, port, _etcd: etcd, apiserver: None };
        control.start_apiserver();
        control
    }

    fn start_apiserver(&mut self) {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let process = spawn(
            &self.binaries.apiserver,
            &self.folder.path().join("apiserver.log"),
            &[
                format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={}", self.port),
                format!("--cert-dir={}", file("certs")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--service-account-issuer=https://test".to_owned(),
                format!("--service-account-key-file={}", file("sa.pub")),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            ],
        );
        self.apiserver = Some(process);
    }

    async fn client(&self) -> kube::Client {
        let file = kube::config::Kubeconfig::read_from(self.folder.path().join("kubeconfig")).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }
}

/// What every container here said.
const LOG: &str = "step 100\n";

/// The kubelet's side of reading a log: any request is answered with [`LOG`]. Returns its port.
async fn hand_out_logs() -> u16 {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = tls.accept(stream).await else { continue };
            let _request = stream.read(&mut [0; 8192]).await;
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", LOG.len());
            let _gone_already = stream.write_all(format!("{head}{LOG}").as_bytes()).await;
            let _gone_already = stream.shutdown().await;
        }
    });
    port
}

/// The one node, written by hand.
async fn make_node(client: &kube::Client) {
    let digest = "0123456789abcdef".repeat(4);
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "ml1",
        "labels": {"rackwright.dev/role": "ml", "data.rackwright.dev/apt": digest.get(..32).unwrap()},
        "annotations": {"data.rackwright.dev/apt": format!("{digest}@1")}}}))
    .unwrap();
    let params = PostParams::default();
    until("the apiserver", async || nodes.create(&params, &node).await.is_ok()).await;
    let room = json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
    let status = json!({"status": {"capacity": room, "allocatable": room,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": hand_out_logs().await}},
        "conditions": [{
        "type": "Ready", "status": "True", "reason": "Test", "message": "",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    nodes.patch_status("ml1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "{what} was not reached");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct Rig {
    control: Control,
    server: Server,
    http: reqwest::Client,
    token: String,
    client: kube::Client,
}

impl Rig {
    async fn start(binaries: Binaries) -> Self {
        let _first_wins = rustls::crypto::ring::default_provider().install_default();
        let control = Control::start(binaries);
        let client = control.client().await;
        make_node(&client).await;
        let folder = control.folder.path();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("serve.crt"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("serve.key"), made.signing_key.serialize_pem()).unwrap();
        let server = Server::start(Config {
            cluster: "test".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            store: folder.join("jobs.db"),
            tls: Tls { cert: folder.join("serve.crt"), key: folder.join("serve.key") },
            kubernetes: Kubernetes {
                kubeconfig: folder.join("kubeconfig"),
                image_pull_policy: "Never".to_owned(),
                seccomp: true,
            },
            etcd: None,
            limits: Limits::default(),
            jobs: Jobs { prune_grace_s: 0, keep_failed_per_owner: 0, full_pass_s: 1, ..Jobs::default() },
            data: None,
        })
        .await
        .unwrap();
        let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
        let http = reqwest::Client::builder().add_root_certificate(root).build().unwrap();
        let token = std::fs::read_to_string(folder.join("operator.token")).unwrap().trim().to_owned();
        let rig = Self { control, server, http, token, client };
        until("the node", async || !rig.get("/v1/nodes").await["nodes"][0]["datasets"]["apt"].is_null())
            .await;
        rig
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.server.address().port())
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.http.get(self.url(path)).bearer_auth(&self.token).send().await.unwrap();
        response.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(self.url(path)).bearer_auth(&self.token).json(&body);
        request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    async fn submit(&self) -> String {
        let job = json!({"name": "fit", "image": "docker.io/rackwright/busybox:1", "datasets": [{"name": "apt"}],
            "results": true, "resources": {"cpu": "500m", "memory": "64MiB"}});
        self.post("/v1/jobs", job).await["id"].as_str().unwrap().to_owned()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "team-ops")
    }

    async fn pod(&self, name: &str) -> Pod {
        until(name, async || matches!(self.pods().get_opt(name).await, Ok(Some(_)))).await;
        self.pods().get(name).await.unwrap()
    }

    async fn status(&self, name: &str, status: Value) {
        let patch = json!({"status": status});
        self.pods().patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    async fn job(&self, id: &str, field: &str, value: &str) {
        let path = format!("/v1/jobs/{id}");
        until(&format!("{field} {value}"), async || self.get(&path).await["job"][field] == value).await;
    }

    /// A kubelet confirms the deletion of a pod that has ended.
    async fn confirm_deletions(&self) -> usize {
        let all = self.pods().list(&ListParams::default()).await.unwrap().items;
        for pod in all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
            let name = pod.metadata.name.as_deref().unwrap();
            let _gone_already = self.pods().delete(name, &DeleteParams::default().grace_period(0)).await;
        }
        all.len()
    }
}

fn ended(exit_code: i32) -> Value {
    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
    json!({"phase": phase, "containerStatuses": [{"name": "job", "image": "i", "imageID": "i", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": exit_code, "reason": "Completed"}}}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_apiserver_takes_our_pods_and_may_be_away() {
    let Some(binaries) = binaries() else {
        eprintln!("skipped: etcd and kube-apiserver are not in the cache; see `rackwright artifacts fetch`");
        return;
    };
    let mut rig = Rig::start(binaries).await;
    let first = rig.submit().await;
    let name = format!("{first}-0-1");
    let pod = rig.pod(&name).await;
    assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("ml1"));
    let namespaces: Api<Namespace> = Api::all(rig.client.clone());
    let labels = namespaces.get("team-ops").await.unwrap().metadata.labels.unwrap();
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
    rig.status(&name, json!({"phase": "Running", "startTime": jiff::Timestamp::now()})).await;
    rig.job(&first, "phase", "running").await;

    // Away: submits are accepted, and what happened meanwhile is caught up with.
    rig.control.apiserver = None;
    let second = rig.submit().await;
    rig.control.start_apiserver();
    let other = format!("{second}-0-1");
    rig.pod(&other).await;
    rig.status(&name, ended(0)).await;
    rig.job(&first, "outcome", "succeeded").await;

    // Cancelled: the kubelet is told to end it, the record stays until its history is durable.
    rig.post(&format!("/v1/jobs/{second}/cancel"), json!({})).await;
    until("the deadline", async || {
        rig.pods().get(&other).await.unwrap().spec.unwrap().active_deadline_seconds == Some(1)
    })
    .await;
    rig.status(&other, json!({"phase": "Failed", "reason": "DeadlineExceeded"})).await;
    rig.job(&second, "outcome", "cancelled").await;
    until("prune", async || rig.confirm_deletions().await == 0).await;
    let attempts = rig.get(&format!("/v1/jobs/{second}")).await["attempts"].clone();
    assert_eq!(attempts[0]["outcome"], "cancelled");
    let attempts = rig.get(&format!("/v1/jobs/{first}")).await["attempts"].clone();
    assert_eq!(attempts[0]["log_tail"], LOG, "read through the apiserver before the pod went");
    rig.server.stop().await;
}
