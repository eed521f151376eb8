//! Jobs: submit, list, show, explain, cancel.

use super::input::{Body, Params, invalid, is_json, job_id, no_job, parsed};
use crate::api::{Cancelled, Job, JobList, JobSummary, LiveAttempt, Submitted};
use crate::app::{App, busy};
use crate::auth::Caller;
use crate::brain::{Input, now_ms};
use crate::history;
use crate::problem::Problem;
use crate::seen::PodState;
use crate::world::World;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use rackwright_core::job::{DEADLINE_HINT, DatasetPin, Finding, JobPhase, JobSpec, Outcome, VersionWanted};
use rackwright_core::sched::{Explanation, Sched, Verdict};
use rackwright_store::{
    AttemptRow, AuditRow, IdempotencyKey, JobQuery, JobRow, Role, Store as _, StoreError, Submit,
};
use rackwright_wire::id::JobId;
use rackwright_wire::units::Money;
use serde::Deserialize;
use std::collections::HashSet;
use tokio::sync::oneshot;

/// Attempts that one answer shows at most.
const ATTEMPTS: u32 = 500;

/// `POST /v1/jobs`.
pub(super) async fn submit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers)?;
    is_json(&body.0)?;
    let spec = JobSpec::from_json(&body.0, &app.job_limits)
        .map_err(|findings| invalid("invalid-job", "the job cannot be accepted", findings))?;
    let digest = serde_json::to_vec(&spec).map(|bytes| blake3::hash(&bytes).to_hex().to_string());
    let digest = digest.map_err(|cause| Problem::internal("read the job", &cause))?;
    priced(&app, &spec).await?;
    let datasets = resolve(&app, &spec).await?;
    let submit = Submit {
        owner: caller.owner,
        team: caller.team,
        spec,
        datasets,
        at_ms: now_ms(),
        idempotency: key.map(|key| (key, digest)),
    };
    // In a task of its own: a client that leaves now must not keep the loop from hearing of the job.
    let accepted = tokio::spawn(accept(app, submit)).await;
    accepted.map_err(|cause| Problem::internal("accept the job", &cause))?
}

async fn accept(app: App, submit: Submit) -> Result<Response, Problem> {
    if let Some(trouble) = app.health.trouble() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", trouble)
            .hint("nothing was accepted; GET /readyz says when it works again")
            .retry_after_s(2));
    }
    let place = app.place()?;
    let open = app.gate.read().await;
    let accepted = app.store.submit(submit).await.map_err(refused)?;
    if accepted.replayed {
        drop(place);
    } else {
        place.send(Input::Accepted(Box::new(accepted.record.clone()), accepted.seq));
        app.counters.add("jobs_accepted");
    }
    drop(open);
    let (record, replayed) = (accepted.record, accepted.replayed);
    let status = if replayed { StatusCode::OK } else { StatusCode::CREATED };
    let location = format!("/v1/jobs/{}", record.id);
    let answer = Submitted {
        id: record.id,
        name: record.spec.name.clone(),
        tasks: record.spec.tasks(),
        owner: record.owner,
        team: record.team,
        datasets: record.datasets,
        spec: record.spec,
        replayed,
    };
    Ok((status, [(header::LOCATION, location)], Json(answer)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else { return Ok(None) };
    let key = value.to_str().ok().and_then(IdempotencyKey::new).filter(|_| given.next().is_none());
    key.map(Some).ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-idempotency-key", "the Idempotency-Key cannot be used")
            .hint("send it once, 1 to 128 visible ASCII characters, such as a UUID")
    })
}

/// A cap that nothing can be held against would be no cap.
async fn priced(app: &App, spec: &JobSpec) -> Result<(), Problem> {
    let Some(cap) = spec.money_cap else { return Ok(()) };
    let currency = cap.currency();
    let known = app
        .ask(move |_, world| {
            let prices = world.nodes().values().filter_map(|node| node.price_per_hour);
            prices.map(Money::currency).any(|of| of == currency)
        })
        .await?;
    if known {
        return Ok(());
    }
    let message = format!("is in {currency}, and no server says what its hour costs in that");
    let hint = "`contract` in the inventory prices a server; GET /v1/nodes shows what is known";
    let finding = Finding::new("money_cap", message, hint);
    Err(invalid("invalid-job", "the job cannot be accepted", vec![finding]))
}

