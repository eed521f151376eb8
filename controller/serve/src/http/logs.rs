//! A job's output: from the live pod through the apiserver, from the history row afterwards.

use super::input::{Params, job_id};
use super::jobs::visible;
use crate::app::App;
use crate::auth::Caller;
use crate::cluster::{self, ClusterError};
use crate::problem::Problem;
use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use rackwright_store::Store as _;
use rackwright_wire::id::{AttemptNo, PodKey, TaskIndex};
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
    let tasks = visible(&app, &caller, job).await?.record.spec.tasks();
    if query.task >= tasks {
        let hint = format!("it has {}, counted from 0", counted(tasks, "task"));
        return Err(Problem::not_found(format_args!("task {} of job {job}", query.task)).hint(hint));
    }
    let task = TaskIndex(query.task);
    let place = app
        .ask(move |_, world| {
            let pods = world.ours().filter(|pod| {
                pod.ours.is_some_and(|key| {
                    key.job == job
                        && key.task == task
                        && query.attempt.is_none_or(|attempt| key.attempt == AttemptNo(attempt))
                })
            });
            pods.max_by_key(|pod| pod.ours).map(|pod| (pod.namespace.clone(), pod.name.clone(), pod.ours))
        })
        .await?;
    if let Some((namespace, name, key)) = place {
        match read(&app, &namespace, &name, query.follow).await {
            Ok(body) => return Ok(text(body, "live")),
            // It ended in between, or its kubelet is away: the history may have it.
            Err(cause) => {
                if let Some(row) = archived(&app, key).await? {
                    return Ok(text(Body::from(row), "history"));
                }
                return Err(unreadable(&cause));
            }
        }
    }
    match newest_archived(&app, job, task, query.attempt).await? {
        Some(tail) => Ok(text(Body::from(tail), "history")),
        None => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no-log",
            format!("task {task} of job {job} has no log yet"),
        )
        .hint("`rackwright job explain` says what it waits for")),
    }
}

async fn read(app: &App, namespace: &str, name: &str, follow: bool) -> Result<Body, ClusterError> {
    if follow {
        return Ok(Body::from_stream(cluster::follow(app.cluster.as_ref(), namespace, name).await?));
    }
    Ok(Body::from(cluster::tail(app.cluster.as_ref(), namespace, name).await?))
}

async fn archived(app: &App, key: Option<PodKey>) -> Result<Option<String>, Problem> {
    let Some(key) = key else { return Ok(None) };
    let row = app.store.attempt(key).await.map_err(|cause| Problem::internal("read the history", &cause))?;
    Ok(row.map(|row| row.log_tail))
}

/// The log of the attempt that was asked for, else of the task's last one.
async fn newest_archived(
    app: &App,
    job: rackwright_wire::id::JobId,
    task: TaskIndex,
    attempt: Option<u32>,
) -> Result<Option<String>, Problem> {
    if let Some(attempt) = attempt {
        return archived(app, Some(PodKey { job, task, attempt: AttemptNo(attempt) })).await;
    }
    let mut newest = None;
    for attempt in 1.. {
        match archived(app, Some(PodKey { job, task, attempt: AttemptNo(attempt) })).await? {
            Some(tail) => newest = Some(tail),
            None => break,
        }
    }
    Ok(newest)
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
