//! The client of the results server's data unit, over mutual TLS of the data plane's own CA.

use crate::config::Config;
use crate::seal::RESTORED_MARK;
use crate::spool::Spool;
use futures::TryStreamExt as _;
use rackwright_wire::manifest::File;
use rackwright_wire::sealed::SealedSet;
use reqwest::StatusCode;
use reqwest::header::CONTENT_LENGTH;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

/// Why the results server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// A certificate or key is of no use.
    #[error("use {path}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The TLS settings do not fit together.
    #[error("set up TLS")]
    TlsConfig(#[source] rustls::Error),
    /// The client could not be built, or the server did not answer.
    #[error("reach the results server")]
    Http(#[from] reqwest::Error),
    /// The server answered with something else than expected.
    #[error("get {what} accepted: the results server answered {status}: {body}")]
    Refused {
        /// Which object or set.
        what: String,
        /// HTTP status.
        status: StatusCode,
        /// First 200 characters of the body.
        body: String,
    },
    /// The server takes no more bytes, or does not say that it has them.
    #[error("send {what}: nothing moved for {waited_s} s after {sent} of {bytes} bytes")]
    Stalled {
        /// Which object.
        what: String,
        /// How long nothing moved.
        waited_s: u64,
        /// Bytes that were taken.
        sent: u64,
        /// Bytes in all.
        bytes: u64,
    },
    /// The manifest of a set is not one that this build reads.
    #[error("read {what}")]
    Answer {
        /// Which set.
        what: String,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// Bytes that do not hash to their name, a set of another project, or a path that leaves its folder.
    #[error("trust {what}: {detail}")]
    Untrusted {
        /// Which object or set.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// A file could not be read or written.
    #[error("keep {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl ResultsError {
    /// The server will never take this set.
    pub(crate) fn is_final(&self) -> bool {
        let never = [StatusCode::CONFLICT, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNPROCESSABLE_ENTITY];
        matches!(self, Self::Refused { status, .. } if never.contains(status))
    }
}

/// A connection on which nothing moves for so long is dead. How long all of it takes does not matter: a checkpoint
/// of many GB over a slow link is no fault.
const STALLED: Duration = Duration::from_secs(30);
/// After the last byte the server makes the object durable, which takes a while for a large one.
const DURABLE: Duration = Duration::from_mins(10);
/// A manifest is small.
const MANIFEST: Duration = Duration::from_mins(1);
/// Between two looks at what was sent.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Read at a time.
const BLOCK_BYTES: usize = 256 * 1024;

/// The results server.
#[derive(Debug, Clone)]
pub struct Results {
    /// For answers that are longer than what is sent.
    client: reqwest::Client,
    /// For bodies of any length: reqwest's timeout for reading runs while a body is sent, too.
    sender: reqwest::Client,
    base: String,
    /// [`STALLED`], but in tests.
    stalled: Duration,
}

impl Results {
    /// Reads the keys; connects on first use.
    ///
    /// # Errors
    /// When a key or certificate cannot be used.
    pub fn open(config: &Config) -> Result<Self, ResultsError> {
        let tls = client_tls(config)?;
        let host = config.results.address.rsplit_once(':').map_or("", |(host, _)| host);
        let port = config.results.address.rsplit_once(':').map_or("7446", |(_, port)| port);
        let address = host.parse::<std::net::IpAddr>().ok().zip(port.parse::<u16>().ok());
        let builder = || {
            let builder = reqwest::Client::builder()
                .use_preconfigured_tls(tls.clone())
                .connect_timeout(Duration::from_secs(3))
                .no_proxy();
            match address {
                // The certificate carries the server's name; the address comes from the inventory, not from DNS.
                Some((ip, port)) => builder.resolve(&config.results.server, (ip, port).into()),
                None => builder,
            }
        };
        Ok(Self {
            client: builder().read_timeout(STALLED).build()?,
            sender: builder().build()?,
            base: format!("https://{}:{port}/v1", config.results.server),
            stalled: STALLED,
        })
    }

    /// A server that never answers, for tests of what happens before it is asked.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self::at("https://nowhere.invalid/v1".to_owned())
    }

    #[cfg(test)]
    fn at(base: String) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        Self { sender: client.clone(), client, base, stalled: Duration::from_secs(2) }
    }

    /// Uploads the objects, then the set: it exists only once its manifest is stored.
    pub(crate) async fn upload(&self, set: &SealedSet, spool: &Spool) -> Result<(), ResultsError> {
        for file in &set.files {
            accepted(&file.path, self.send(file, &spool.object(set, &file.blake3)).await?).await?;
        }
        let url = format!("{}/sets/{}", self.base, set.id());
        let request = self.sender.put(url).timeout(MANIFEST).json(set);
        accepted(&set.id(), request.send().await?).await?;
        Ok(())
    }

    /// Sends one object, for as long as bytes move.
    async fn send(&self, file: &File, path: &Path) -> Result<reqwest::Response, ResultsError> {
        let named = |cause| ResultsError::File { path: path.to_owned(), cause };
        let open = tokio::fs::File::open(path).await.map_err(named)?;
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let blocks = ReaderStream::with_capacity(open, BLOCK_BYTES).inspect_ok(move |block| {
            counted.fetch_add(block.len() as u64, Ordering::Relaxed);
        });
        let url = format!("{}/objects/{}", self.base, file.blake3);
        let request = self.sender.put(url).header(CONTENT_LENGTH, file.bytes);
        let mut answer = std::pin::pin!(request.body(reqwest::Body::wrap_stream(blocks)).send());
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK_EVERY, &mut answer).await {
                return Ok(answer?);
            }
            let now = sent.load(Ordering::Relaxed);
            if now != seen {
                (seen, moved) = (now, Instant::now());
            }
            let patience = if now < file.bytes { self.stalled } else { DURABLE };
            if moved.elapsed() > patience {
                let (what, waited_s) = (file.path.clone(), patience.as_secs());
                return Err(ResultsError::Stalled { what, waited_s, sent: now, bytes: file.bytes });
            }
        }
    }

    /// Restores checkpoint `id` into `<checkpoints>/<step>/`, every byte hashed.
    ///
    /// # Errors
    /// [`ResultsError`]; nothing becomes visible then.
    pub async fn restore(
        &self,
        id: &str,
        scope: (&str, &str),
        checkpoints: &Path,
    ) -> Result<(), ResultsError> {
        let url = format!("{}/sets/{id}", self.base);
        let text = accepted(id, self.client.get(url).send().await?).await?.bytes().await?;
        let set: SealedSet = serde_json::from_slice(&text)
            .map_err(|cause| ResultsError::Answer { what: id.to_owned(), cause })?;
        let untrusted =
            |detail: &str| ResultsError::Untrusted { what: id.to_owned(), detail: detail.to_owned() };
        if (set.team.as_str(), set.project.as_str()) != scope {
            return Err(untrusted("it belongs to another team or project"));
        }
        if set.id() != id {
            return Err(untrusted("it is another set"));
        }
        let target = checkpoints.join(set.step.to_string());
        if target.exists() {
            return Ok(());
        }
        let staging = checkpoints.join(format!("{}.restoring", set.step));
        let named = |path: &Path| {
            let path = path.to_owned();
            move |cause| ResultsError::File { path, cause }
        };
        if staging.exists() {
            std::fs::remove_dir_all(&staging).map_err(named(&staging))?;
        }
        std::fs::create_dir_all(&staging).map_err(named(&staging))?;
        for file in &set.files {
            let relative = Path::new(&file.path);
            if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(untrusted("a path in it leaves its folder"));
            }
            let path = staging.join(relative);
            let folder = path.parent().unwrap_or(&staging);
            std::fs::create_dir_all(folder).map_err(named(folder))?;
            if self.download(&file.blake3, &path).await? != file.blake3 {
                return Err(untrusted("its bytes do not hash to their name"));
            }
            open_to_all(&path, 0o666).and_then(|()| open_to_all(folder, 0o777)).map_err(named(&path))?;
        }
        let mark = staging.join(RESTORED_MARK);
        std::fs::write(&mark, id).map_err(named(&mark))?;
        open_to_all(&staging, 0o777).map_err(named(&staging))?;
        std::fs::rename(&staging, &target).map_err(named(&target))
    }

    /// Streams an object into a file and returns the hash of what came.
    async fn download(&self, blake3: &str, path: &Path) -> Result<String, ResultsError> {
        let named = |cause| ResultsError::File { path: path.to_owned(), cause };
        let url = format!("{}/objects/{blake3}", self.base);
        let mut response = accepted(blake3, self.client.get(url).send().await?).await?;
        let mut file = tokio::fs::File::create(path).await.map_err(named)?;
        let mut hasher = blake3::Hasher::new();
        while let Some(block) = response.chunk().await? {
            hasher.update(&block);
            file.write_all(&block).await.map_err(named)?;
        }
        file.sync_all().await.map_err(named)?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}

