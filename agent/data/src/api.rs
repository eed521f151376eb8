//! The data port's HTTP interface: who may ask what, and the answers.
//!
//! | call | who |
//! |---|---|
//! | `PUT /v1/trust` (SPKI PEM), `PUT /v1/wanted`, `POST /v1/source/{facts,export}`, `POST /v1/scrub` | controllers |
//! | `GET /v1/held`, `/v1/report`, `/v1/objects/{hash}/chunks/{i}?from=&wait_ms=`, `/v1/sets`, `/v1/sets/{id}` | known |
//! | `GET, PUT /v1/objects/{hash}`, `PUT /v1/sets/{id}` | known |
//!
//! Names come from verified client certificates; everything else is refused before a handler runs.

use crate::error::Error;
use crate::layout::hash_of;
use crate::load;
use crate::node::Node;
use crate::peer::RECEIVED_HEADER;
use crate::sets::SetFilter;
use crate::store::{Availability, ReadableChunk, blocking};
use crate::wanted;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rackwright_wire::manifest::{Held, MANIFEST_BYTES, Wanted};
use rackwright_wire::report::NodeReport;
use rackwright_wire::sealed::{SEALED_VERSION, SealedSet, SetKind, SetList};
use rackwright_wire::source::{Exported, ScrubReport, SourceFacts, SourceRequest};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

/// A sender of whom nothing comes for so long is gone: its bytes must not lie here for ever.
const IDLE: Duration = Duration::from_mins(1);
/// What is no manifest, in JSON: 1 MiB.
const JSON_LIMIT: usize = 1024 * 1024;
/// Longest that a request for a chunk is held.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// A predecessor may hear of a version later than its successor: an object that nobody knows yet is
/// waited for, but shortly.
const UNKNOWN_WAIT: Duration = Duration::from_secs(2);
/// Bytes read from the disk at once for a reader.
const READ_BYTES: u64 = 256 * 1024;

/// Makes a report of this server's load.
pub type Reporter = Arc<dyn Fn() -> NodeReport + Send + Sync>;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) node: Arc<Node>,
    pub(crate) report: Reporter,
}

/// Common name of the verified client certificate, put into the request by the listener.
#[derive(Debug, Clone)]
pub(crate) struct ClientName(pub(crate) String);

/// A caller that may say what is wanted.
struct Controller;
/// A caller of this rack.
struct Known;

pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/wanted", put(put_wanted).layer(DefaultBodyLimit::max(MANIFEST_BYTES)))
        .route("/v1/trust", put(put_trust))
        .route("/v1/source/facts", post(source_facts))
        .route("/v1/source/export", post(source_export))
        .route("/v1/scrub", post(scrub))
        .route("/v1/held", get(held))
        .route("/v1/report", get(report))
        .route("/v1/objects/{hash}/chunks/{index}", get(chunk))
        .route("/v1/objects/{hash}", get(get_object).put(put_object).layer(DefaultBodyLimit::disable()))
        .route("/v1/sets", get(list_sets))
        .route("/v1/sets/{id}", get(get_set).put(put_set).layer(DefaultBodyLimit::max(MANIFEST_BYTES)))
        .layer(DefaultBodyLimit::max(JSON_LIMIT))
        .with_state(api)
}