/// The versions that the job will see, whatever is published later.
async fn resolve(app: &App, spec: &JobSpec) -> Result<Vec<DatasetPin>, Problem> {
    let mut pins = Vec::with_capacity(spec.datasets.len());
    let mut findings = Vec::new();
    for (place, wanted) in spec.datasets.iter().enumerate() {
        let pin = match &wanted.version {
            VersionWanted::Exact(version) => {
                Some(DatasetPin { name: wanted.name.clone(), version: version.clone(), generation: 0 })
            }
            VersionWanted::Latest => newest(app, &wanted.name).await?,
        };
        match pin {
            Some(pin) => pins.push(pin),
            None => findings.push(Finding::new(
                &format!("datasets[{place}].name"),
                format!("no version of {} is published", wanted.name),
                "`rackwright data sync` publishes one; GET /v1/data lists what there is",
            )),
        }
    }
    if findings.is_empty() {
        return Ok(pins);
    }
    Err(invalid("unknown-dataset", "the job names datasets without a version", findings))
}

/// As the data plane says, else the newest that any node holds.
async fn newest(app: &App, name: &rackwright_wire::id::DatasetName) -> Result<Option<DatasetPin>, Problem> {
    if let Some(pin) = app.data.as_ref().and_then(|data| data.newest(name)) {
        return Ok(Some(pin));
    }
    let name = name.clone();
    app.ask(move |_, world| {
        let held = world.nodes().values().filter_map(|node| node.datasets.get(&name)).flatten();
        let newest = held.max_by_key(|held| held.generation)?;
        Some(DatasetPin { name, version: newest.version.clone(), generation: newest.generation })
    })
    .await
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is not the caller's to mend is answered alike")]
fn refused(cause: StoreError) -> Problem {
    match cause {
        StoreError::KeyReused { first } => {
            let detail = format!("the Idempotency-Key stands for another body, that of job {first}");
            Problem::new(StatusCode::CONFLICT, "idempotency-key-reused", detail)
                .hint("use a new key for a new job; repeat the first body to see the first job")
        }
        StoreError::Dependency { job, why } => invalid(
            "dependency-failed",
            "a job that this one depends on cannot succeed any more",
            vec![Finding::new(
                "depends_on",
                format!("{job} {why}"),
                "leave it out, or submit it again first",
            )],
        ),
        StoreError::DeadlinePast { deadline_s } => invalid(
            "invalid-job",
            "the job cannot be accepted",
            vec![Finding::new("deadline_s", format!("{deadline_s} is past"), DEADLINE_HINT)],
        ),
        StoreError::Busy { .. } => busy(),
        StoreError::DiskFull { .. } => {
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "the job store's disk is full")
                .hint("nothing was accepted; an operator has to make room on the control server")
        }
        other => Problem::internal("store the job", &other),
    }
}

/// The query of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    team: Option<String>,
    owner: Option<String>,
    project: Option<String>,
    phase: Option<String>,
    outcome: Option<String>,
    limit: Option<u32>,
    after: Option<String>,
}

/// `GET /v1/jobs`.
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<ListQuery>,
) -> Result<Json<JobList>, Problem> {
    let mut team = parsed("team", query.team.as_deref())?;
    if caller.role != Role::Operator {
        if team.is_some_and(|team| team != caller.team) {
            return Ok(Json(JobList { jobs: Vec::new(), next: None }));
        }
        team = Some(caller.team);
    }
    let page = app.store.jobs(JobQuery {
        team,
        owner: parsed("owner", query.owner.as_deref())?,
        project: parsed("project", query.project.as_deref())?,
        phase: word::<JobPhase>("phase", query.phase)?,
        outcome: word::<Outcome>("outcome", query.outcome)?,
        limit: query.limit.unwrap_or(0),
        after: query.after,
    });
    let page = page.await.map_err(unlisted)?;
    Ok(Json(JobList { jobs: page.rows.iter().map(JobSummary::of).collect(), next: page.next }))
}

/// A word that stands for a value of an enum.
fn word<T: serde::de::DeserializeOwned>(name: &str, text: Option<String>) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    serde_json::from_value(serde_json::Value::String(text.clone())).map(Some).map_err(|_other| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-query", format!("no {name} is called {text:?}"))
            .hint("docs/codes.md lists phases and outcomes")
    })
}

/// A listing that could not be had.
pub(super) fn unlisted(cause: StoreError) -> Problem {
    if let StoreError::Cursor { cursor } = cause {
        let detail = format!("{cursor:?} is no cursor of this listing");
        return Problem::new(StatusCode::BAD_REQUEST, "invalid-cursor", detail)
            .hint("pass `next` of the page before, unchanged");
    }
    Problem::internal("list", &cause)
}

