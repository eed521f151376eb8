//! The HTTP interface from outside: a real server with its own certificate and store, a cluster that is
//! not there, and everything that a caller can do wrong.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use rackwright_serve::config::{Jobs, Kubernetes, Limits, Tls};
use rackwright_serve::{Config, Server};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use std::path::Path;

struct Rig {
    folder: tempfile::TempDir,
    server: Server,
    http: reqwest::Client,
}

/// Port 1 answers nobody: the controller must work without a cluster.
const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: "none"}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"#;

fn issue(folder: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("serve.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("serve.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.pem()
}

fn config(folder: &Path, limits: Limits) -> Config {
    Config {
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
        limits,
        jobs: Jobs::default(),
        data: None,
    }
}

impl Rig {
    async fn new(limits: Limits) -> Self {
        let _first_wins = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let pem = issue(folder.path());
        std::fs::write(folder.path().join("kubeconfig"), KUBECONFIG).unwrap();
        let server = Server::start(config(folder.path(), limits)).await.unwrap();
        let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
        let http = reqwest::Client::builder().add_root_certificate(root).build().unwrap();
        Self { folder, server, http }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.server.address().port())
    }

    fn operator(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("operator.token")).unwrap().trim().to_owned()
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(path)).bearer_auth(self.operator())
    }

    fn submit(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.http.post(self.url("/v1/jobs")).bearer_auth(self.operator()).body(body)
    }

    async fn token(&self, role: &str, team: &str) -> String {
        let wanted = json!({"role": role, "owner": "ada", "team": team});
        let request = self.http.post(self.url("/v1/tokens")).bearer_auth(self.operator()).json(&wanted);
        let made: Value = request.send().await.unwrap().json().await.unwrap();
        made["token"].as_str().unwrap().to_owned()
    }
}

/// Sends, and checks that the answer is a problem with this status and code, a title and a detail.
async fn problem(request: RequestBuilder, status: StatusCode, code: &str) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), status, "{code}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{code}");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status.as_u16(), "{body}");
    assert_eq!(body["type"], format!("urn:rackwright:problem:{code}"));
    assert!(!body["detail"].as_str().unwrap().is_empty());
    body
}

/// As [`problem`], for a submit: it must also say what helps.
async fn refused(request: RequestBuilder, status: StatusCode, code: &str) -> Value {
    let body = problem(request, status, code).await;
    assert!(body["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{code} has no hint: {body}");
    body
}

async fn ok(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert!(status.is_success(), "{status} {body}");
    body
}

fn job() -> Value {
    json!({"name": "fit", "image": "docker.io/rackwright/busybox:1"})
}

#[tokio::test]
async fn every_bad_submit_is_a_problem_with_a_code_and_a_hint() {
    let rig = Rig::new(Limits::default()).await;
    let submit = |body: &str| rig.submit(body.to_owned());
    refused(submit("{"), StatusCode::BAD_REQUEST, "malformed-json").await;
    refused(submit(""), StatusCode::BAD_REQUEST, "malformed-json").await;
    refused(rig.submit(&b"{\"name\": \"\xff\"}"[..]), StatusCode::BAD_REQUEST, "malformed-json").await;
    refused(submit(&"[".repeat(100_000)), StatusCode::BAD_REQUEST, "malformed-json").await;
    refused(
        submit(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))),
        StatusCode::BAD_REQUEST,
        "malformed-json",
    )
    .await;
    refused(submit("[]"), StatusCode::UNPROCESSABLE_ENTITY, "invalid-job").await;
    refused(submit(&"x".repeat((1 << 20) + 1)), StatusCode::PAYLOAD_TOO_LARGE, "body-too-large").await;
    let unknown = json!({"name": "Fit!", "imagee": "x", "resources": {"cpu": "lots", "memroy": "1GiB"}});
    let body = refused(submit(&unknown.to_string()), StatusCode::UNPROCESSABLE_ENTITY, "invalid-job").await;
    let fields: Vec<&str> =
        body["findings"].as_array().unwrap().iter().map(|f| f["field"].as_str().unwrap()).collect();
    for field in ["name", "image", "imagee", "resources.cpu", "resources.memroy"] {
        assert!(fields.contains(&field), "{field} is missing in {fields:?}");
    }
    let dataset = json!({"name": "fit", "image": "i", "datasets": [{"name": "nowhere"}]});
    refused(submit(&dataset.to_string()), StatusCode::UNPROCESSABLE_ENTITY, "unknown-dataset").await;
    let capped = json!({"name": "fit", "image": "i", "money_cap": "5 EUR"});
    let body = refused(submit(&capped.to_string()), StatusCode::UNPROCESSABLE_ENTITY, "invalid-job").await;
    assert_eq!(body["findings"][0]["field"], "money_cap", "no server has a price");
    let late = json!({"name": "fit", "image": "i", "deadline_s": 1});
    let body = refused(submit(&late.to_string()), StatusCode::UNPROCESSABLE_ENTITY, "invalid-job").await;
    assert_eq!(body["findings"][0]["field"], "deadline_s", "1970 is past");
    let keys: serde_json::Map<String, Value> = (0..1000).map(|key| (format!("k{key}"), json!(1))).collect();
    let many = serde_json::to_string(&keys).unwrap();
    let body = refused(submit(&many), StatusCode::UNPROCESSABLE_ENTITY, "invalid-job").await;
    assert_eq!(body["findings"].as_array().unwrap().len(), 101, "the first hundred, and how many more");
    let key = submit(&job().to_string()).header("Idempotency-Key", "with space");
    refused(key, StatusCode::BAD_REQUEST, "invalid-idempotency-key").await;
    let keys = submit(&job().to_string()).header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    refused(keys, StatusCode::BAD_REQUEST, "invalid-idempotency-key").await;
    let long = rig.get(&format!("/v1/jobs?cursor={}", "j".repeat(60_000)));
    let answer = problem(long, StatusCode::BAD_REQUEST, "invalid-query").await;
    assert!(answer.to_string().len() < 500, "what was sent is not sent back");
    assert_eq!(ok(rig.get("/v1/jobs")).await["jobs"], json!([]), "a refused body changed something");
    rig.server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_said_to_be_something_else_than_json_is_refused() {
    let rig = Rig::new(Limits::default()).await;
    let submit = |kind: &str| rig.submit(job().to_string()).header("Content-Type", kind);
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""] {
        refused(submit(kind), StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid-request").await;
    }
    assert_eq!(ok(rig.get("/v1/jobs")).await["jobs"], json!([]), "a refused body changed something");
    ok(submit("Application/JSON; charset=utf-8")).await;
    ok(rig.submit(job().to_string())).await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused_too() {
    let rig = Rig::new(Limits { body_bytes: 1024, ..Limits::default() }).await;
    let chunks = futures::stream::iter((0..64).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1024])));
    let request = rig.submit(reqwest::Body::wrap_stream(chunks));
    refused(request, StatusCode::PAYLOAD_TOO_LARGE, "body-too-large").await;
    rig.server.stop().await;
}