async fn put_trust(_: Controller, State(api): State<Api>, pem: String) -> Result<StatusCode, Refusal> {
    let layout = api.node.store.layout().clone();
    blocking(move || wanted::pin_key(&layout, &pem)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn put_wanted(
    _: Controller,
    State(api): State<Api>,
    Json(wanted): Json<Wanted>,
) -> Result<Json<Held>, Refusal> {
    let node = Arc::clone(&api.node);
    Ok(Json(blocking(move || node.accept(&wanted)).await?))
}

async fn held(_: Known, State(api): State<Api>) -> Result<Json<Held>, Refusal> {
    let node = Arc::clone(&api.node);
    Ok(Json(blocking(move || node.held()).await?))
}

async fn report(_: Known, State(api): State<Api>) -> Result<Json<NodeReport>, Refusal> {
    Ok(Json(blocking(move || Ok((api.report)())).await?))
}

async fn source_facts(
    _: Controller,
    State(api): State<Api>,
    Json(request): Json<SourceRequest>,
) -> Result<Json<SourceFacts>, Refusal> {
    Ok(Json(api.node.exporter.facts(&request).await?))
}

async fn source_export(
    _: Controller,
    State(api): State<Api>,
    Json(request): Json<SourceRequest>,
) -> Result<Json<Exported>, Refusal> {
    Ok(Json(Box::pin(api.node.exporter.export(&request)).await?))
}

async fn scrub(_: Controller, State(api): State<Api>) -> Result<Json<ScrubReport>, Refusal> {
    Ok(Json(Box::pin(api.node.scrub()).await?))
}

/// How much of a chunk, and how long to wait for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChunkQuery {
    #[serde(default)]
    from: u64,
    #[serde(default)]
    wait_ms: u64,
}

/// A chunk of an object that is here or on its way. One that is not here yet is waited for, so that a
/// chain of nodes receives at the same time.
async fn chunk(
    _: Known,
    State(api): State<Api>,
    Path((hash, index)): Path<(String, u64)>,
    Query(query): Query<ChunkQuery>,
) -> Result<Response, Refusal> {
    let hash = hash_of(&hash)?;
    let wait = Duration::from_millis(query.wait_ms).min(LONGEST_WAIT);
    let begun = tokio::time::Instant::now();
    let mut changes = api.node.store.changes();
    loop {
        changes.borrow_and_update();
        let store = Arc::clone(&api.node.store);
        let available = blocking(move || store.chunk(hash, index)).await?;
        let wait = match available {
            Availability::Here(readable) => return Ok(stream_chunk(readable, query.from)),
            Availability::Coming(_) => wait,
            Availability::Unknown => wait.min(UNKNOWN_WAIT),
        };
        if !matches!(tokio::time::timeout_at(begun + wait, changes.changed()).await, Ok(Ok(()))) {
            return not_here(&api, hash, index, query.from).await;
        }
    }
}

/// The answer when waiting did not help: "not yet" with how far this node is, or "unknown".
async fn not_here(api: &Api, hash: blake3::Hash, index: u64, from: u64) -> Result<Response, Refusal> {
    let store = Arc::clone(&api.node.store);
    match blocking(move || store.chunk(hash, index)).await? {
        Availability::Here(readable) => Ok(stream_chunk(readable, from)),
        Availability::Unknown => Err(Error::Missing(format!("chunk {index} of object {hash}")).into()),
        Availability::Coming(received) => {
            let received = [(RECEIVED_HEADER, received.to_string())];
            Ok((StatusCode::SERVICE_UNAVAILABLE, received, "not here yet").into_response())
        }
    }
}

/// Streams a chunk from the disk a block at a time: memory does not depend on its length.
fn stream_chunk(readable: ReadableChunk, from: u64) -> Response {
    let ReadableChunk { file, offset, len } = readable;
    let from = from.min(len);
    let blocks = stream::try_unfold(from, move |at| {
        let file = Arc::clone(&file);
        async move {
            if at >= len {
                return Ok(None);
            }
            let block = blocking(move || {
                let mut block = vec![0; usize::try_from((len - at).min(READ_BYTES)).unwrap_or_default()];
                file.read_exact_at(&mut block, offset + at).map_err(Error::io("read", "an object"))?;
                Ok(Bytes::from(block))
            });
            let block = block.await?;
            let next = at + block.len() as u64;
            Ok::<_, Error>(Some((block, next)))
        }
    });
    let headers = [(header::CONTENT_LENGTH, (len - from).to_string())];
    (headers, Body::from_stream(blocks)).into_response()
}

/// A whole object.
async fn get_object(_: Known, State(api): State<Api>, Path(hash): Path<String>) -> Result<Response, Refusal> {
    let hash = hash_of(&hash)?;
    let store = Arc::clone(&api.node.store);
    Ok(stream_chunk(blocking(move || store.whole(hash)).await?, 0))
}

/// Stores an object that must hash to its name. Room is checked before the first byte.
async fn put_object(
    _: Known,
    State(api): State<Api>,
    Path(hash): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let hash = hash_of(&hash)?;
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let length = length.ok_or_else(|| Error::refused("an object", "it comes without Content-Length"))?;
    let store = Arc::clone(&api.node.store);
    if blocking(move || if store.has(hash) { Ok(true) } else { store.admit(length).map(|()| false) }).await? {
        return Ok(StatusCode::OK);
    }
    let mut writer = crate::export::BlockWriter::begin(&api.node.store).await?;
    let mut blocks = body.into_data_stream().map_err(|cause| Error::setup("receive an object", cause));
    loop {
        let silent = |_late| Error::io("receive", "an object")(std::io::ErrorKind::TimedOut.into());
        let Some(block) = tokio::time::timeout(IDLE, blocks.next()).await.map_err(silent)? else { break };
        writer.write(&block?).await?;
    }
    writer.commit("object", Some(hash)).await?;
    Ok(StatusCode::CREATED)
}

async fn list_sets(
    _: Known,
    State(api): State<Api>,
    Query(filter): Query<SetFilter>,
) -> Result<Json<SetList>, Refusal> {
    let store = Arc::clone(&api.node.store);
    let listed = move || {
        let sets = store.list_sets(&filter)?;
        let results = sets.iter().filter(|set| set.kind == SetKind::Results);
        let outcomes = results.filter_map(|set| Some((set.id(), load::outcome(&store, set)?))).collect();
        Ok(SetList { version: SEALED_VERSION, sets, outcomes })
    };
    Ok(Json(blocking(listed).await?))
}

async fn get_set(
    _: Known,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<SealedSet>, Refusal> {
    let store = Arc::clone(&api.node.store);
    Ok(Json(blocking(move || store.set(&id)).await?))
}

async fn put_set(
    _: Known,
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(set): Json<SealedSet>,
) -> Result<StatusCode, Refusal> {
    if set.id() != id {
        return Err(Error::refused(format!("set {id}"), format!("its content is set {}", set.id())).into());
    }
    let node = Arc::clone(&api.node);
    let created = blocking(move || node.store.put_set(&set)).await?;
    Ok(if created { StatusCode::CREATED } else { StatusCode::OK })
}

impl FromRequestParts<Api> for Controller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let name = client_name(parts);
        if api.node.config.controllers.contains(&name) { Ok(Self) } else { Err(Refusal::forbidden(&name)) }
    }
}

