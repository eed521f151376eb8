//! What a job left: sealed sets on the results server, and what became of them.

use super::input::job_id;
use super::jobs::visible;
use crate::api::{ResultSet, Results};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Chain, Problem};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use rackwright_wire::id::{AttemptNo, TaskIndex};
use rackwright_wire::sealed::{SealedSet, SetKind};
use std::collections::BTreeMap;

/// `GET /v1/jobs/{id}/results`.
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Results>, Problem> {
    let row = visible(&app, &caller, job_id(&id)?).await?;
    let Some(data) = &app.data else {
        return Ok(Json(Results { sets: Vec::new() }));
    };
    let list = data.sets(&row.record).await.map_err(|cause| {
        tracing::info!(error = %Chain(&cause), "no list of sealed sets");
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "results-unavailable",
            "the results server does not say now what it keeps",
        )
        .hint("nothing is lost: sets wait on their nodes until it takes them")
        .retry_after_s(2)
    })?;
    Ok(Json(Results { sets: list.sets.iter().map(|set| view(set, &list.outcomes)).collect() }))
}

fn view(set: &SealedSet, outcomes: &BTreeMap<String, String>) -> ResultSet {
    let outcome = match (&set.refused, set.kind) {
        (Some(why), _) => Some(format!("refused: {why}")),
        (None, SetKind::Checkpoint) => Some(format!("kept{}", set.but())),
        (None, SetKind::Results) => outcomes.get(&set.id()).cloned(),
    };
    ResultSet {
        id: set.id(),
        kind: set.kind,
        task: TaskIndex(set.task),
        attempt: AttemptNo(set.attempt),
        step: set.step,
        node: set.node.clone(),
        files: set.files.len() as u64,
        bytes: set.files.iter().map(|file| file.bytes).sum(),
        outcome,
    }
}
