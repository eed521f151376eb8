//! What the rack holds and what waits for it: queue, nodes, usage, etcd.

use super::input::Params;
use crate::api::{Etcd, Held, NodeList, NodeSummary, Queue, QueuedJob, UsageList};
use crate::app::App;
use crate::auth::Caller;
use crate::brain::now_ms;
use crate::problem::Problem;
use crate::world::World;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use rackwright_core::cost::UsageRow;
use rackwright_core::job::{JobRecord, NodeFacts, Resources};
use rackwright_core::sched::{JobView, Sched};
use rackwright_store::{Role, Store as _};
use rackwright_wire::id::{JobId, NodeName, Team};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Waiting jobs that are explained in one answer.
const EXPLAINED: usize = 100;

/// `GET /v1/queue`.
pub(super) async fn queue(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Queue>, Problem> {
    let team = (caller.role != Role::Operator).then_some(caller.team);
    let priorities = app.job_limits.priorities.clone();
    app.ask(move |sched, _| Json(waiting(sched, &priorities, team.as_ref()))).await
}

fn waiting(sched: &Sched, priorities: &BTreeMap<String, i32>, team: Option<&Team>) -> Queue {
    let mut order = pending(sched);
    let priority = |job: &JobRecord| priorities.get(&job.spec.priority).copied().unwrap_or_default();
    order.sort_by_key(|(job, _)| (std::cmp::Reverse(priority(job)), job.id));
    let visible = order.iter().filter(|(job, _)| team.is_none_or(|team| job.team == *team));
    let shown: Vec<_> = visible.take(EXPLAINED).collect();
    let ids: Vec<JobId> = shown.iter().map(|(job, _)| job.id).collect();
    let mut explained = sched.explain_all(&ids);
    let jobs = shown.into_iter().filter_map(|(job, view)| {
        Some(QueuedJob {
            id: job.id,
            name: job.spec.name.clone(),
            owner: job.owner.clone(),
            team: job.team.clone(),
            priority: job.spec.priority.clone(),
            counts: view.counts,
            submitted_at_ms: job.submitted_at_ms,
            waiting: explained.remove(&job.id)?.sentence,
        })
    });
    Queue { jobs: jobs.collect(), waiting: order.len() }
}

/// Jobs of which something waits, in order of submission.
pub(super) fn pending(sched: &Sched) -> Vec<(&JobRecord, JobView)> {
    let all = sched.jobs().filter_map(|id| Some((sched.job(id)?, sched.view(id)?)));
    all.filter(|(_, view)| view.counts.pending > 0 && view.outcome.is_none()).collect()
}

/// `GET /v1/nodes`.
pub(super) async fn nodes(State(app): State<App>) -> Result<Json<NodeList>, Problem> {
    app.ask(|_, world| {
        let (ours, others) = held(world);
        let of = |map: &BTreeMap<NodeName, Held>, name: &NodeName| map.get(name).copied().unwrap_or_default();
        let nodes = world.nodes().values();
        let nodes = nodes.map(|node| summary(node, of(&ours, &node.name), of(&others, &node.name)));
        Json(NodeList { nodes: nodes.collect() })
    })
    .await
}

fn held(world: &World) -> (BTreeMap<NodeName, Held>, BTreeMap<NodeName, Held>) {
    let (mut ours, mut others) = (BTreeMap::new(), BTreeMap::new());
    for pod in world.all().filter(|pod| pod.takes_room()) {
        let Some(node) = pod.node.clone() else { continue };
        let map = if pod.ours.is_some() { &mut ours } else { &mut others };
        add(map.entry(node).or_default(), &pod.requests);
    }
    (ours, others)
}

fn add(held: &mut Held, requests: &Resources) {
    held.pods += 1;
    held.cpu_milli = held.cpu_milli.saturating_add(requests.cpu.get());
    // Sixteen pods of others may ask for 1 EiB each.
    held.memory_bytes = held.memory_bytes.saturating_add(requests.memory.get());
    held.gpu_milli = held.gpu_milli.saturating_add(requests.gpu.get());
}

fn summary(node: &NodeFacts, jobs: Held, others: Held) -> NodeSummary {
    let versions = node
        .datasets
        .iter()
        .map(|(name, held)| (name.to_string(), held.iter().map(|held| held.version.to_string()).collect()));
    NodeSummary {
        name: node.name.clone(),
        role: node.labels.get("rackwright.dev/role").cloned().unwrap_or_default(),
        ready: node.ready,
        allocatable: node.allocatable,
        jobs,
        others,
        datasets: versions.collect(),
        taints: node.taints.iter().map(|taint| taint.key.clone()).collect(),
        price_per_hour: node.price_per_hour,
    }
}

/// The query of the usage.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
}

