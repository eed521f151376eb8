//! The client of the results server's data unit, over mutual TLS of the data plane's own CA.

use crate::config::Config;
use crate::seal::RESTORED_MARK;
use crate::spool::Spool;
use rackwright_wire::sealed::SealedSet;
use reqwest::StatusCode;
use reqwest::header::CONTENT_LENGTH;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

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

/// The results server.
#[derive(Debug, Clone)]
pub struct Results {
    client: reqwest::Client,
    base: String,
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
        let mut builder = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .connect_timeout(Duration::from_secs(3))
            .read_timeout(Duration::from_secs(30))
            .no_proxy();
        if let Some((ip, port)) = address {
            // The certificate carries the server's name; the address comes from the inventory, not from DNS.
            builder = builder.resolve(&config.results.server, (ip, port).into());
        }
        Ok(Self { client: builder.build()?, base: format!("https://{}:{port}/v1", config.results.server) })
    }

    /// A server that never answers, for tests of what happens before it is asked.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        Self { client: reqwest::Client::new(), base: "https://nowhere.invalid/v1".to_owned() }
    }

    /// Uploads the objects, then the set: it exists only once its manifest is stored.
    pub(crate) async fn upload(&self, set: &SealedSet, spool: &Spool) -> Result<(), ResultsError> {
        for file in &set.files {
            let path = spool.object(set, &file.blake3);
            let named = |cause| ResultsError::File { path: path.clone(), cause };
            let body = tokio::fs::File::open(&path).await.map_err(named)?;
            let url = format!("{}/objects/{}", self.base, file.blake3);
            let request = self.client.put(url).header(CONTENT_LENGTH, file.bytes).body(body);
            accepted(&file.path, request.send().await?).await?;
        }
        let url = format!("{}/sets/{}", self.base, set.id());
        accepted(&set.id(), self.client.put(url).json(set).send().await?).await?;
        Ok(())
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