/// The job's row, if the caller may see it.
pub(super) async fn visible(app: &App, caller: &Caller, id: JobId) -> Result<JobRow, Problem> {
    let row = app.store.job(id).await.map_err(|cause| Problem::internal("read the job", &cause))?;
    row.filter(|row| caller.sees(&row.record.team)).ok_or_else(|| no_job(id))
}

/// `GET /v1/jobs/{id}`.
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Job>, Problem> {
    let id = job_id(&id)?;
    let row = visible(&app, &caller, id).await?;
    let (mut live, unarchived, waiting) =
        app.ask(move |sched, world| (live(sched, world, id), ended(sched, id), sentence(sched, id))).await?;
    // Asked last: what is archived in between is then found here at least.
    let mut attempts = app.store.attempts(id, ATTEMPTS, None).await.map_err(unlisted)?.rows;
    let archived: HashSet<_> = attempts.iter().map(|row| row.pod).collect();
    live.retain(|view| !archived.contains(&view.pod));
    attempts.extend(unarchived.into_iter().filter(|row| !archived.contains(&row.pod)));
    Ok(Json(Job {
        job: JobSummary::of(&row),
        spec: row.record.spec,
        datasets: row.record.datasets,
        attempts,
        live,
        waiting,
    }))
}

/// Attempts that have ended and are not in the history yet: whoever saw a job end sees how. Their logs are still
/// with their pods.
fn ended(sched: &Sched, job: JobId) -> Vec<AttemptRow> {
    let ended = sched.attempts(job).into_iter().filter(|view| view.outcome.is_some());
    ended.filter_map(|view| history::row(sched, view.pod, String::new())).collect()
}

/// Attempts of a job whose pods are there and have not ended.
fn live(sched: &Sched, world: &World, job: JobId) -> Vec<LiveAttempt> {
    let open = sched.attempts(job).into_iter().filter(|view| view.outcome.is_none());
    open.take(usize::try_from(ATTEMPTS).unwrap_or(usize::MAX))
        .map(|view| LiveAttempt {
            pod: view.pod,
            node: view.node,
            state: view.state,
            resumed: view.resumed,
            placed_at_ms: view.placed_at_ms,
            started_at_ms: view.started_at_ms,
            note: world.pod_of(view.pod).and_then(|pod| match &pod.state {
                PodState::Pending(note) => note.clone(),
                PodState::Running { .. }
                | PodState::Succeeded(_)
                | PodState::Failed(_)
                | PodState::Refused(_) => None,
            }),
        })
        .collect()
}

/// Why a job waits, when something of it does.
fn sentence(sched: &Sched, job: JobId) -> Option<String> {
    let waits = sched.view(job).is_some_and(|view| view.counts.pending > 0);
    if waits { sched.explain(job).map(|explanation| explanation.sentence) } else { None }
}

/// `GET /v1/jobs/{id}/explain`.
pub(super) async fn explain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, Problem> {
    let id = job_id(&id)?;
    visible(&app, &caller, id).await?;
    let explain = move |sched: &Sched, world: &World| {
        let mut explanation = sched.explain(id)?;
        // It has its places, and yet something does not start: the kubelet says what.
        if explanation.verdict == Verdict::Placed
            && let Some(stuck) = live(sched, world, id).into_iter().find(|attempt| attempt.note.is_some())
        {
            let note = stuck.note.unwrap_or_default();
            explanation.sentence = format!("has a place on {}, but does not start: {note}", stuck.node);
        }
        Some(explanation)
    };
    let explanation = app.ask(explain).await?;
    explanation.map(Json).ok_or_else(|| {
        Problem::new(
            StatusCode::CONFLICT,
            "job-ended",
            format!("job {id} has ended: there is nothing to explain"),
        )
        .hint("`rackwright job show` has its attempts and how they ended")
    })
}

/// `POST /v1/jobs/{id}/cancel`.
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Cancelled>, Problem> {
    let id = job_id(&id)?;
    let row = visible(&app, &caller, id).await?;
    if row.state.phase == JobPhase::Finished {
        return Ok(Json(Cancelled { id, already_ended: true }));
    }
    let audit = AuditRow {
        at_ms: now_ms(),
        owner: caller.owner.clone(),
        team: caller.team,
        action: "job.cancel".to_owned(),
        subject: id.to_string(),
        result: "ok".to_owned(),
    };
    let job = Box::new(row.record);
    let (done, durable) = oneshot::channel();
    let input = Input::Cancel { job, by: caller.owner, audit: Box::new(audit), done };
    app.place()?.send(input);
    durable.await.map_err(|_gone| busy())?;
    Ok(Json(Cancelled { id, already_ended: false }))
}