/// `GET /v1/usage`.
pub(super) async fn usage(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<UsageQuery>,
) -> Result<Json<UsageList>, Problem> {
    // While the wall clock is behind the scheduler's, attempts are as late as the scheduler says.
    let now = app.ask(|sched, _| sched.clock_ms()).await?.max(now_ms());
    let from_ms = moment("from", query.from.as_deref())?.unwrap_or(0);
    let until_ms = moment("to", query.to.as_deref())?.unwrap_or(now).min(now);
    let team = (caller.role != Role::Operator).then_some(caller.team);
    let of = team.clone();
    let live = app.ask(move |sched, world| running(sched, world, of.as_ref(), from_ms, until_ms)).await?;
    // Asked last: what is archived and pruned in between is then found here at least.
    let ended = app.store.usage(from_ms, until_ms, team.clone()).await;
    let ended = ended.map_err(|cause| Problem::internal("read the usage", &cause))?;
    let mut rows: Vec<UsageRow> = ended.into_iter().map(held_room).collect();
    let known: BTreeSet<_> = rows.iter().map(|row| row.pod).collect();
    rows.extend(live.into_iter().filter(|row| !known.contains(&row.pod)));
    Ok(Json(UsageList { cluster: app.cluster_name.clone(), from_ms, until_ms, team, rows }))
}

/// A history row as a row of the bill.
fn held_room(row: rackwright_store::UsageRow) -> UsageRow {
    UsageRow {
        pod: row.pod,
        owner: row.owner,
        team: row.team,
        project: row.project,
        model: row.model,
        datasets: row.datasets,
        class: row.class,
        node: row.node,
        from_ms: row.from_ms,
        until_ms: row.until_ms,
        resources: row.resources,
        outcome: Some(row.outcome),
    }
}

/// Attempts of a team, or of all, that hold room and have no history row yet: until now.
fn running(sched: &Sched, world: &World, team: Option<&Team>, from_ms: u64, until_ms: u64) -> Vec<UsageRow> {
    let keys = world.ours().filter_map(|pod| pod.ours);
    let rows = keys.filter_map(|pod| {
        let job = sched.job(pod.job).filter(|job| team.is_none_or(|team| job.team == *team))?;
        let view = sched.attempt(pod)?;
        Some(UsageRow {
            pod,
            owner: job.owner.clone(),
            team: job.team.clone(),
            project: job.spec.project.clone(),
            model: job.spec.model.clone(),
            datasets: job.datasets.iter().map(|pin| pin.name.clone()).collect(),
            class: job.spec.class,
            node: view.node,
            from_ms: view.placed_at_ms,
            until_ms: view.finished_at_ms.unwrap_or(until_ms).min(until_ms),
            resources: view.resources,
            outcome: view.outcome,
        })
    });
    rows.filter(|row| row.from_ms < until_ms && row.until_ms > from_ms).collect()
}

/// Milliseconds since the epoch, or an RFC 3339 time.
fn moment(name: &str, text: Option<&str>) -> Result<Option<u64>, Problem> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(ms) = text.parse() {
        return Ok(Some(ms));
    }
    let at = text.parse::<jiff::Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    at.map(Some).ok_or_else(|| {
        let detail = format!("{name}: {text:?} is no time");
        Problem::new(StatusCode::BAD_REQUEST, "invalid-query", detail)
            .hint("write 2026-01-31T00:00:00Z, or milliseconds since the epoch")
    })
}

/// `GET /v1/etcd`.
pub(super) async fn etcd(State(app): State<App>) -> Result<Json<Etcd>, Problem> {
    let size = match &app.etcd {
        Some(etcd) => Some(etcd.size().await.map_err(|cause| unanswered(&cause))?),
        None => None,
    };
    records(&app, size).await
}

/// `POST /v1/etcd/compact`.
pub(super) async fn compact(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Etcd>, Problem> {
    let Some(etcd) = &app.etcd else {
        return Err(Problem::new(StatusCode::CONFLICT, "etcd-unknown", "the controller does not know etcd")
            .hint("give serve.toml an [etcd] section"));
    };
    let size = etcd.compact().await.map_err(|cause| unanswered(&cause))?;
    super::admin::note(&app, &caller, "etcd.compact", &size.revision.to_string()).await?;
    records(&app, Some(size)).await
}

async fn records(app: &App, size: Option<crate::etcd::EtcdSize>) -> Result<Json<Etcd>, Problem> {
    let in_use_peak_bytes = app.etcd.as_ref().map(crate::etcd::EtcdWatch::peak_bytes);
    app.ask(move |_, world| {
        Json(Etcd {
            pods: world.pods(),
            pods_peak: world.peak(),
            job_pods: world.ours().count(),
            size,
            in_use_peak_bytes,
        })
    })
    .await
}

fn unanswered(cause: &crate::etcd::EtcdError) -> Problem {
    tracing::warn!(error = %crate::problem::Chain(cause), "etcd was asked in vain");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "etcd-away", "etcd does not answer the controller")
        .hint("the controller's log has the cause")
        .retry_after_s(5)
}
