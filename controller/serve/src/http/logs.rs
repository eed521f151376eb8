//! A job's output: from the live pod through the apiserver, from the history row afterwards.

use super::input::{Params, job_id};
use super::jobs::visible;
use crate::app::App;
use crate::auth::Caller;
use crate::cluster::{self, ClusterError};
use crate::problem::Problem;
use crate::world::World;
use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use rackwright_core::job::JobPhase;
use rackwright_core::sched::Sched;
use rackwright_store::Store as _;
use rackwright_wire::id::{AttemptNo, JobId, PodKey, TaskIndex};
use rackwright_wire::words::counted;
use serde::Deserialize;

/// The query of a log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    #[serde(default)]
    task: u32,
    attempt: Option<u32>,
    #[serde(default)]
    follow: bool,
}

/// `GET /v1/jobs/{id}/logs`.
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Params(query): Params<LogQuery>,
) -> Result<Response, Problem> {
    let job = job_id(&id)?;
    let row = visible(&app, &caller, job).await?;
    let tasks = row.record.spec.tasks();
    if query.task >= tasks {
        let hint = format!("it has {}, counted from 0", counted(tasks, "task"));
        return Err(Problem::not_found(format_args!("task {} of job {job}", query.task)).hint(hint));
    }
    let (task, wanted) = (TaskIndex(query.task), query.attempt.map(AttemptNo));
    let (pod, known) =
        app.ask(move |sched, world| (there(world, job, task, wanted), last_held(sched, job, task))).await?;
    // Asked last: what is archived and pruned in between is then found here at least.
    let ended = match wanted {
        Some(attempt) => archived(&app, PodKey { job, task, attempt }).await?.map(|tail| (attempt, tail)),
        None => newest_archived(&app, job, task, known).await?,
    };
    if let Some(pod) = pod.filter(|pod| is_newest(pod.key, ended.as_ref())) {
        return match read(&app, &pod.namespace, &pod.key.to_string(), query.follow).await {
            Ok(body) => Ok(text(body, "live")),
            // It ended in between, or its kubelet is away: the history may have it.
            Err(cause) => {
                let tail = archived(&app, pod.key).await?.ok_or_else(|| unreadable(&cause))?;
                Ok(text(Body::from(tail), "history"))
            }
        };
    }
    if let Some((_, tail)) = ended {
        return Ok(text(Body::from(tail), "history"));
    }
    let newest =
        newest_archived(&app, job, task, known).await?.map_or(known, |(attempt, _)| attempt.max(known));
    Err(absent(job, task, wanted, newest, row.state.phase))
}

/// A pod whose log may be read.
struct There {
    namespace: String,
    key: PodKey,
}

/// The newest pod of a task, or the one of the attempt that is wanted.
fn there(world: &World, job: JobId, task: TaskIndex, wanted: Option<AttemptNo>) -> Option<There> {
    let pods =
        world.ours().filter_map(|pod| Some(There { namespace: pod.namespace.clone(), key: pod.ours? }));
    let pods = pods.filter(|pod| {
        (pod.key.job, pod.key.task) == (job, task) && wanted.is_none_or(|attempt| pod.key.attempt == attempt)
    });
    pods.max_by_key(|pod| pod.key)
}

/// The last attempt of a task that the scheduler still holds; 0 when it holds none.
fn last_held(sched: &Sched, job: JobId, task: TaskIndex) -> AttemptNo {
    let attempts = sched.attempts(job).into_iter().filter(|view| view.pod.task == task);
    attempts.map(|view| view.pod.attempt).max().unwrap_or(AttemptNo(0))
}

/// Whether no later attempt than a pod's is in the history: pods of failures are kept longer than the one of
/// the attempt that went well afterwards.
fn is_newest(pod: PodKey, ended: Option<&(AttemptNo, String)>) -> bool {
    ended.is_none_or(|(attempt, _)| *attempt <= pod.attempt)
}

async fn read(app: &App, namespace: &str, name: &str, follow: bool) -> Result<Body, ClusterError> {
    if follow {
        return Ok(Body::from_stream(cluster::follow(app.cluster.as_ref(), namespace, name).await?));
    }
    Ok(Body::from(cluster::tail(app.cluster.as_ref(), namespace, name).await?))
}

async fn archived(app: &App, key: PodKey) -> Result<Option<String>, Problem> {
    let row = app.store.attempt(key).await.map_err(|cause| Problem::internal("read the history", &cause))?;
    Ok(row.map(|row| row.log_tail))
}

/// The log of the last attempt of a task in the history.
async fn newest_archived(
    app: &App,
    job: JobId,
    task: TaskIndex,
    known: AttemptNo,
) -> Result<Option<(AttemptNo, String)>, Problem> {
    let mut newest = None;
    for attempt in (1..).map(AttemptNo) {
        match archived(app, PodKey { job, task, attempt }).await? {
            Some(tail) => newest = Some((attempt, tail)),
            // One that the scheduler still holds may come into the history after later ones.
            None if attempt > known => break,
            None => {}
        }
    }
    Ok(newest)
}

/// There is no log to show: none yet, or no such attempt.
fn absent(
    job: JobId,
    task: TaskIndex,
    wanted: Option<AttemptNo>,
    newest: AttemptNo,
    phase: JobPhase,
) -> Problem {
    let AttemptNo(last) = newest;
    if let Some(AttemptNo(attempt)) = wanted.filter(|_| last > 0)
        && (attempt == 0 || attempt > last)
    {
        let hint = format!("the task has {} so far, counted from 1", counted(last, "attempt"));
        return Problem::not_found(format_args!("attempt {attempt} of task {task} of job {job}")).hint(hint);
    }
    let (detail, hint) = if last == 0 && phase == JobPhase::Finished {
        ("has no log: it never started", "`rackwright job show` says how the job ended")
    } else {
        ("has no log yet", "`rackwright job explain` says what it waits for")
    };
    Problem::new(StatusCode::NOT_FOUND, "no-log", format!("task {task} of job {job} {detail}")).hint(hint)
}

fn text(body: Body, source: &'static str) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-rackwright-log", HeaderValue::from_static(source));
    response
}

fn unreadable(cause: &ClusterError) -> Problem {
    tracing::info!(error = %crate::problem::Chain(cause), "no live log");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "log-unavailable",
        "the pod's server does not hand out its log now",
    )
    .hint("its container may not have started, or its server may be dead; try again, or read it from the history once it has ended")
    .retry_after_s(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_whose_pod_is_kept_does_not_hide_the_attempt_after_it() {
        let pod: PodKey = "j0000000001-0-2".parse().unwrap();
        let ended = |attempt| (AttemptNo(attempt), String::new());
        assert!(is_newest(pod, None));
        assert!(is_newest(pod, Some(&ended(1))), "it is being tried again");
        assert!(is_newest(pod, Some(&ended(2))), "its pod has more of its log than the history");
        assert!(!is_newest(pod, Some(&ended(3))));
    }
}
