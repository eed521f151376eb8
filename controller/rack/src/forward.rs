//! A loopback port on the operator's machine that leads to a port on a server, through its SSH session:
//! Kubernetes and HTTP clients work behind firewalls without knowing about SSH.

use crate::session::Session;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The local port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open a local port to forward from")]
pub struct ForwardError(#[source] std::io::Error);

/// An open forwarding; it ends when dropped.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Forward {
    /// Listens on a free loopback port; each connection becomes one channel to `host:port` as seen from
    /// the server.
    pub async fn start(session: Arc<Session>, host: &str, port: u16) -> Result<Self, ForwardError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(ForwardError)?;
        let address = listener.local_addr().map_err(ForwardError)?;
        let task = tokio::spawn(accept(listener, session, host.to_owned(), port));
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, session: Arc<Session>, host: String, port: u16) {
    // Aborting this task drops the set, and with it every connection that it carries.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (session, host) = (Arc::clone(&session), host.clone());
        connections.spawn(async move {
            match session.tcp(&host, port).await {
                Ok(tunnel) => {
                    let _either_side_may_hang_up = tunnel.carry(stream).await;
                }
                // The client sees a closed connection, which is what it would see without SSH.
                Err(error) => tracing::debug!(%host, port, %error, "forwarded connection refused"),
            }
        });
    }
}