#[tokio::test]
async fn nobody_gets_in_without_the_right_token() {
    let rig = Rig::new(Limits::default()).await;
    let bare = |path: &str| rig.http.get(rig.url(path));
    problem(bare("/v1/jobs"), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    problem(bare("/metrics"), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    problem(bare("/v1/nothing-here"), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    let submit = || rig.http.post(rig.url("/v1/jobs")).json(&job());
    refused(submit(), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    refused(submit().bearer_auth("rw_guess"), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    refused(submit().basic_auth("operator", Some("rw_guess")), StatusCode::UNAUTHORIZED, "unauthenticated")
        .await;
    problem(bare("/v1/jobs").bearer_auth("rw_guess"), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    assert_eq!(bare("/livez").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(bare("/openapi.json").send().await.unwrap().status(), StatusCode::OK);
    let viewer = rig.token("viewer", "vision").await;
    let submit = rig.http.post(rig.url("/v1/jobs")).bearer_auth(&viewer).json(&job());
    refused(submit, StatusCode::FORBIDDEN, "forbidden").await;
    let submitter = rig.token("submitter", "vision").await;
    problem(bare("/v1/tokens").bearer_auth(&submitter), StatusCode::FORBIDDEN, "forbidden").await;
    assert_eq!(ok(rig.get("/v1/jobs")).await["jobs"], json!([]), "a refused submit was accepted");
    let tokens = ok(rig.get("/v1/tokens")).await;
    let id = tokens["tokens"][1]["id"].as_str().unwrap().to_owned();
    let revoke = rig.http.post(rig.url(&format!("/v1/tokens/{id}/revoke"))).bearer_auth(rig.operator());
    ok(revoke).await;
    problem(bare("/v1/jobs").bearer_auth(&viewer), StatusCode::UNAUTHORIZED, "unauthenticated").await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_repeated_key_returns_the_first_job_and_never_another() {
    let rig = Rig::new(Limits::default()).await;
    let submit = |body: Value| rig.submit(body.to_string()).header("Idempotency-Key", "k1");
    let first = ok(submit(job())).await;
    assert_eq!(first["replayed"], false);
    assert_eq!((first["owner"].as_str(), first["team"].as_str()), (Some("operator"), Some("ops")));
    let second = ok(submit(job())).await;
    assert_eq!((&second["id"], &second["replayed"]), (&first["id"], &json!(true)));
    let other = json!({"name": "other", "image": "i"});
    let body = refused(submit(other), StatusCode::CONFLICT, "idempotency-key-reused").await;
    assert!(body["detail"].as_str().unwrap().contains(first["id"].as_str().unwrap()));
    assert_eq!(ok(rig.get("/v1/jobs")).await["jobs"].as_array().unwrap().len(), 1);
    rig.server.stop().await;
}

#[tokio::test]
async fn a_second_controller_on_the_same_store_does_not_start() {
    let rig = Rig::new(Limits::default()).await;
    let refused = Server::start(config(rig.folder.path(), Limits::default())).await.unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("in use by another controller"), "{cause}");
    ok(rig.submit(job().to_string())).await;
    rig.server.stop().await;
    // The next one starts as soon as the first has let go.
    Server::start(config(rig.folder.path(), Limits::default())).await.unwrap().stop().await;
}

#[tokio::test]
async fn a_team_sees_its_own_jobs_only() {
    let rig = Rig::new(Limits::default()).await;
    let (ours, theirs) = (rig.token("submitter", "vision").await, rig.token("submitter", "speech").await);
    let id = ok(rig.http.post(rig.url("/v1/jobs")).bearer_auth(&ours).json(&job())).await["id"].clone();
    let path = format!("/v1/jobs/{}", id.as_str().unwrap());
    let shown = ok(rig.http.get(rig.url(&path)).bearer_auth(&ours)).await;
    assert_eq!(shown["job"]["team"], "vision");
    problem(rig.http.get(rig.url(&path)).bearer_auth(&theirs), StatusCode::NOT_FOUND, "not-found").await;
    let cancel = rig.http.post(rig.url(&format!("{path}/cancel"))).bearer_auth(&theirs);
    problem(cancel, StatusCode::NOT_FOUND, "not-found").await;
    let listed = ok(rig.http.get(rig.url("/v1/jobs?team=vision")).bearer_auth(&theirs)).await;
    assert_eq!(listed["jobs"], json!([]));
    assert_eq!(ok(rig.get("/v1/jobs")).await["jobs"].as_array().unwrap().len(), 1);
    rig.server.stop().await;
}

#[tokio::test]
async fn wrong_paths_methods_and_queries_are_problems() {
    let rig = Rig::new(Limits::default()).await;
    problem(rig.get("/v1/nothing-here"), StatusCode::NOT_FOUND, "not-found").await;
    problem(rig.get("/v1/jobs/j9999999999"), StatusCode::NOT_FOUND, "not-found").await;
    problem(rig.get("/v1/jobs/no-id"), StatusCode::NOT_FOUND, "not-found").await;
    problem(rig.get("/v1/jobs?colour=red"), StatusCode::BAD_REQUEST, "invalid-query").await;
    problem(rig.get("/v1/jobs?phase=flying"), StatusCode::BAD_REQUEST, "invalid-query").await;
    problem(rig.get("/v1/jobs?after=made-up"), StatusCode::BAD_REQUEST, "invalid-cursor").await;
    problem(rig.get("/v1/usage?from=yesterday"), StatusCode::BAD_REQUEST, "invalid-query").await;
    let delete = rig.http.delete(rig.url("/v1/jobs")).bearer_auth(rig.operator());
    problem(delete, StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed").await;
    rig.server.stop().await;
}

#[tokio::test]
async fn a_token_over_its_rate_is_told_when_to_come_back() {
    let rig = Rig::new(Limits { requests_per_s: 1, ..Limits::default() }).await;
    let _takes_the_only_place = rig.get("/v1/nodes").send().await.unwrap();
    let response = rig.get("/v1/nodes").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(response.headers().contains_key("retry-after"));
    rig.server.stop().await;
}

#[tokio::test]
async fn every_route_of_the_document_is_served() {
    let rig = Rig::new(Limits::default()).await;
    let document = ok(rig.get("/openapi.json")).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|_| !path.starts_with("/v1/data")) {
            let method = reqwest::Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            let url = rig.url(&path.replace("{id}", "j0000000000"));
            let request = rig.http.request(method.clone(), url).bearer_auth(rig.operator());
            let response = request.send().await.unwrap();
            let status = response.status();
            let body = response.text().await.unwrap();
            assert!(!body.contains("nothing at this path"), "{method} {path}: {status}");
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        }
    }
    rig.server.stop().await;
}

#[tokio::test]
async fn what_changed_something_is_in_the_audit_log() {
    let rig = Rig::new(Limits::default()).await;
    let id = ok(rig.submit(job().to_string())).await["id"].clone();
    ok(rig
        .http
        .post(rig.url(&format!("/v1/jobs/{}/cancel", id.as_str().unwrap())))
        .bearer_auth(rig.operator()))
    .await;
    rig.token("viewer", "vision").await;
    let audit = ok(rig.get("/v1/audit")).await;
    let actions: Vec<&str> =
        audit["rows"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["job.submit", "job.cancel", "token.create"]);
    rig.server.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_without_a_restart() {
    let rig = Rig::new(Limits::default()).await;
    let renewed = issue(rig.folder.path());
    let root = reqwest::Certificate::from_pem(renewed.as_bytes()).unwrap();
    let http = reqwest::Client::builder().add_root_certificate(root).build().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(40);
    while http.get(rig.url("/livez")).send().await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the new certificate was not taken up");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    rig.server.stop().await;
}