fn open_to_all(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

async fn accepted(what: &str, response: reqwest::Response) -> Result<reqwest::Response, ResultsError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.text().await.unwrap_or_default().chars().take(200).collect();
    Err(ResultsError::Refused { what: what.to_owned(), status, body })
}

fn client_tls(config: &Config) -> Result<rustls::ClientConfig, ResultsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&config.ca)? {
        roots.add(certificate).map_err(ResultsError::TlsConfig)?;
    }
    let key_failed = |cause| ResultsError::Tls { path: config.key.clone(), cause };
    let pem = std::fs::read(&config.key).map_err(key_failed)?;
    let key = rustls_pemfile::private_key(&mut pem.as_slice())
        .map_err(key_failed)?
        .ok_or_else(|| key_failed(std::io::ErrorKind::InvalidData.into()))?;
    rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&config.cert)?, key)
        .map_err(ResultsError::TlsConfig)
}

fn certificates(path: &Path) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, ResultsError> {
    let failed = |cause| ResultsError::Tls { path: path.to_owned(), cause };
    let pem = std::fs::read(path).map_err(failed)?;
    rustls_pemfile::certs(&mut pem.as_slice()).collect::<Result<_, _>>().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    /// More than the sockets between hold.
    const BYTES: usize = 48 << 20;

    /// Sends one object to a server that reads so much, then pauses, and so on; it answers when it has all.
    async fn sent_to(read: usize, pause: Duration) -> Result<(), ResultsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        std::fs::write(&path, vec![7; BYTES]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut got, mut buffer) = (0, vec![0; read]);
            while got < BYTES {
                got += stream.read(&mut buffer).await.unwrap();
                tokio::time::sleep(pause).await;
            }
            stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        });
        let file = File {
            path: "model".to_owned(),
            bytes: BYTES as u64,
            blake3: "00".repeat(32),
            chunks: Vec::new(),
        };
        let outcome = Results::at(base).send(&file, &path).await;
        server.abort();
        outcome.map(|_answer| ())
    }

    #[tokio::test]
    async fn an_upload_may_take_longer_than_the_patience_as_long_as_bytes_move() {
        sent_to(256 * 1024, Duration::from_millis(15)).await.unwrap();
    }

    #[tokio::test]
    async fn an_upload_on_which_nothing_moves_is_given_up_and_says_how_far_it_came() {
        let error = sent_to(4096, Duration::from_mins(1)).await.unwrap_err().to_string();
        assert!(error.starts_with("send model: nothing moved for 2 s after "), "{error}");
        assert!(error.ends_with(&format!(" of {BYTES} bytes")), "{error}");
    }
}
