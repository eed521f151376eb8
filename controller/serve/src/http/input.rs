//! Reads bodies, queries and ids; whatever is wrong with them is a problem with a code.

use crate::app::App;
use crate::problem::Problem;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use rackwright_core::job::Finding;
use rackwright_wire::id::JobId;
use serde::de::DeserializeOwned;

/// No query that makes sense is longer; what is wrong with one is repeated in the answer.
const LONGEST_QUERY: usize = 2048;

/// A whole body within the limit.
pub(crate) struct Body(pub(crate) Bytes);

impl FromRequest<App> for Body {
    type Rejection = Problem;

    #[expect(clippy::wildcard_enum_match_arm, reason = "axum may add kinds; all but one are answered alike")]
    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if !may_be_json(request.headers()) {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Problem::new(
                status,
                "invalid-request",
                "the Content-Type says that the body is no JSON",
            )
            .hint("send `Content-Type: application/json`; with curl, `--json` instead of `-d`"));
        }
        Bytes::from_request(request, app).await.map(Self).map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                too_large(app.limits.body_bytes)
            }
            _ => {
                Problem::new(StatusCode::BAD_REQUEST, "incomplete-body", "the body did not arrive completely")
            }
        })
    }
}

/// Whether a body is said to be JSON, or nothing is said about it.
fn may_be_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

impl Body {
    /// The body as a value of one of our own small types.
    ///
    /// # Errors
    /// It is no JSON, or not of that shape.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        is_json(&self.0)?;
        serde_json::from_slice(&self.0).map_err(|cause| {
            let finding = Finding::new("", cause.to_string(), "GET /openapi.json has the shape");
            invalid("invalid-body", "the body is not what this path takes", vec![finding])
        })
    }
}

/// A query whose keys are all known.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let refused = |why: &str| {
            let detail = format!("the query is not understood: {why}");
            Problem::new(StatusCode::BAD_REQUEST, "invalid-query", detail)
                .hint("GET /openapi.json lists the parameters of each path")
        };
        if parts.uri.query().is_some_and(|query| query.len() > LONGEST_QUERY) {
            return Err(refused(&format!("it is longer than {LONGEST_QUERY} bytes")));
        }
        let Query(value) = Query::try_from_uri(&parts.uri).map_err(|cause| refused(&cause.body_text()))?;
        Ok(Self(value))
    }
}

/// A job's id from a path.
///
/// # Errors
/// It is no id: then no job has it.
pub(crate) fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_not_an_id| no_job(text))
}

/// There is no such job, or the caller may not know of it.
pub(crate) fn no_job(id: impl std::fmt::Display) -> Problem {
    Problem::not_found(format_args!("job {id}")).hint("`rackwright job list` shows the jobs of your team")
}

/// A value from the query.
///
/// # Errors
/// It is not of its type.
pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: Option<&str>,
) -> Result<Option<T>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|cause| Problem::new(StatusCode::BAD_REQUEST, "invalid-query", format!("{name}: {cause}")))
}

/// # Errors
/// The bytes are no JSON document.
pub(crate) fn is_json(bytes: &[u8]) -> Result<(), Problem> {
    serde_json::from_slice::<serde_json::Value>(bytes).map(|_| ()).map_err(|cause| {
        Problem::new(StatusCode::BAD_REQUEST, "malformed-json", format!("the body is no JSON: {cause}"))
            .hint("send one JSON object")
    })
}

/// The body is JSON, and these things are wrong with it.
pub(crate) fn invalid(code: &'static str, detail: &str, findings: Vec<Finding>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
        .hint("nothing was changed; all that is wrong is listed")
        .findings(findings)
}

/// The body is over the limit.
pub(crate) fn too_large(limit: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", format!("a body may have {limit} bytes"))
        .hint("put large inputs into a dataset, and many tasks into one array")
}
