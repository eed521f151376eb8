//! The server's certificate, reread when its files change, so that a renewal needs no restart.
//!
//! A renewed pair that does not load (half-written, key and certificate of different issues) leaves the
//! old one in place and is tried again at the next look.

use crate::config::Tls;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why the certificate cannot be used; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no private key in the key file.
    #[error("find a private key in {path}")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The pair does not fit or is of no use to rustls.
    #[error("use the certificate in {path}")]
    Unusable {
        /// The certificate file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// The current certificate; handshakes take what is current.
pub(crate) struct Certificate {
    files: Tls,
    provider: Arc<CryptoProvider>,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    pem: (Vec<u8>, Vec<u8>),
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Loads the pair.
    ///
    /// # Errors
    /// A file is absent or the pair is of no use.
    pub(crate) fn load(files: &Tls) -> Result<Arc<Self>, TlsError> {
        let provider = CryptoProvider::get_default()
            .map_or_else(|| Arc::new(rustls::crypto::ring::default_provider()), Arc::clone);
        let current = read(files, &provider)?;
        Ok(Arc::new(Self { files: files.clone(), provider, current: RwLock::new(current) }))
    }

    /// A server configuration that answers with the current certificate, for HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// The crypto provider lacks the default protocol versions.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Unusable { path: self.files.cert.clone(), source })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        // Not h2: an answer that leaves before the body was read, such as 401, is a broken stream to some clients.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Rereads the files once; true when a new pair is in use.
    ///
    /// # Errors
    /// The new pair is of no use; the old one stays.
    pub(crate) fn refresh(&self) -> Result<bool, TlsError> {
        let new = read(&self.files, &self.provider)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = new.pem != current.pem;
        if changed {
            *current = new;
        }
        Ok(changed)
    }

    /// Looks at the files until stopped.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            match self.refresh() {
                Ok(true) => tracing::info!(path = %self.files.cert.display(), "new certificate in use"),
                Ok(false) => {}
                Err(cause) => {
                    tracing::warn!(error = %crate::problem::Chain(&cause), "keeping the old certificate");
                }
            }
        }
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

fn read(files: &Tls, provider: &CryptoProvider) -> Result<Current, TlsError> {
    let load =
        |path: &PathBuf| std::fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source });
    let pem = (load(&files.cert)?, load(&files.key)?);
    let chain = rustls_pemfile::certs(&mut pem.0.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Read { path: files.cert.clone(), source })?;
    let key = rustls_pemfile::private_key(&mut pem.1.as_slice())
        .map_err(|source| TlsError::Read { path: files.key.clone(), source })?
        .ok_or_else(|| TlsError::NoKey { path: files.key.clone() })?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|source| TlsError::Unusable { path: files.cert.clone(), source })?;
    Ok(Current { pem, key: Arc::new(key) })
}
