//! Puts the parts together: store, loop, workers, watches, HTTPS; and takes them down in order.

use crate::app::{App, Parts};
use crate::auth::Tokens;
use crate::brain::Brain;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::counters::Counters;
use crate::data_source::{DataSource, Plane};
use crate::etcd::EtcdWatch;
use crate::first_token::{self, FirstTokenError};
use crate::hands::{Hands, Tools};
use crate::health::Health;
use crate::kubernetes::Kubernetes;
use crate::limit::RateLimit;
use crate::pod::PodStyle;
use crate::recover::{self, RecoverError};
use crate::tls::{Certificate, TlsError};
use crate::world::World;
use crate::{data, http, listener};
use axum::Router;
use rackwright_core::sched;
use rackwright_store::{SqliteOptions, SqliteStore, StoreError};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::{RwLock, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What workers did and the loop has not heard of yet.
const DONE_DEPTH: usize = 1024;

/// Why the controller could not start; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The job store cannot be used.
    #[error("open the job store")]
    Store(#[source] StoreError),
    /// The first operator's token cannot be made.
    #[error("make the first operator's token")]
    FirstToken(#[source] FirstTokenError),
    /// The state cannot be rebuilt.
    #[error("rebuild the scheduler's state")]
    Recover(#[source] RecoverError),
    /// The kubeconfig is of no use.
    #[error("use the kubeconfig")]
    Kubeconfig(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server certificate is of no use.
    #[error("serve HTTPS")]
    Tls(#[source] TlsError),
    /// The data plane cannot start.
    #[error("start the data plane")]
    Data(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address is taken or not ours.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A running controller.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Parts that tests replace.
pub(crate) struct Outside {
    /// The cluster.
    pub(crate) cluster: Arc<dyn Cluster>,
    /// The data plane.
    pub(crate) data: Option<Arc<dyn DataSource>>,
    /// Its routes.
    pub(crate) routes: Option<Router>,
}

impl Server {
    /// Starts everything and answers once HTTPS listens. The cluster need not be reachable yet.
    ///
    /// # Errors
    /// A file or the address of the configuration is of no use.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let kubernetes =
            Kubernetes::from_kubeconfig(&config.kubernetes.kubeconfig, config.kubernetes.seccomp).await;
        let kubernetes = kubernetes.map_err(ServeError::Kubeconfig)?;
        let mut outside = Outside { cluster: Arc::new(kubernetes.clone()), data: None, routes: None };
        let store = open(&config)?;
        if let Some(section) = &config.data {
            let plane = data::DataPlane::open(section, kubernetes.client(), store.clone()).await;
            let plane = plane.map_err(|cause| ServeError::Data(Box::new(cause)))?;
            outside.routes = Some(data::router(plane.clone()));
            outside.data = Some(Arc::new(Plane(plane.clone())));
            tasks.spawn(plane.run(stop.clone()));
        }
        Self::start_with(config, store, outside, stop, tasks).await
    }

    /// Starts with other parts outside.
    pub(crate) async fn start_with(
        config: Config,
        store: SqliteStore,
        outside: Outside,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Self, ServeError> {
        let certificate = Certificate::load(&config.tls).map_err(ServeError::Tls)?;
        let acceptor = TlsAcceptor::from(Arc::new(certificate.server_config().map_err(ServeError::Tls)?));
        first_token::ensure(&store, &config.store).await.map_err(ServeError::FirstToken)?;
        let recovered = recover::recover(&store, policy(&config)).await;
        let (sched, last, since_snapshot) = recovered.map_err(ServeError::Recover)?;
        tracing::info!(log = last.0, "state rebuilt");

        let counters = Arc::new(Counters::default());
        let health = Arc::new(Health::default());
        let gate = Arc::new(RwLock::new(()));
        let (inputs, waiting) = mpsc::channel(config.limits.queue_depth.max(1));
        let (done, answers) = mpsc::channel(DONE_DEPTH);
        let tools = tools(&config, &outside, &counters);
        let brain = Brain {
            store: store.clone(),
            clock: Clock::new(sched.clock_ms(), Instant::now()),
            sched,
            world: World::default(),
            hands: Hands::start(tools, &done, &stop, &tasks),
            inputs: waiting,
            done: answers,
            changes: outside.cluster.watch(),
            health: Arc::clone(&health),
            counters: Arc::clone(&counters),
            gate: Arc::clone(&gate),
            full_pass: config.jobs.full_pass(),
            has_data: outside.data.is_some(),
            records: HashMap::new(),
            last,
            unlisted: false,
            seen: false,
            refused: HashSet::new(),
            since_snapshot,
        };
        let etcd = config.etcd.clone().map(EtcdWatch::new);
        let app = App(Arc::new(Parts {
            cluster_name: config.cluster.clone(),
            tokens: Tokens::new(store.clone()),
            store,
            inputs,
            gate,
            cluster: outside.cluster,
            data: outside.data,
            etcd: etcd.clone(),
            rate: RateLimit::new(config.limits.requests_per_s),
            limits: config.limits.clone(),
            job_limits: rackwright_core::job::Limits::default(),
            health,
            counters,
        }));
        let address = config.listen;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| ServeError::Listen { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        let router = http::router(app, outside.routes);
        tasks.spawn(brain.run(stop.clone()));
        tasks.spawn(certificate.keep_fresh(stop.clone()));
        if let Some(etcd) = etcd {
            tasks.spawn(etcd.keep_looking(stop.clone()));
        }
        tasks.spawn(listener::serve(listener, acceptor, router, config.limits.connections, stop.clone()));
        tasks.close();
        Ok(Self { address, stop, tasks })
    }

    /// Where HTTPS listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the server cannot go on by itself: the loop has ended, and all else ends with it.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
    }

    /// Stops taking requests, lets those under way end, and waits for every part.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Opens the job store that the configuration names.
///
/// # Errors
/// It is damaged, of a newer build, or in use.
pub(crate) fn open(config: &Config) -> Result<SqliteStore, ServeError> {
    SqliteStore::open_alone(SqliteOptions::at(config.store.clone())).map_err(ServeError::Store)
}

/// What the workers work with.
fn tools(config: &Config, outside: &Outside, counters: &Arc<Counters>) -> Tools {
    Tools {
        cluster: Arc::clone(&outside.cluster),
        data: outside.data.clone(),
        style: PodStyle {
            image_pull_policy: config.kubernetes.image_pull_policy.clone(),
            seccomp: config.kubernetes.seccomp,
            start_limit_s: config.jobs.start_limit_s,
        },
        silence: config.jobs.silence(),
        counters: Arc::clone(counters),
    }
}

/// The scheduler's policy, as far as `serve.toml` sets it.
fn policy(config: &Config) -> sched::Config {
    let jobs = config.jobs;
    let millis = |seconds: u32| u64::from(seconds) * 1000;
    sched::Config {
        prune_grace_ms: millis(jobs.prune_grace_s),
        kept_failed_per_owner: usize::try_from(jobs.keep_failed_per_owner).unwrap_or(usize::MAX),
        kept_failed_ms: millis(jobs.keep_failed_s),
        lease_ms: millis(jobs.lease_s),
        lease_grace_ms: millis(jobs.lease_grace_s),
        start_limit_ms: millis(jobs.start_limit_s),
        ..sched::Config::default()
    }
}
