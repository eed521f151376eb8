//! The data port: accepts mutual TLS, names the caller, serves HTTP. And `run`, the whole data unit.

use crate::api::{Api, ClientName, Reporter, router};
use crate::config::Config;
use crate::error::Error;
use crate::fetch::Patience;
use crate::load;
use crate::node::Node;
use crate::tls;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// Connections served at once: every server of a large rack, a few each.
const MOST_CONNECTIONS: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Threads for disk work: enough for chunks in flight both ways, and few stacks and heaps.
const BLOCKING_THREADS: usize = 4;

/// Runs the data unit until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// The configuration, the store, the certificates or the port cannot be used.
pub fn run(config: &Path, report: Reporter) -> Result<(), Error> {
    let config = Config::read(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .map_err(|cause| Error::setup("start the runtime", cause))?;
    runtime.block_on(async {
        let node = Arc::new(Node::open(config, Patience::default())?);
        let listener = TcpListener::bind(node.config.listen).await;
        let listener =
            listener.map_err(|cause| Error::setup(format!("listen on {}", node.config.listen), cause))?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::select! {
            served = serve(node, listener, report, stop) => served,
            signal = stop_signal() => {
                stopped.cancel();
                signal
            }
        }
    })
}

/// Serves the data port and closes the gap between wanted and held until `stop` is cancelled.
///
/// # Errors
/// The certificates cannot be used.
pub async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    report: Reporter,
    stop: CancellationToken,
) -> Result<(), Error> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&node.config.tls)?));
    let app = router(Api { node: Arc::clone(&node), report });
    let tasks = TaskTracker::new();
    tracing::info!(server = node.config.server, listen = %node.config.listen, "data port is open");
    let connections = accept(listener, acceptor, app, &tasks);
    tokio::select! {
        () = stop.cancelled() => (),
        () = node.run() => (),
        () = scrub_now_and_then(&node) => (),
        () = load::run(&node) => (),
        () = connections => (),
    }
    Ok(())
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, app: Router, tasks: &TaskTracker) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _address)) => {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tasks.spawn(async move {
                    connection(stream, acceptor, app).await;
                    drop(permit);
                });
            }
            Err(cause) => {
                // Out of file descriptors, most likely: others have to close first.
                tracing::warn!(%cause, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, app: Router) {
    let _best_effort = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(cause)) => return tracing::debug!(%cause, "a handshake failed"),
        Err(_late) => return tracing::debug!("a handshake took too long"),
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let Some(name) = certificate.and_then(tls::common_name) else {
        return tracing::debug!("a certificate has no common name");
    };
    let app = app.map_request(move |mut request: axum::http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ClientName(name.clone()));
        request
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await;
    if let Err(cause) = served {
        tracing::debug!(%cause, "a connection ended early");
    }
}

/// Scrubs on the configured rhythm; the first time one period after the start.
async fn scrub_now_and_then(node: &Node) {
    if node.config.scrub_every_h == 0 {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(Duration::from_secs(node.config.scrub_every_h.saturating_mul(3600))).await;
        match node.scrub().await {
            Ok(report) => tracing::info!(found = report.found(), repaired = report.repaired(), "scrubbed"),
            Err(error) => tracing::warn!("{}", error.chain()),
        }
    }
}

async fn stop_signal() -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|cause| Error::setup("listen for signals", cause));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}
