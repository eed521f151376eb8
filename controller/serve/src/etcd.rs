//! What etcd itself says about its size, and the explicit compaction that an operator may ask for.
//!
//! Jobs are never kept in etcd: these numbers are how that promise is checked.

use crate::config;
use etcd_client::{Certificate, Client, CompactionOptions, ConnectOptions, Identity, TlsOptions};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// A member that does not answer in this time counts as away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at the size: the peak is missed by what comes and goes in between.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why etcd could not be asked; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A certificate file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// etcd refused or did not answer.
    #[error("{doing} etcd")]
    Ask {
        /// What was asked.
        doing: &'static str,
        /// Why.
        source: Box<etcd_client::Error>,
    },
}

/// etcd's size, bytes, as the first endpoint says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdSize {
    /// The file.
    pub db_bytes: i64,
    /// Of it, in use after the last compaction.
    pub in_use_bytes: i64,
    /// Current revision.
    pub revision: i64,
}

/// A connection to etcd's client port.
#[derive(Clone)]
struct Etcd {
    client: Client,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Etcd")
    }
}

impl Etcd {
    /// Connects; the channel reconnects by itself later.
    ///
    /// # Errors
    /// A certificate file is absent or of no use.
    async fn connect(config: &config::Etcd) -> Result<Self, EtcdError> {
        let (ca, cert, key) = (load(&config.ca).await?, load(&config.cert).await?, load(&config.key).await?);
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(cert, key));
        let options = ConnectOptions::new()
            .with_tls(tls)
            .with_connect_timeout(PATIENCE)
            .with_timeout(PATIENCE)
            .with_keep_alive(Duration::from_secs(30), PATIENCE);
        let client = Client::connect(&config.endpoints, Some(options)).await.map_err(asking("reach"))?;
        Ok(Self { client })
    }

    /// The size now.
    ///
    /// # Errors
    /// etcd does not answer.
    async fn size(&self) -> Result<EtcdSize, EtcdError> {
        let mut client = self.client.clone();
        let status = client.status().await.map_err(asking("ask the status of"))?;
        Ok(EtcdSize {
            db_bytes: status.db_size(),
            in_use_bytes: status.raft_used_db_size(),
            revision: status.header().map_or(0, etcd_client::ResponseHeader::revision),
        })
    }

    /// Compacts everything before the current revision and waits until it is done on disk.
    ///
    /// # Errors
    /// etcd does not answer; "already compacted" is no error.
    async fn compact(&self) -> Result<EtcdSize, EtcdError> {
        let revision = self.size().await?.revision;
        let mut client = self.client.clone();
        let done = client.compact(revision, Some(CompactionOptions::new().with_physical())).await;
        match done {
            Ok(_) => {}
            Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("compacted") => {}
            Err(cause) => return Err(asking("compact")(cause)),
        }
        self.size().await
    }
}

/// etcd's size, looked at now and then, with its peak.
#[derive(Debug, Clone)]
pub(crate) struct EtcdWatch {
    config: config::Etcd,
    client: Arc<OnceCell<Etcd>>,
    peak: Arc<AtomicI64>,
}

impl EtcdWatch {
    /// Nothing is asked yet.
    pub(crate) fn new(config: config::Etcd) -> Self {
        Self { config, client: Arc::default(), peak: Arc::default() }
    }

    /// Looks until stopped.
    pub(crate) async fn keep_looking(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            if let Err(cause) = self.size().await {
                tracing::debug!(error = %crate::problem::Chain(&cause), "no size from etcd");
            }
        }
    }

    /// The size now.
    ///
    /// # Errors
    /// A certificate file is of no use, or etcd does not answer.
    pub(crate) async fn size(&self) -> Result<EtcdSize, EtcdError> {
        let size = self.client().await?.size().await?;
        self.peak.fetch_max(size.in_use_bytes, Ordering::Relaxed);
        Ok(size)
    }

    /// Compacts everything before the current revision.
    ///
    /// # Errors
    /// A certificate file is of no use, or etcd does not answer.
    pub(crate) async fn compact(&self) -> Result<EtcdSize, EtcdError> {
        self.client().await?.compact().await
    }

    /// The most bytes in use at once that were seen.
    pub(crate) fn peak_bytes(&self) -> i64 {
        self.peak.load(Ordering::Relaxed)
    }

    async fn client(&self) -> Result<&Etcd, EtcdError> {
        self.client.get_or_try_init(|| Etcd::connect(&self.config)).await
    }
}

fn asking(doing: &'static str) -> impl Fn(etcd_client::Error) -> EtcdError {
    move |source| EtcdError::Ask { doing, source: Box::new(source) }
}

async fn load(path: &PathBuf) -> Result<Vec<u8>, EtcdError> {
    tokio::fs::read(path).await.map_err(|source| EtcdError::Read { path: path.clone(), source })
}
