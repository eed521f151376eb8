//! The HTTP interface: the table of routes made into a router, and what every request passes first.
//!
//! In this order: time-out, token, rate, role, body limit, handler. A request that fails anywhere
//! answers a problem; one that changes something leaves an audit row.

mod admin;
mod cluster;
mod input;
mod jobs;
mod logs;
mod openapi;
mod results;
mod status;

use crate::app::App;
use crate::auth::Caller;
use crate::brain::now_ms;
use crate::problem::Problem;
use crate::routes::{self, Route};
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use std::time::{Duration, Instant};

/// All routes with everything in front of them; `more` are routes of other parts, such as the data plane.
pub(crate) fn router(app: App, more: Option<Router>) -> Router {
    let own = Router::new()
        .route("/v1/jobs", post(jobs::submit).get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::show))
        .route("/v1/jobs/{id}/explain", get(jobs::explain))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/logs", get(logs::show))
        .route("/v1/jobs/{id}/results", get(results::show))
        .route("/v1/queue", get(cluster::queue))
        .route("/v1/nodes", get(cluster::nodes))
        .route("/v1/usage", get(cluster::usage))
        .route("/v1/etcd", get(cluster::etcd))
        .route("/v1/etcd/compact", post(cluster::compact))
        .route("/v1/tokens", post(admin::create).get(admin::list))
        .route("/v1/tokens/{id}/revoke", post(admin::revoke))
        .route("/v1/audit", get(admin::audit))
        .route("/openapi.json", get(status::openapi))
        .route("/metrics", get(status::metrics))
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz))
        .with_state(app.clone());
    let all = more.into_iter().fold(own, Router::merge);
    all.fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(app.limits.body_bytes))
        .layer(middleware::from_fn_with_state(app, guard))
}

async fn unknown_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not-found", "there is nothing at this path")
        .hint("GET /openapi.json lists every path")
}

async fn unknown_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not know that method")
        .hint("GET /openapi.json lists every path with its methods")
}

/// What every request passes before its handler, and how it is counted.
async fn guard(
    State(app): State<App>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let path = matched.as_ref().map_or("", MatchedPath::as_str);
    let route = routes::find(request.method().as_str(), path);
    let limit = Duration::from_secs(app.limits.request_timeout_s.max(1));
    let passed = tokio::time::timeout(limit, pass(&app, route, request, next)).await;
    let mut response = match passed {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => problem.into_response(),
        Err(_late) => late().into_response(),
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let name = route.map_or("other", |route| route.path);
    app.counters.request(name, response.status().as_u16(), begun.elapsed().as_secs_f64());
    response
}

async fn pass(
    app: &App,
    route: Option<&Route>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    // What is not in the table is reached with a token all the same, and answers 404 after that.
    let open = route.is_some_and(|route| route.role.is_none());
    let mut caller = None;
    if !open {
        let known = authenticate(app, request.headers()).await?;
        if let Some(role) = route.and_then(|route| route.role) {
            known.require(role)?;
        }
        request.extensions_mut().insert(known.clone());
        caller = Some(known);
    }
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > app.limits.body_bytes) {
        return Err(input::too_large(app.limits.body_bytes));
    }
    let subject = request.uri().path().to_owned();
    let response = next.run(request).await;
    if let (Some(action), Some(caller)) = (route.and_then(|route| route.noted), caller)
        && response.status().is_success()
    {
        admin::note(app, &caller, action, &subject).await?;
    }
    as_problem(response)
}

/// A refusal that a part's own extractor worded becomes a problem like all others.
fn as_problem(response: Response) -> Result<Response, Problem> {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !status.is_client_error() || kind == Some(b"application/problem+json") {
        return Ok(response);
    }
    let words = status.canonical_reason().unwrap_or("refused").to_lowercase();
    Err(Problem::new(status, "invalid-request", words).hint("GET /openapi.json has what this path takes"))
}

/// Unknown tokens share one bucket, so that guessing is slow and costs others nothing.
async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, Problem> {
    let now = Instant::now();
    let caller = app.tokens.caller(headers, now_ms()).await;
    let bucket = caller.as_ref().map_or("", |caller| caller.token.as_str());
    app.rate.take(bucket, now).map_err(|wait| {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limited",
            "too many requests a second with this token",
        )
        .hint("wait as long as Retry-After says; submit many tasks as one array")
        .retry_after_s(seconds)
    })?;
    caller
}

fn late() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", "the controller took too long")
        .hint("try again with the same Idempotency-Key: what was accepted is not accepted twice")
        .retry_after_s(2)
}