impl FromRequestParts<Api> for Known {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let name = client_name(parts);
        let config = &api.node.config;
        let known = config.known.contains(&name) || config.controllers.contains(&name);
        if known { Ok(Self) } else { Err(Refusal::forbidden(&name)) }
    }
}

fn client_name(parts: &Parts) -> String {
    parts.extensions.get::<ClientName>().map(|name| name.0.clone()).unwrap_or_default()
}

/// A problem (RFC 9457) as the data port answers it.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    code: &'static str,
    title: String,
    #[serde(skip)]
    status: StatusCode,
}

impl Refusal {
    fn forbidden(name: &str) -> Self {
        let title = format!("certificate {name:?} may not do this");
        Self { code: "forbidden", title, status: StatusCode::FORBIDDEN }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            _ if error.is_full() => (StatusCode::INSUFFICIENT_STORAGE, "disk-full"),
            Error::Refused { .. } => (StatusCode::CONFLICT, "refused"),
            Error::Manifest { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "bad-manifest"),
            Error::Damaged { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "bad-hash"),
            Error::Incomplete { .. } => (StatusCode::FAILED_DEPENDENCY, "incomplete"),
            Error::Missing(_) => (StatusCode::NOT_FOUND, "not-found"),
            Error::Source { .. } => (StatusCode::BAD_GATEWAY, "source-failed"),
            Error::Config { .. }
            | Error::Io { .. }
            | Error::Full { .. }
            | Error::NoPeer { .. }
            | Error::Peer { .. }
            | Error::Setup { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        if status.is_server_error() {
            tracing::warn!(code, "{}", error.chain());
        }
        Self { code, title: error.chain(), status }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_string(&self).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}
