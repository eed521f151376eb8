//! How many submits a second the controller accepts durably, how long they take, and what 10,000
//! queued jobs cost in memory: `cargo run --release -p rackwright-serve --example submit_bench`.
//!
//! The controller runs as a process of its own, over TLS, on a real store on disk, without a cluster, so
//! that every job stays queued. Requests leave on a fixed schedule whatever became of the ones before:
//! a slow answer counts from the moment when its request was due.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use rackwright_serve::config::{Jobs, Kubernetes, Limits, Tls};
use rackwright_serve::{Config, Server};
use serde_json::json;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Submits a second.
const RATE: u32 = 500;
/// Jobs in all: at the rate, twenty seconds.
const JOBS: u32 = 10_000;
/// Port 1 answers nobody.
const KUBECONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "x",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "none"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}"#;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let _first_wins = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match std::env::args_os().nth(1) {
        Some(folder) => runtime.block_on(serve(Path::new(&folder))),
        None => runtime.block_on(bench()),
    }
}

/// The controller, until its stdin closes.
async fn serve(folder: &Path) -> Outcome<()> {
    let server = Server::start(Config {
        cluster: "bench".to_owned(),
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
        jobs: Jobs::default(),
        data: None,
    })
    .await?;
    println!("{}", server.address().port());
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    server.stop().await;
    Ok(())
}

async fn bench() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(folder.path().join("serve.crt"), made.cert.pem())?;
    std::fs::write(folder.path().join("serve.key"), made.signing_key.serialize_pem())?;
    std::fs::write(folder.path().join("kubeconfig"), KUBECONFIG)?;
    let (mut child, port) = start(folder.path()).await?;
    let token = std::fs::read_to_string(folder.path().join("operator.token"))?;
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes())?;
    let http = reqwest::Client::builder().add_root_certificate(root).build()?;
    let url = format!("https://localhost:{port}/v1/jobs");
    let before = rss_mib(&child)?;

    let begun = Instant::now();
    let requests = (0..JOBS).map(|number| {
        let due = begun + Duration::from_secs(1) * number / RATE;
        tokio::spawn(submit(http.clone(), url.clone(), token.trim().to_owned(), number, due))
    });
    let mut took = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        took.push(request.await??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |percent: usize| {
        took.get((took.len() * percent / 100).min(took.len() - 1)).copied().unwrap_or_default()
    };
    println!("submits accepted durably   {JOBS} in {seconds:.1} s = {:.0}/s", f64::from(JOBS) / seconds);
    println!(
        "latency                    p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, max {:.1?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    println!(
        "controller's memory        {before} MiB idle, {} MiB with {JOBS} jobs queued",
        rss_mib(&child)?
    );
    drop(child.stdin.take());
    child.wait().await?;
    restart(folder.path()).await
}

/// How long a controller needs to know all of those jobs again.
async fn restart(folder: &Path) -> Outcome<()> {
    let begun = Instant::now();
    let (mut child, _) = start(folder).await?;
    println!("restart with them          {:.2?}, {} MiB", begun.elapsed(), rss_mib(&child)?);
    drop(child.stdin.take());
    child.wait().await?;
    Ok(())
}

async fn start(folder: &Path) -> Outcome<(Child, u16)> {
    let program: PathBuf = std::env::current_exe()?;
    let mut child = Command::new(program)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("no stdout")?;
    let port = BufReader::new(stdout).lines().next_line().await?.ok_or("the controller did not start")?;
    Ok((child, port.trim().parse()?))
}

async fn submit(
    http: reqwest::Client,
    url: String,
    token: String,
    number: u32,
    due: Instant,
) -> Outcome<Duration> {
    tokio::time::sleep_until(due.into()).await;
    let body = json!({
        "name": format!("bench-{number}"),
        "image": "docker.io/rackwright/busybox:1",
        "command": ["sh", "-c", "echo hello"],
        "env": {"ALPHA": "0.1", "BETA": "0.9"},
        "resources": {"cpu": "500m", "memory": "64MiB"},
    });
    let request = http.post(url).bearer_auth(token).header("Idempotency-Key", format!("bench-{number}"));
    let response = request.json(&body).send().await?;
    let status = response.status();
    if status != reqwest::StatusCode::CREATED {
        return Err(format!("submit {number}: {status} {}", response.text().await?).into());
    }
    response.bytes().await?;
    Ok(due.elapsed())
}

fn rss_mib(child: &Child) -> Outcome<u64> {
    let id = child.id().ok_or("the controller has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}
