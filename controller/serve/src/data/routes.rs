//! The data plane over HTTP: what is published and held, and operations to start and follow.

use super::publish::Operation;
use super::{DataPlane, Seen, settings};
use crate::auth::Caller;
use crate::problem::Problem;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use rackwright_core::data::Decision;
use rackwright_store::Role;
use rackwright_wire::manifest::Column;
use rackwright_wire::words::counted;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The routes; authentication, limits and audit stand in front of them.
pub fn router(plane: DataPlane) -> Router {
    Router::new()
        .route("/v1/data", get(show))
        .route("/v1/data/sync", post(sync))
        .route("/v1/data/scrub", post(scrub))
        .route("/v1/data/operations/{id}", get(operation))
        .with_state(plane)
}

/// What is published and who holds it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataView {
    /// Published versions.
    pub datasets: Vec<DatasetView>,
    /// What each agent last said, by server.
    pub nodes: BTreeMap<String, Seen>,
}

/// One dataset.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetView {
    /// Name.
    pub name: String,
    /// Source name, such as a table.
    pub source: String,
    /// Role of the servers that hold it.
    pub role: String,
    /// The newest version, once there is one.
    pub version: Option<VersionView>,
}

/// A published version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionView {
    /// Digest.
    pub digest: String,
    /// Generation.
    pub generation: u64,
    /// Bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Rows, for tables.
    pub rows: Option<u64>,
    /// Columns, for tables.
    pub columns: Vec<Column>,
    /// When it was published, milliseconds since the epoch.
    pub published_at_ms: u64,
}

/// What to sync.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyncWanted {
    /// Dataset names; all when empty.
    pub datasets: Vec<String>,
    /// Upload rate of the servers, such as `200mbit`, for the printed bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
}

/// What to scrub.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubWanted {
    /// Server names; all that hold data when empty.
    pub servers: Vec<String>,
}

async fn show(
    State(plane): State<DataPlane>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<DataView>, Problem> {
    caller.require(Role::Viewer)?;
    let state = plane.state();
    let datasets = plane.inner.datasets.iter().map(|dataset| DatasetView {
        name: dataset.name.clone(),
        source: dataset.spec.name(),
        role: dataset.role.clone(),
        version: state.published.get(&dataset.name).map(|published| VersionView {
            digest: published.manifest.digest(),
            generation: published.manifest.generation,
            bytes: published.manifest.bytes(),
            files: published.manifest.files.len() as u64,
            rows: published.manifest.rows,
            columns: published.manifest.columns.clone(),
            published_at_ms: published.at_ms,
        }),
    });
    Ok(Json(DataView { datasets: datasets.collect(), nodes: state.seen.clone() }))
}

async fn sync(
    State(plane): State<DataPlane>,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<SyncWanted>,
) -> Result<(StatusCode, Json<Operation>), Problem> {
    caller.require(Role::Operator)?;
    let uplink =
        wanted.uplink.as_deref().map(settings::bits_per_s).transpose().map_err(|_no_rate| no_rate())?;
    for name in &wanted.datasets {
        if !plane.knows_dataset(name) {
            return Err(unknown("dataset", name));
        }
    }
    let id = plane.start_sync(wanted.datasets, uplink);
    Ok((StatusCode::ACCEPTED, find(&plane, id)?))
}

async fn scrub(
    State(plane): State<DataPlane>,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<ScrubWanted>,
) -> Result<(StatusCode, Json<Operation>), Problem> {
    caller.require(Role::Operator)?;
    if let Some(name) = wanted.servers.iter().find(|name| !plane.state().wanted.contains_key(*name)) {
        return Err(unknown("server with data", name));
    }
    let id = plane.start_scrub(wanted.servers);
    Ok((StatusCode::ACCEPTED, find(&plane, id)?))
}

async fn operation(
    State(plane): State<DataPlane>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Result<Json<Operation>, Problem> {
    caller.require(Role::Viewer)?;
    find(&plane, id)
}

fn find(plane: &DataPlane, id: u64) -> Result<Json<Operation>, Problem> {
    let found = plane.state().operations.get(&id).cloned();
    found.map(Json).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "not-found", format!("there is no operation {id}"))
            .hint("the newest 100 are kept, until the controller restarts")
    })
}

fn unknown(what: &str, name: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-input", format!("there is no {what} {name:?}"))
        .hint("`rackwright data status` names those that there are")
}

fn no_rate() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-input", "uplink is no rate")
        .hint("write a whole number with kbit, mbit or gbit, such as 200mbit")
}

impl Operation {
    /// One line a dataset or server for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for row in &self.datasets {
            let short: String = row.digest.chars().take(12).collect();
            let rows = row.rows.map_or(String::new(), |rows| format!(", {}", counted(rows, "row")));
            lines.push(format!(
                "{}: {}; version {short}, {} bytes{rows}",
                row.dataset, row.decision, row.bytes
            ));
            if matches!(row.decision, Decision::Export { .. }) {
                lines.push(format!("  exported once in {} ms, {} bytes read", row.export_ms, row.read_bytes));
            }
            if !row.left_out.is_empty() {
                lines.push(format!("  left out, no fixed width: {}", row.left_out.join(", ")));
            }
            lines.extend(row.bound.map(|bound| format!("  {bound}")));
            for (server, version) in &row.nodes {
                lines.push(format!("  {server}: {}", node_text(version.as_ref())));
            }
            if let Some(took) = row.took_ms {
                let reached = row
                    .reached_percent
                    .map_or(String::new(), |percent| format!(", {percent} % of the bound"));
                lines.push(format!("  on every node after {took} ms{reached}"));
            }
        }
        for scrub in &self.scrubs {
            let (found, repaired) = (scrub.found(), scrub.repaired());
            let read = format!("{}, {} bytes read", counted(scrub.objects, "object"), scrub.bytes);
            lines.push(format!("{}: {read}, {found} damaged, {repaired} repaired", scrub.server));
            for damage in &scrub.damaged {
                let how = damage
                    .unrepaired
                    .clone()
                    .unwrap_or_else(|| format!("repaired with {:?}", damage.fetched));
                lines.push(format!(
                    "  {} chunks {:?}, shared by {}: {how}",
                    damage.blake3,
                    damage.chunks,
                    damage.shared_by.join(", ")
                ));
            }
        }
        lines
    }
}

fn node_text(version: Option<&rackwright_wire::manifest::HeldVersion>) -> String {
    let Some(version) = version else { return "has not answered".to_owned() };
    let fetched: Vec<_> =
        version.fetched.iter().map(|(peer, bytes)| format!("{bytes} from {peer}")).collect();
    let fetched = if fetched.is_empty() { "nothing fetched".to_owned() } else { fetched.join(", ") };
    match (&version.blocked, version.complete) {
        (_, true) => format!("complete ({fetched})"),
        (Some(blocked), false) => format!("blocked: {blocked}"),
        (None, false) => format!("{} of {} bytes ({fetched})", version.bytes, version.total_bytes),
    }
}
