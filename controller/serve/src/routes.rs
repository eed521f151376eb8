//! The table of the HTTP interface: every route, who may call it, and what it is for.
//!
//! The router, the authorisation and the OpenAPI document are all made from this one table; what is not
//! in it answers 404.

use rackwright_store::Role;

/// One route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// Method.
    pub(crate) method: &'static str,
    /// Path with `{parameters}`.
    pub(crate) path: &'static str,
    /// Who may call it; everybody without a token when `None`.
    pub(crate) role: Option<Role>,
    /// One sentence.
    pub(crate) summary: &'static str,
    /// Query parameters.
    pub(crate) query: &'static [&'static str],
    /// Schema of the request's body.
    pub(crate) body: Option<&'static str>,
    /// Schema of the answer; plain text when `None`.
    pub(crate) answer: Option<&'static str>,
    /// Under which name the audit log has it, when its handler does not write there itself.
    pub(crate) noted: Option<&'static str>,
}

const VIEWER: Option<Role> = Some(Role::Viewer);
const SUBMITTER: Option<Role> = Some(Role::Submitter);
const OPERATOR: Option<Role> = Some(Role::Operator);

const fn get(
    path: &'static str,
    role: Option<Role>,
    answer: Option<&'static str>,
    summary: &'static str,
) -> Route {
    Route { method: "GET", path, role, summary, query: &[], body: None, answer, noted: None }
}

const fn post(
    path: &'static str,
    role: Option<Role>,
    body: Option<&'static str>,
    answer: Option<&'static str>,
    summary: &'static str,
) -> Route {
    Route { method: "POST", path, role, summary, query: &[], body, answer, noted: None }
}

const fn with(route: Route, query: &'static [&'static str]) -> Route {
    Route { query, ..route }
}

const fn noted(route: Route, action: &'static str) -> Route {
    Route { noted: Some(action), ..route }
}

/// Every route.
pub(crate) const ROUTES: &[Route] = &[
    post("/v1/jobs", SUBMITTER, Some("JobSpec"), Some("Submitted"), "Submit a job."),
    with(
        get("/v1/jobs", VIEWER, Some("JobList"), "List jobs, newest first."),
        &["team", "owner", "project", "phase", "outcome", "limit", "after"],
    ),
    get("/v1/jobs/{id}", VIEWER, Some("Job"), "One job with its attempts."),
    get("/v1/jobs/{id}/explain", VIEWER, Some("Explanation"), "Why a job waits, server by server."),
    post(
        "/v1/jobs/{id}/cancel",
        SUBMITTER,
        None,
        Some("Cancelled"),
        "End a job; what runs of it is stopped.",
    ),
    with(
        get("/v1/jobs/{id}/logs", VIEWER, None, "Output of one attempt; of the newest when none is named."),
        &["task", "attempt", "follow"],
    ),
    get("/v1/jobs/{id}/results", VIEWER, Some("Results"), "What a job left, and whether it is loaded."),
    get("/v1/queue", VIEWER, Some("Queue"), "What waits, in the order in which it is tried, and why."),
    get("/v1/nodes", VIEWER, Some("NodeList"), "Nodes with their room, data and what takes room on them."),
    with(
        get(
            "/v1/usage",
            VIEWER,
            Some("UsageList"),
            "What attempts held, and for how long: the rows of the bill.",
        ),
        &["from", "to"],
    ),
    get("/v1/data", VIEWER, Some("Data"), "Dataset versions, node by node."),
    noted(
        post(
            "/v1/data/sync",
            OPERATOR,
            Some("SyncWanted"),
            Some("DataOperation"),
            "Export what changed, once, and have it replicated.",
        ),
        "data.sync",
    ),
    noted(
        post(
            "/v1/data/scrub",
            OPERATOR,
            Some("ScrubWanted"),
            Some("DataOperation"),
            "Read every byte again, and repair from peers.",
        ),
        "data.scrub",
    ),
    get("/v1/data/operations/{id}", VIEWER, Some("DataOperation"), "How far a sync or scrub is."),
    get("/v1/tokens", OPERATOR, Some("TokenList"), "Tokens, without their secrets."),
    post(
        "/v1/tokens",
        OPERATOR,
        Some("TokenWanted"),
        Some("TokenMade"),
        "Make a token; it is shown this once.",
    ),
    post("/v1/tokens/{id}/revoke", OPERATOR, None, Some("Token"), "Revoke a token."),
    with(get("/v1/audit", OPERATOR, Some("AuditList"), "Who changed what."), &["limit", "after"]),
    get("/v1/etcd", VIEWER, Some("Etcd"), "Pod records and etcd's size, now and at their peak."),
    post("/v1/etcd/compact", OPERATOR, None, Some("Etcd"), "Compact etcd's history now."),
    get("/openapi.json", None, Some("OpenApi"), "This interface as an OpenAPI document."),
    get("/metrics", VIEWER, None, "Counters for Prometheus."),
    get("/livez", None, None, "Whether the process answers."),
    get("/readyz", None, None, "Whether submits are accepted."),
];

/// The route that a method and a matched path belong to. HEAD is answered by what answers GET, so it is
/// for the same people.
pub(crate) fn find(method: &str, path: &str) -> Option<&'static Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    ROUTES.iter().find(|route| route.method == method && route.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_for_those_who_may_get() {
        assert_eq!(find("HEAD", "/v1/tokens").unwrap().role, OPERATOR);
        assert_eq!(find("HEAD", "/livez").unwrap().role, None);
        assert!(find("HEAD", "/v1/data/sync").is_none(), "what can only be posted");
    }
}
