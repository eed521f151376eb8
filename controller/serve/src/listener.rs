//! Accepts connections: TLS handshake, then HTTP/2 or HTTP/1.1, each with a limit and a time-out.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A client that does not finish its handshake or its headers in this time is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a stop, requests under way get this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves `app` on `listener` until stopped; at most `connections` at once, more wait in the backlog.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    app: Router,
    connections: usize,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(connections.max(1)));
    let tasks = TaskTracker::new();
    let service = TowerToHyperService::new(app);
    loop {
        let accepted = stop.run_until_cancelled(accept(&listener, &room)).await;
        let Some((stream, permit)) = accepted else { break };
        let (tls, service, stop) = (tls.clone(), service.clone(), stop.clone());
        tasks.spawn(async move {
            connection(stream, tls, service, stop).await;
            drop(permit);
        });
    }
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("requests were still under way at the stop");
    }
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    let permit = Arc::clone(room).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(cause) => {
                // Out of descriptors, or a client that left in between: neither ends the server.
                tracing::warn!(error = %cause, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    service: TowerToHyperService<Router>,
    stop: CancellationToken,
) {
    let _best_effort = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await else { return };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(cause) = outcome {
        tracing::debug!(error = %cause, "connection ended early");
    }
}
