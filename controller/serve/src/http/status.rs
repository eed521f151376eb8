//! How the controller is, for machines: health, metrics, and the interface's own description.

use crate::app::App;
use crate::brain::now_ms;
use crate::counters::gauge;
use crate::problem::Problem;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// `GET /livez`.
pub(super) async fn livez() -> &'static str {
    "alive\n"
}

/// `GET /readyz`: whether submits are accepted. A cluster that is away does not change that.
pub(super) async fn readyz(State(app): State<App>) -> Result<String, Problem> {
    if let Some(trouble) = app.health.trouble() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", trouble).retry_after_s(2));
    }
    let synced = app.health.synced_ms();
    Ok(match synced {
        0 => "ready; the cluster was not seen yet\n".to_owned(),
        _ => format!("ready; the cluster was seen {} s ago\n", now_ms().saturating_sub(synced) / 1000),
    })
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Json<serde_json::Value> {
    Json(super::openapi::document())
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<App>) -> Result<String, Problem> {
    let mut text = app.counters.text();
    let (pods, peak, ours, pending, clock_ms) = app
        .ask(|sched, world| {
            let pending = super::cluster::pending(sched).len();
            (world.pods(), world.peak(), world.ours().count(), pending, sched.clock_ms())
        })
        .await?;
    gauge(&mut text, "pods", pods);
    gauge(&mut text, "pods_peak", peak);
    gauge(&mut text, "job_pods", ours);
    gauge(&mut text, "jobs_pending", pending);
    gauge(&mut text, "cluster_seen_ms", app.health.synced_ms());
    gauge(&mut text, "clock_ahead_ms", clock_ms.saturating_sub(now_ms()));
    if let Some(etcd) = &app.etcd
        && let Ok(size) = etcd.size().await
    {
        gauge(&mut text, "etcd_db_bytes", size.db_bytes);
        gauge(&mut text, "etcd_in_use_bytes", size.in_use_bytes);
    }
    Ok(text)
}
