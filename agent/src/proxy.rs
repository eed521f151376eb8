//! `proxy`: a loopback TCP port that leads to a healthy control plane.
//!
//! Every client on a server (kubelet, kube-proxy, serve) talks to 127.0.0.1, whose certificate name never
//! changes; which control planes are behind it is in a file that is read again when it changes. Splices
//! bytes, ends no TLS, knows no HTTP.

mod config;
mod upstreams;

use crate::failure::Failure;
use config::{Config, Watched};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use upstreams::Upstreams;

/// Longer than a SYN retry, shorter than a client's patience.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// An apiserver that accepts at all does so within a round trip.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const RELOAD_EVERY: Duration = Duration::from_millis(500);
/// Unacknowledged bytes after which a connection to a dead server is given up.
const USER_TIMEOUT_MS: u32 = 30_000;
/// Per direction: an idle watch costs 16 KiB.
const BUFFER: usize = 8 * 1024;
/// A node has a dozen clients; this bounds what a runaway pod can open through a host port.
const MOST_CONNECTIONS: usize = 1024;

pub(crate) fn run(path: &Path) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    runtime.block_on(async {
        let config = Config::read(path).map_err(|error| Failure::new("config", &error))?;
        let what = format!("listen on {}", config.listen);
        let listener = TcpListener::bind(config.listen).await.map_err(|error| Failure::io(&what, &error))?;
        let upstreams = Arc::new(Upstreams::new(config.upstreams.clone()));
        tracing::info!(listen = %config.listen, upstreams = ?config.upstreams, "proxy");
        serve(listener, upstreams, Watched::new(path, config))
            .await
            .map_err(|error| Failure::io("accept", &error))
    })
}

/// Accepts until the listener fails.
async fn serve(listener: TcpListener, upstreams: Arc<Upstreams>, config: Watched) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    tokio::select! {
        () = reload(config, &upstreams) => Ok(()),
        () = probe(&upstreams) => Ok(()),
        ended = accept(listener, &upstreams, permits) => ended,
    }
}

async fn accept(
    listener: TcpListener,
    upstreams: &Arc<Upstreams>,
    permits: Arc<Semaphore>,
) -> io::Result<()> {
    loop {
        // Taken before accepting: whoever is too many waits in the kernel's queue.
        let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let upstreams = Arc::clone(upstreams);
        tokio::spawn(async move {
            splice(client, &upstreams).await;
            drop(permit);
        });
    }
}

/// Out of descriptors, or a client that left before it was accepted.
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

async fn splice(mut client: TcpStream, upstreams: &Upstreams) {
    let Some(mut server) = dial(upstreams).await else {
        tracing::warn!("no control plane accepts a connection");
        return;
    };
    for socket in [&client, &server] {
        // A kernel that knows no such option still carries the bytes.
        let _set = socket.set_nodelay(true);
        let _set = rustix::net::sockopt::set_socket_keepalive(socket, true);
        let _set = rustix::net::sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS);
    }
    // Connections end in many ways; the client sees its own.
    let _ended = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await;
}

/// The first upstream that accepts, healthy ones first.
async fn dial(upstreams: &Upstreams) -> Option<TcpStream> {
    for address in upstreams.candidates() {
        if let Some(stream) = connect(address, DIAL_LIMIT).await {
            upstreams.note(address, true);
            return Some(stream);
        }
        upstreams.note(address, false);
    }
    None
}

async fn connect(address: SocketAddr, limit: Duration) -> Option<TcpStream> {
    timeout(limit, TcpStream::connect(address)).await.ok()?.ok()
}

/// Probes all upstreams for ever. One alone is not probed: there is no choice to make.
async fn probe(upstreams: &Upstreams) {
    loop {
        let addresses = upstreams.addresses();
        if addresses.len() > 1 {
            for address in addresses {
                upstreams.note(address, connect(address, PROBE_LIMIT).await.is_some());
            }
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// Takes over changes of the file for ever; a file that cannot be read changes nothing.
async fn reload(mut config: Watched, upstreams: &Upstreams) {
    loop {
        tokio::time::sleep(RELOAD_EVERY).await;
        match config.changed() {
            None => {}
            Some(Ok(new)) => {
                tracing::info!(upstreams = ?new.upstreams, "configuration changed");
                upstreams.replace(new.upstreams);
            }
            Some(Err(error)) => {
                let error = rackwright_steps::error::chain(&error);
                tracing::warn!(error, "configuration kept");
            }
        }
    }
}

#[cfg(test)]
mod tests;
