//! From a server's name to an open session: bastion, ramp, patience, pin, login; one session per server.

use crate::credential::{Credential, CredentialError};
use crate::ledger::{HostLedger, LedgerError};
use crate::ramp::{Patience, Ramp, jitter};
use crate::session::{OpenError, Session, SessionError, Trust};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;

/// A server that does not answer a TCP connect within this is absent.
const TCP_DEADLINE: Duration = Duration::from_secs(4);

/// How one server is reached.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name in the inventory.
    pub server: String,
    /// Address or host name of its sshd.
    pub host: String,
    /// Port of its sshd.
    pub port: u16,
    /// Login name.
    pub user: String,
    /// What to log in with.
    pub credential: Credential,
    /// Name of another target to go through.
    pub bastion: Option<String>,
}

/// What to do about a server whose key nobody vouched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstUse {
    /// Stop and show the key.
    Refuse,
    /// Take it and record that it was taken.
    Accept,
}

/// A server could not be reached, trusted or logged in to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No target of that name.
    #[error("find a server named {0} in the inventory")]
    NoSuchServer(String),
    /// TCP connect failed.
    #[error("reach {server} at {host}:{port}")]
    Unreachable {
        /// The server.
        server: String,
        /// Its address.
        host: String,
        /// Its port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// SSH failed.
    #[error("connect to {server}")]
    Ssh {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// The bastion failed.
    #[error("reach {server} through bastion {bastion}")]
    Bastion {
        /// The server.
        server: String,
        /// The bastion.
        bastion: String,
        /// Why.
        #[source]
        source: Box<ConnectError>,
    },
    /// The bastion does not connect to the server.
    #[error("reach {server} through bastion {bastion}")]
    Tunnel {
        /// The server.
        server: String,
        /// The bastion.
        bastion: String,
        /// Why.
        #[source]
        source: Box<SessionError>,
    },
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The key failed.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl ConnectError {
    /// Whether a host key stopped the connection before authentication.
    pub fn is_untrusted(&self) -> bool {
        match self {
            Self::Ssh { source, .. } => {
                matches!(**source, OpenError::HostKeyChanged { .. } | OpenError::HostKeyUnknown { .. })
            }
            Self::Bastion { source, .. } => source.is_untrusted(),
            Self::Ledger(source) => matches!(source, LedgerError::Contradiction { .. }),
            Self::NoSuchServer(_) | Self::Unreachable { .. } | Self::Tunnel { .. } | Self::Credential(_) => {
                false
            }
        }
    }

    /// What the operator can do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Ssh { server, source } => source.help(server),
            Self::Bastion { source, .. } => source.help(),
            Self::Credential(error) => Some(error.help().to_owned()),
            Self::Ledger(LedgerError::Contradiction { server, .. }) => Some(format!(
                "if {server} was reinstalled on purpose, remove [hosts.{server}] from hosts.toml in the cluster's \
                 state folder"
            )),
            Self::NoSuchServer(_) | Self::Unreachable { .. } | Self::Tunnel { .. } | Self::Ledger(_) => None,
        }
    }
}

impl OpenError {
    fn help(&self, server: &str) -> Option<String> {
        match self {
            Self::HostKeyChanged { .. } => Some(format!(
                "nothing was sent to it. If {server} was reinstalled, compare the fingerprint with your provider's \
                 console, remove [hosts.{server}] from hosts.toml in the cluster's state folder and put the new key \
                 into the inventory; if not, somebody may be in between"
            )),
            Self::HostKeyUnknown { .. } => Some(format!(
                "compare the fingerprint with your provider's console, then set ssh.host_key of {server} in the \
                 inventory, or take it as it is with --accept-new (recorded)"
            )),
            Self::Rejected { user } => Some(format!(
                "add the public key to {user}'s authorized_keys on {server}, or name another in ssh.key"
            )),
            Self::Agent(_) | Self::Dropped(_) | Self::Slow | Self::Login { .. } => None,
        }
    }
}

/// All servers of a rack, and the sessions that are open.
pub struct Rack {
    targets: BTreeMap<String, Target>,
    ledger: Mutex<HostLedger>,
    first_use: FirstUse,
    patience: Patience,
    ramp: Ramp,
    sessions: BTreeMap<String, tokio::sync::Mutex<Option<Arc<Session>>>>,
}

impl Rack {
    /// A rack whose sessions open when they are first asked for.
    pub fn new(targets: Vec<Target>, ledger: HostLedger, first_use: FirstUse, patience: Patience) -> Self {
        let targets: BTreeMap<_, _> =
            targets.into_iter().map(|target| (target.server.clone(), target)).collect();
        let sessions = targets.keys().map(|name| (name.clone(), tokio::sync::Mutex::default())).collect();
        Self { targets, ledger: Mutex::new(ledger), first_use, patience, ramp: Ramp::default(), sessions }
    }

