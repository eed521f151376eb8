//! A real SSH server inside the test: it runs commands with `sh -c`, forwards TCP, and counts what
//! reached it.

use russh::keys::{Algorithm, PrivateKey, PublicKey, key::safe_rng};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What reached the server.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    pub(crate) auth_attempts: AtomicUsize,
}

/// A running server; it stops when dropped.
pub(crate) struct Sshd {
    pub(crate) address: SocketAddr,
    pub(crate) host_key: PublicKey,
    pub(crate) seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// A new key.
pub(crate) fn new_key() -> PrivateKey {
    PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap()
}

impl Sshd {
    /// Starts a server that takes `login` and hangs up on the first `drops` connections.
    pub(crate) async fn start(login: &PublicKey, drops: usize) -> Self {
        let key = new_key();
        let host_key = key.public_key().clone();
        let config = Arc::new(server::Config {
            keys: vec![key],
            auth_rejection_time: std::time::Duration::ZERO,
            ..server::Config::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(serve(listener, config, login.clone(), Arc::clone(&seen), drops));
        Self { address, host_key, seen, task }
    }

    pub(crate) fn auth_attempts(&self) -> usize {
        self.seen.auth_attempts.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    config: Arc<server::Config>,
    login: PublicKey,
    seen: Arc<Seen>,
    drops: usize,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = seen.connections.fetch_add(1, Ordering::SeqCst);
        if number < drops {
            drop(stream);
            continue;
        }
        let handler = Handler { login: login.clone(), seen: Arc::clone(&seen), channels: HashMap::new() };
        if let Ok(session) = server::run_stream(Arc::clone(&config), stream, handler).await {
            tokio::spawn(session);
        }
    }
}

struct Handler {
    login: PublicKey,
    seen: Arc<Seen>,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl Handler {
    fn judge(&self, key: &PublicKey) -> Auth {
        if key.key_data() == self.login.key_data() { Auth::Accept } else { Auth::reject() }
    }
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        self.seen.auth_attempts.fetch_add(1, Ordering::SeqCst);
        Ok(Auth::reject())
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        _offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        self.seen.auth_attempts.fetch_add(1, Ordering::SeqCst);
        Ok(Auth::Accept)
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.seen.auth_attempts.fetch_add(1, Ordering::SeqCst);
        Ok(self.judge(key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let target = format!("{host}:{port}");
        if let Ok(mut stream) = TcpStream::connect(&target).await {
            reply.accept().await;
            tokio::spawn(async move {
                let mut tunnel = channel.into_stream();
                let _hung_up = tokio::io::copy_bidirectional(&mut tunnel, &mut stream).await;
            });
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(channel) = self.channels.remove(&id) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        tokio::spawn(execute(channel, String::from_utf8_lossy(command).into_owned()));
        Ok(())
    }
}

async fn execute(channel: Channel<Msg>, command: String) {
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut read, write) = channel.split();
    let feed = tokio::spawn(async move {
        let mut input = read.make_reader();
        let _closed_early = tokio::io::copy(&mut input, &mut stdin).await;
        let _closed_early = stdin.shutdown().await;
    });
    let (mut out, mut err) = (write.make_writer(), write.make_writer_ext(Some(1)));
    let _hung_up =
        tokio::join!(tokio::io::copy(&mut stdout, &mut out), tokio::io::copy(&mut stderr, &mut err));
    let status = child.wait().await.unwrap().code().unwrap_or(255);
    feed.abort();
    let _hung_up = write.exit_status(u32::try_from(status).unwrap_or(255)).await;
    let _hung_up = write.eof().await;
    let _hung_up = write.close().await;
}
