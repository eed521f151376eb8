//! `rackwright job`: submit jobs, see where they are and why, read what they said, end them.

use crate::client::Client;
use crate::out::Out;
use crate::report::Report;
use clap::{Args, Subcommand};
use rackwright_core::job::{DatasetPin, JobPhase, Outcome};
use rackwright_core::sched::Explanation;
use rackwright_serve::api::{Cancelled, Job, JobList, JobSummary, Queue, ResultSet, Results, Submitted};
use rackwright_wire::id::JobId;
use rackwright_wire::words::counted;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Exit code of `job wait` when the job ended otherwise than well.
const JOB_FAILED: u8 = 3;
/// Exit code of `job wait` when the job had not ended in time.
const STILL_RUNNING: u8 = 4;
/// Between two looks of `job wait`.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Submit and follow jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Submit a job from a JSON file, from stdin (`-`), or from flags.
    Submit(Box<SubmitArgs>),
    /// List jobs, newest first.
    List(ListArgs),
    /// Show one job with its attempts.
    Show {
        /// The job's id.
        id: JobId,
    },
    /// Say why a job waits, server by server.
    Explain {
        /// The job's id.
        id: JobId,
    },
    /// Print what one task said.
    Logs(LogArgs),
    /// Show what a job left, and whether its rows are in the results table; exit 3 when something is refused.
    Results {
        /// The job's id.
        id: JobId,
    },
    /// End a job.
    Cancel {
        /// The job's id.
        id: JobId,
    },
    /// Wait until jobs have ended; exit 3 when one did not succeed, 4 when time ran out.
    Wait {
        /// Job ids.
        #[arg(required = true)]
        ids: Vec<JobId>,
        /// Give up after so many seconds.
        #[arg(long, default_value_t = 3600)]
        timeout_s: u64,
    },
    /// List what waits, in the order in which it is tried.
    Queue,
}

/// What to submit.
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// A JSON file, or `-` for stdin; flags override its fields.
    file: Option<PathBuf>,
    /// Name, for people.
    #[arg(long)]
    name: Option<String>,
    /// Image reference.
    #[arg(long)]
    image: Option<String>,
    /// Project that it is billed to.
    #[arg(long)]
    project: Option<String>,
    /// CPU, such as `1500m` or `2`.
    #[arg(long)]
    cpu: Option<String>,
    /// Memory, such as `512MiB`.
    #[arg(long)]
    memory: Option<String>,
    /// GPUs.
    #[arg(long)]
    gpu: Option<String>,
    /// A dataset, `NAME` or `NAME@VERSION`; seen at /data/NAME.
    #[arg(long = "data", value_name = "NAME[@VERSION]")]
    data: Vec<String>,
    /// Environment, `KEY=VALUE`.
    #[arg(long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// So many independent tasks, each with its `RACKWRIGHT_TASK_INDEX`.
    #[arg(long, value_name = "TASKS")]
    array: Option<u32>,
    /// So many pods that start together or not at all.
    #[arg(long, value_name = "PODS", conflicts_with = "array")]
    gang: Option<u32>,
    /// Each pod of the gang on a node of its own.
    #[arg(long, requires = "gang")]
    spread: bool,
    /// Tries again after failures.
    #[arg(long)]
    retries: Option<u32>,
    /// It checkpoints this often, in seconds; retries resume from the newest.
    #[arg(long, value_name = "SECONDS")]
    checkpoint_s: Option<u64>,
    /// It leaves results in /work/results.
    #[arg(long)]
    results: bool,
    /// Priority class.
    #[arg(long)]
    priority: Option<String>,
    /// Longest run of one attempt, in seconds.
    #[arg(long, value_name = "SECONDS")]
    max_run_time_s: Option<u64>,
    /// A repeat with this key is answered with the first job.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Command and arguments, after `--`.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Which jobs to list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this project's.
    #[arg(long)]
    project: Option<String>,
    /// Only this owner's.
    #[arg(long)]
    owner: Option<String>,
    /// Only this team's (operators see every team's).
    #[arg(long)]
    team: Option<String>,
    /// Only in this phase: pending, starting, running or finished.
    #[arg(long)]
    phase: Option<String>,
    /// Only with this outcome, such as failed.
    #[arg(long)]
    outcome: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Continue after this cursor.
    #[arg(long)]
    after: Option<String>,
}