    /// Names of all servers.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.targets.keys().map(String::as_str)
    }

    /// How a server is reached.
    pub fn target(&self, server: &str) -> Option<&Target> {
        self.targets.get(server)
    }

    /// The server's session: the open one, or a new one when there is none or it broke.
    pub async fn session(&self, server: &str) -> Result<Arc<Session>, ConnectError> {
        let missing = || ConnectError::NoSuchServer(server.to_owned());
        let target = self.targets.get(server).ok_or_else(missing)?;
        let mut slot = self.sessions.get(server).ok_or_else(missing)?.lock().await;
        if let Some(open) = slot.as_ref().filter(|session| !session.is_closed()) {
            return Ok(Arc::clone(open));
        }
        let session = Arc::new(self.connect(target).await?);
        *slot = Some(Arc::clone(&session));
        Ok(session)
    }

    async fn connect(&self, target: &Target) -> Result<Session, ConnectError> {
        let via = match &target.bastion {
            // Boxed because a bastion may itself have one.
            Some(name) => {
                Some(Box::pin(self.session(name)).await.map_err(|source| ConnectError::Bastion {
                    server: target.server.clone(),
                    bastion: name.clone(),
                    source: Box::new(source),
                })?)
            }
            None => None,
        };
        let gate = self.ramp.gate(target.bastion.as_deref().unwrap_or_default());
        let mut failed = 0;
        loop {
            let attempt = {
                let _turn = gate.acquire().await;
                Box::pin(self.attempt(target, via.clone())).await
            };
            let error = match attempt {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            failed += 1;
            let pause = self.patience.pause(failed, jitter()).filter(|_| worth_another_try(&error));
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(server = target.server, failed, ?pause, "handshake dropped, trying again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, target: &Target, via: Option<Arc<Session>>) -> Result<Session, ConnectError> {
        let trust = self.trust(&target.server);
        let opened = match &via {
            None => {
                let stream = tcp(target).await?;
                Box::pin(open(target, stream, trust, None)).await
            }
            Some(bastion) => {
                let tunnel = bastion.tcp(&target.host, target.port).await;
                let tunnel = tunnel.map_err(|source| ConnectError::Tunnel {
                    server: target.server.clone(),
                    bastion: bastion.server().to_owned(),
                    source: Box::new(source),
                })?;
                Box::pin(open(target, tunnel.into_stream(), trust, via.clone())).await
            }
        };
        let opened = opened.map_err(|source| ConnectError::Ssh {
            server: target.server.clone(),
            source: Box::new(source),
        })?;
        if let Some(key) = opened.accepted {
            let now = jiff::Timestamp::now().to_string();
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.accept(&target.server, &key, &now)?;
        }
        Ok(opened.session)
    }

    fn trust(&self, server: &str) -> Trust {
        let pinned = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).pinned(server).cloned();
        match (pinned, self.first_use) {
            (Some(key), _) => Trust::Pinned(key),
            (None, FirstUse::Accept) => Trust::AcceptNew,
            (None, FirstUse::Refuse) => Trust::Unknown,
        }
    }
}

async fn open<S>(
    target: &Target,
    stream: S,
    trust: Trust,
    via: Option<Arc<Session>>,
) -> Result<crate::session::Opened, OpenError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    Session::open(&target.server, stream, trust, &target.user, &target.credential, via).await
}

async fn tcp(target: &Target) -> Result<TcpStream, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable {
        server: target.server.clone(),
        host: target.host.clone(),
        port: target.port,
        source,
    };
    let connect = TcpStream::connect((target.host.as_str(), target.port));
    let slow = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 4 s");
    let stream = match tokio::time::timeout(TCP_DEADLINE, connect).await {
        Err(_elapsed) => return Err(unreachable(slow())),
        Ok(result) => result.map_err(unreachable)?,
    };
    stream.set_nodelay(true).map_err(unreachable)?;
    Ok(stream)
}

/// Only what sshd's ramp or a starting server causes is tried again; a clear answer is an answer, and a
/// time-out has waited long enough.
fn worth_another_try(error: &ConnectError) -> bool {
    match error {
        ConnectError::Unreachable { source, .. } => source.kind() == std::io::ErrorKind::ConnectionRefused,
        ConnectError::Ssh { source, .. } => matches!(**source, OpenError::Dropped(_)),
        ConnectError::Tunnel { .. } => true,
        ConnectError::NoSuchServer(_)
        | ConnectError::Bastion { .. }
        | ConnectError::Ledger(_)
        | ConnectError::Credential(_) => false,
    }
}
