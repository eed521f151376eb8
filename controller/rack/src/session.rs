//! One SSH connection to one server: pinned before it authenticates, multiplexed afterwards.

use crate::credential::Credential;
use crate::ledger::{Pin, fingerprint};
use crate::process::Process;
use russh::client::{self, AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelStream, cipher};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Channels at once in one connection: sshd's `MaxSessions` is ten.
pub const CHANNELS_PER_SESSION: usize = 10;
/// No answer to three of these in a row means that the connection is gone: 15 s.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// From TCP connect to the end of the key exchange.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// An open connection.
pub struct Session {
    server: String,
    handle: Handle<Pinned>,
    channels: Arc<Semaphore>,
    /// The bastion's connection carries this one: it lives as long.
    _via: Option<Arc<Session>>,
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; 255 when the command was killed or its channel closed without one.
    pub status: u32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

/// An established connection failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection broke.
    #[error("talk to {server} over SSH")]
    Lost {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: russh::Error,
    },
    /// The connection closed while a command ran or before it started.
    #[error("talk to {server} over SSH: the connection closed")]
    Closed {
        /// The server.
        server: String,
    },
    /// The server does not run commands for this login.
    #[error("run a command on {server}: sshd refused it")]
    Refused {
        /// The server.
        server: String,
    },
}

/// A connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The presented key is not the pinned one. Nothing was authenticated.
    #[error("trust the server: its host key is {presented}, recorded is {pinned}")]
    HostKeyChanged {
        /// Fingerprint that the server presented.
        presented: String,
        /// Fingerprint in the ledger.
        pinned: String,
    },
    /// No key is pinned and accepting is not allowed. Nothing was authenticated.
    #[error("trust the server: its host key {presented} is not known")]
    HostKeyUnknown {
        /// Fingerprint that the server presented.
        presented: String,
    },
    /// The server does not take our key.
    #[error("log in as {user}: the server takes none of the offered keys")]
    Rejected {
        /// The login name.
        user: String,
    },
    /// No ssh-agent answers.
    #[error("use the keys of the ssh-agent")]
    Agent(#[source] russh::keys::Error),
    /// The connection ended before authentication: worth another try.
    #[error("shake hands")]
    Dropped(#[source] russh::Error),
    /// The key exchange took too long.
    #[error("shake hands within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Slow,
    /// The connection ended while logging in.
    #[error("log in as {user}")]
    Login {
        /// The login name.
        user: String,
        /// Why.
        #[source]
        source: russh::Error,
    },
}

/// Which host key is right.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Exactly this one.
    Pinned(Pin),
    /// Whatever comes first; it is in [`Opened::accepted`] afterwards.
    AcceptNew,
    /// None is known: stop and show it.
    Unknown,
}

/// A new connection.
pub struct Opened {
    /// The connection.
    pub session: Session,
    /// The key that was taken on first use, to be recorded.
    pub accepted: Option<PublicKey>,
}

/// Decides about the host key, before anything of ours reaches the server.
struct Pinned {
    trust: Trust,
    presented: Arc<Mutex<Option<PublicKey>>>,
}

enum HandshakeError {
    Key(OpenError),
    Ssh(russh::Error),
}

impl std::fmt::Debug for HandshakeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(error) => error.fmt(f),
            Self::Ssh(error) => error.fmt(f),
        }
    }
}

impl From<russh::Error> for HandshakeError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl client::Handler for Pinned {
    type Error = HandshakeError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let presented = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => certificate.public_key().clone().into(),
        };
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented.clone());
        match &self.trust {
            Trust::Pinned(pinned) if pinned.fits(&presented) => Ok(true),
            Trust::Pinned(pinned) => Err(HandshakeError::Key(OpenError::HostKeyChanged {
                presented: fingerprint(&presented),
                pinned: pinned.fingerprint.clone(),
            })),
            Trust::AcceptNew => Ok(true),
            Trust::Unknown => {
                Err(HandshakeError::Key(OpenError::HostKeyUnknown { presented: fingerprint(&presented) }))
            }
        }
    }
}