/// Which log.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The job's id.
    id: JobId,
    /// Task index; rank in a gang.
    #[arg(long, default_value_t = 0)]
    task: u32,
    /// Attempt; the newest when not given.
    #[arg(long)]
    attempt: Option<u32>,
    /// Go on as it grows.
    #[arg(short, long)]
    follow: bool,
}

/// Runs the command.
pub(crate) async fn run(command: JobCommand, out: Out) -> Result<ExitCode, Report> {
    let client = Client::from_env()?;
    match command {
        JobCommand::Submit(args) => submit(&client, &args, out).await,
        JobCommand::List(args) => list(&client, &args, out).await,
        JobCommand::Show { id } => {
            let job: Job = client.get(&format!("/v1/jobs/{id}")).await?;
            out.data(shown(&job), &job);
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Explain { id } => {
            let explanation: Explanation = client.get(&format!("/v1/jobs/{id}/explain")).await?;
            out.data(explained(&explanation), &explanation);
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Logs(args) => logs(&client, &args, out).await,
        JobCommand::Results { id } => results(&client, id, out).await,
        JobCommand::Cancel { id } => {
            let done: Cancelled = client.post(&format!("/v1/jobs/{id}/cancel"), &()).await?;
            let word = if done.already_ended { "had ended before" } else { "is being stopped" };
            out.data(format_args!("{} {word}", done.id), &done);
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Wait { ids, timeout_s } => wait(&client, &ids, Duration::from_secs(timeout_s), out).await,
        JobCommand::Queue => {
            let queue: Queue = client.get("/v1/queue").await?;
            out.data(queued(&queue), &queue);
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn submit(client: &Client, args: &SubmitArgs, out: Out) -> Result<ExitCode, Report> {
    let body = body(args)?;
    let submitted: Submitted = match &args.idempotency_key {
        Some(key) => client.post_once("/v1/jobs", &body, key).await?,
        None => client.post("/v1/jobs", &body).await?,
    };
    out.data(submitted.id, &submitted);
    if !out.is_json() {
        for pin in &submitted.datasets {
            out.say(format_args!("  sees {}", pinned(pin)));
        }
        if submitted.replayed {
            out.say("  this key was used before: nothing was changed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The file's fields with the flags over them.
fn body(args: &SubmitArgs) -> Result<Value, Report> {
    let mut body = match &args.file {
        Some(path) => read(path)?,
        None => Map::new(),
    };
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    set("name", args.name.as_ref().map(|name| json!(name)));
    set("image", args.image.as_ref().map(|image| json!(image)));
    set("project", args.project.as_ref().map(|project| json!(project)));
    set("priority", args.priority.as_ref().map(|priority| json!(priority)));
    set("retries", args.retries.map(|retries| json!(retries)));
    set("max_run_time_s", args.max_run_time_s.map(|seconds| json!(seconds)));
    set("array", args.array.map(|count| json!({"count": count})));
    set("gang", args.gang.map(|size| json!({"size": size, "spread": args.spread})));
    set("checkpoint", args.checkpoint_s.map(|interval_s| json!({"interval_s": interval_s})));
    set("results", args.results.then_some(json!(true)));
    set("command", (!args.command.is_empty()).then(|| json!(args.command)));
    set("datasets", (!args.data.is_empty()).then(|| datasets(&args.data)));
    set("env", (!args.env.is_empty()).then(|| environment(&args.env)).transpose()?);
    let mut resources = body.get("resources").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, amount) in [("cpu", &args.cpu), ("memory", &args.memory), ("gpu", &args.gpu)] {
        if let Some(amount) = amount {
            resources.insert(name.to_owned(), json!(amount));
        }
    }
    if !resources.is_empty() {
        body.insert("resources".to_owned(), Value::Object(resources));
    }
    Ok(Value::Object(body))
}

/// What the controller takes of a body.
const MOST_BYTES: u64 = 1024 * 1024;

/// A job file that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("read the job in {}", path.display())]
struct Unread {
    path: PathBuf,
    #[source]
    cause: Box<dyn std::error::Error + Send + Sync>,
}

fn read(path: &std::path::Path) -> Result<Map<String, Value>, Report> {
    let bad = |cause: Box<dyn std::error::Error + Send + Sync>| {
        let unread = Unread { path: path.to_owned(), cause };
        Report::new(unread).help("it holds one JSON object, or is `-` for stdin").exit(Report::BAD_INPUT)
    };
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(MOST_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
    };
    if read.map_err(|cause| bad(cause.into()))? as u64 > MOST_BYTES {
        return Err(bad("it is larger than 1 MiB".into()));
    }
    serde_json::from_str(&text).map_err(|cause| bad(cause.into()))
}

fn datasets(named: &[String]) -> Value {
    let one = |text: &String| match text.split_once('@') {
        Some((name, version)) => json!({"name": name, "version": version}),
        None => json!({"name": text}),
    };
    Value::Array(named.iter().map(one).collect())
}

fn environment(pairs: &[String]) -> Result<Value, Report> {
    let mut map = Map::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Report::new(format!("read {pair:?} as environment"))
                .help("write it like KEY=VALUE")
                .exit(Report::BAD_INPUT)
        })?;
        map.insert(name.to_owned(), json!(value));
    }
    Ok(Value::Object(map))
}

async fn list(client: &Client, args: &ListArgs, out: Out) -> Result<ExitCode, Report> {
    let limit = args.limit.to_string();
    let filters = [
        ("project", args.project.as_deref()),
        ("owner", args.owner.as_deref()),
        ("team", args.team.as_deref()),
        ("phase", args.phase.as_deref()),
        ("outcome", args.outcome.as_deref()),
        ("after", args.after.as_deref()),
        ("limit", Some(limit.as_str())),
    ];
    let query: Vec<String> =
        filters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", escaped(value?)))).collect();
    let list: JobList = client.get(&format!("/v1/jobs?{}", query.join("&"))).await?;
    out.data(listed(&list.jobs), &list);
    if let (Some(next), false) = (&list.next, out.is_json()) {
        out.say(format_args!("more with --after {next}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A value as it may stand in a query.
fn escaped(text: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

async fn logs(client: &Client, args: &LogArgs, out: Out) -> Result<ExitCode, Report> {
    let mut path = format!("/v1/jobs/{}/logs?task={}", args.id, args.task);
    if let Some(attempt) = args.attempt {
        let _infallible = write!(path, "&attempt={attempt}");
    }
    if !args.follow {
        let text = client.text(&path).await?;
        if out.is_json() {
            out.json_line(&json!({"job": args.id, "task": args.task, "log": text}));
        } else {
            out.raw(text.as_bytes());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut response = client.open(&format!("{path}&follow=true")).await?;
    while let Some(chunk) = response.chunk().await.map_err(|source| client.unread(source))? {
        if !out.raw(&chunk) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn results(client: &Client, id: JobId, out: Out) -> Result<ExitCode, Report> {
    let results: Results = client.get(&format!("/v1/jobs/{id}/results")).await?;
    out.data(left(&results.sets), &results);
    let is_refused = |set: &ResultSet| set.outcome.as_ref().is_some_and(|text| text.starts_with("refused"));
    let refused = results.sets.iter().any(is_refused);
    Ok(if refused { ExitCode::from(JOB_FAILED) } else { ExitCode::SUCCESS })
}

/// Sealed sets as a table.
fn left(sets: &[ResultSet]) -> String {
    if sets.is_empty() {
        return "nothing has arrived: it is still on its way, or the job wrote nothing to /work/results or /work/checkpoints/STEP (with `results` or `checkpoint`)"
            .to_owned();
    }
    let mut text = format!("{:<40} {:<8} {:>6} {:>12}  OUTCOME", "SET", "NODE", "FILES", "BYTES");
    for set in sets {
        let outcome = set.outcome.as_deref().unwrap_or("waits to be loaded");
        let _infallible =
            write!(text, "\n{:<40} {:<8} {:>6} {:>12}  {outcome}", set.id, set.node, set.files, set.bytes);
    }
    text
}

async fn wait(client: &Client, ids: &[JobId], limit: Duration, out: Out) -> Result<ExitCode, Report> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let job = loop {
            let job: Job = client.get(&format!("/v1/jobs/{id}")).await?;
            if job.job.phase == JobPhase::Finished {
                break job.job;
            }
            if tokio::time::Instant::now() >= deadline {
                out.say(format_args!("{id} is {} after {} s", job.job.phase.as_str(), limit.as_secs()));
                return Ok(ExitCode::from(STILL_RUNNING));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let outcome = job.outcome.map_or("unknown", Outcome::as_str);
        out.data(format_args!("{id} {outcome}"), &job);
        if job.outcome != Some(Outcome::Succeeded) {
            code = ExitCode::from(JOB_FAILED);
        }
    }
    Ok(code)
}

fn listed(jobs: &[JobSummary]) -> String {
    let mut lines =
        vec![format!("{:<11} {:<24} {:<14} {:<14} {:<12} TASKS", "ID", "NAME", "PROJECT", "OWNER", "STATE")];
    lines.extend(jobs.iter().map(|job| {
        format!(
            "{:<11} {:<24} {:<14} {:<14} {:<12} {}",
            job.id,
            job.name,
            job.project,
            job.owner,
            state(job),
            tasks(job)
        )
    }));
    lines.join("\n")
}

fn state(job: &JobSummary) -> &'static str {
    job.outcome.map_or(job.phase.as_str(), Outcome::as_str)
}

/// Tasks by where they stand, without those that are none: `3 pending, 17 succeeded`.
fn tasks(job: &JobSummary) -> String {
    let counts = &job.counts;
    let words = [
        (counts.pending, "pending"),
        (counts.starting, "starting"),
        (counts.running, "running"),
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ];
    let parts: Vec<String> =
        words.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    parts.join(", ")
}

fn shown(job: &Job) -> String {
    let head = &job.job;
    let mut lines = vec![
        format!("{} {}: {} ({})", head.id, head.name, state(head), tasks(head)),
        format!("  project {}, owner {}, team {}", head.project, head.owner, head.team),
        format!(
            "  image {}, {} cpu, {} memory",
            job.spec.image, job.spec.resources.cpu, job.spec.resources.memory
        ),
    ];
    for pin in &job.datasets {
        lines.push(format!("  data {}", pinned(pin)));
    }
    if let Some(waiting) = &job.waiting {
        lines.push(format!("  {waiting}"));
    }
    for attempt in &job.attempts {
        let took_s =
            attempt.finished_at_ms.saturating_sub(attempt.started_at_ms.unwrap_or(attempt.finished_at_ms))
                / 1000;
        let code = attempt.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
        let reason = if attempt.reason.is_empty() { String::new() } else { format!(", {}", attempt.reason) };
        let outcome = attempt.outcome.as_str();
        lines
            .push(format!("  {} on {}: {outcome} after {took_s} s{code}{reason}", attempt.pod, attempt.node));
    }
    for attempt in &job.live {
        let resumed = attempt.resumed.as_ref().map(|from| format!(", resumed from step {}", from.step));
        let state = serde_json::to_value(attempt.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default();
        let note = attempt.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        lines.push(format!(
            "  {} on {}: {state}{}{note}",
            attempt.pod,
            attempt.node,
            resumed.unwrap_or_default()
        ));
    }
    lines.join("\n")
}

/// A version that was asked for by its digest has no generation.
fn pinned(pin: &DatasetPin) -> String {
    let generation = match pin.generation {
        0 => String::new(),
        generation => format!(" (generation {generation})"),
    };
    format!("{} at {}{generation}", pin.name, pin.version.short())
}

fn explained(explanation: &Explanation) -> String {
    let mut lines = vec![format!("{} {}", explanation.job, explanation.sentence)];
    for node in &explanation.nodes {
        let answer = if node.fits { "would take one pod now".to_owned() } else { node.reasons.join("; ") };
        lines.push(format!("  {}: {answer}", node.node));
    }
    lines.join("\n")
}

fn queued(queue: &Queue) -> String {
    let mut lines = vec![format!("waiting: {}", counted(queue.waiting, "job"))];
    lines.extend(
        queue
            .jobs
            .iter()
            .map(|job| format!("{:<11} {:<24} {:<8} {}", job.id, job.name, job.priority, job.waiting)),
    );
    lines.join("\n")
}