impl Session {
    /// Shakes hands on `stream`, checks the host key, and only then logs in.
    pub async fn open<S>(
        server: &str,
        stream: S,
        trust: Trust,
        user: &str,
        credential: &Credential,
        via: Option<Arc<Session>>,
    ) -> Result<Opened, OpenError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let presented = Arc::new(Mutex::new(None));
        let learns = matches!(trust, Trust::AcceptNew);
        let config = Arc::new(config_for(&trust));
        let handler = Pinned { trust, presented: Arc::clone(&presented) };
        let shake = client::connect_stream(config, stream, handler);
        let mut handle = match tokio::time::timeout(HANDSHAKE_DEADLINE, Box::pin(shake)).await {
            Err(_elapsed) => return Err(OpenError::Slow),
            Ok(Err(HandshakeError::Key(error))) => return Err(error),
            Ok(Err(HandshakeError::Ssh(source))) => return Err(OpenError::Dropped(source)),
            Ok(Ok(handle)) => handle,
        };
        Box::pin(authenticate(&mut handle, user, credential)).await?;
        let accepted = presented.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| learns);
        let channels = Arc::new(Semaphore::new(CHANNELS_PER_SESSION));
        Ok(Opened { session: Self { server: server.to_owned(), handle, channels, _via: via }, accepted })
    }

    /// The server's name.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Starts a command. It is never given a secret: arguments are visible to every user of the server.
    pub async fn start(&self, command: &str) -> Result<Process, SessionError> {
        let permit = self.permit().await?;
        let channel = self.handle.channel_open_session().await.map_err(|source| self.lost(source))?;
        channel.exec(true, command).await.map_err(|source| self.lost(source))?;
        Ok(Process::new(self.server.clone(), channel, permit))
    }

    /// Runs a command to its end with all of `stdin`.
    pub async fn exec(&self, command: &str, stdin: &[u8]) -> Result<Output, SessionError> {
        self.start(command).await?.finish(stdin).await
    }

    /// A TCP connection from the server to `host:port`, through this session.
    pub async fn tcp(&self, host: &str, port: u16) -> Result<Tunnel, SessionError> {
        let permit = self.permit().await?;
        let channel = self
            .handle
            .channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0)
            .await
            .map_err(|source| self.lost(source))?;
        Ok(Tunnel { stream: channel.into_stream(), permit })
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, SessionError> {
        let closed = |_closed| SessionError::Closed { server: self.server.clone() };
        Arc::clone(&self.channels).acquire_owned().await.map_err(closed)
    }

    fn lost(&self, source: russh::Error) -> SessionError {
        SessionError::Lost { server: self.server.clone(), source }
    }
}

/// A TCP connection inside a session; counts as one channel.
pub struct Tunnel {
    stream: ChannelStream<client::Msg>,
    permit: OwnedSemaphorePermit,
}

impl Tunnel {
    /// Copies both ways until either side ends.
    pub async fn carry<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut other: S) -> std::io::Result<()> {
        tokio::io::copy_bidirectional(&mut self.stream, &mut other).await.map(drop)
    }

    /// The byte stream; the channel is freed when both parts are dropped.
    pub(crate) fn into_stream(self) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
        PermitStream { stream: self.stream, _permit: self.permit }
    }
}

/// A stream that keeps its channel counted.
struct PermitStream {
    stream: ChannelStream<client::Msg>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for PermitStream {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PermitStream {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn config_for(trust: &Trust) -> client::Config {
    let mut preferred = russh::Preferred {
        // AES-GCM first: processors have instructions for it, and uploads are on the critical path.
        cipher: Cow::Borrowed(&[
            cipher::AES_128_GCM,
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
        ]),
        ..russh::Preferred::default()
    };
    // Ask for the kind of key that is pinned, or a server with several shows another one. Where only a
    // fingerprint is known, it is the Ed25519 key's: that one is asked for first.
    if let Trust::Pinned(Pin { algorithm: Some(name), .. }) = trust
        && let Ok(algorithm) = Algorithm::new(name)
    {
        preferred.key = Cow::Owned(vec![algorithm]);
    }
    client::Config {
        preferred,
        nodelay: true,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 3,
        channel_buffer_size: 256,
        ..client::Config::default()
    }
}

async fn authenticate(
    handle: &mut Handle<Pinned>,
    user: &str,
    credential: &Credential,
) -> Result<(), OpenError> {
    let rejected = || OpenError::Rejected { user: user.to_owned() };
    match credential {
        Credential::Key(key) => {
            let key = PrivateKeyWithHashAlg::new(Arc::clone(key), None);
            let login = |source| OpenError::Login { user: user.to_owned(), source };
            match handle.authenticate_publickey(user, key).await.map_err(login)? {
                AuthResult::Success => Ok(()),
                AuthResult::Failure { .. } => Err(rejected()),
            }
        }
        Credential::Agent => {
            let mut agent = AgentClient::connect_env().await.map_err(OpenError::Agent)?;
            for identity in agent.request_identities().await.map_err(OpenError::Agent)? {
                let AgentIdentity::PublicKey { key, .. } = identity else {
                    continue;
                };
                let tried = handle.authenticate_publickey_with(user, key, None, &mut agent).await;
                // An agent may decline one key and sign with the next.
                if matches!(tried, Ok(AuthResult::Success)) {
                    return Ok(());
                }
            }
            Err(rejected())
        }
    }
}
