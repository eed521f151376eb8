//! What every handler of the HTTP interface can reach.

use crate::auth::Tokens;
use crate::brain::Input;
use crate::cluster::Cluster;
use crate::config::Limits;
use crate::counters::Counters;
use crate::data_source::DataSource;
use crate::etcd::EtcdWatch;
use crate::health::Health;
use crate::limit::RateLimit;
use crate::problem::Problem;
use crate::world::World;
use axum::http::StatusCode;
use rackwright_core::sched::Sched;
use rackwright_store::SqliteStore;
use std::sync::Arc;
use tokio::sync::{RwLock, mpsc, oneshot};

/// Shared by all handlers.
#[derive(Clone)]
pub(crate) struct App(pub(crate) Arc<Parts>);

/// What the handlers share.
pub(crate) struct Parts {
    /// The cluster's name.
    pub(crate) cluster_name: String,
    /// The store.
    pub(crate) store: SqliteStore,
    /// Into the loop.
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Held by submits between the store's answer and the loop's input.
    pub(crate) gate: Arc<RwLock<()>>,
    /// The cluster, for logs.
    pub(crate) cluster: Arc<dyn Cluster>,
    /// The data plane, when there is one.
    pub(crate) data: Option<Arc<dyn DataSource>>,
    /// etcd, when the controller was told how to reach it.
    pub(crate) etcd: Option<EtcdWatch>,
    /// Who calls.
    pub(crate) tokens: Tokens,
    /// Requests a second.
    pub(crate) rate: RateLimit,
    /// Limits of the interface.
    pub(crate) limits: Limits,
    /// What jobs may ask for.
    pub(crate) job_limits: rackwright_core::job::Limits,
    /// How the loop is.
    pub(crate) health: Arc<Health>,
    /// Counters.
    pub(crate) counters: Arc<Counters>,
}

impl std::ops::Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Asks the loop about its state.
    ///
    /// # Errors
    /// The loop has more to do than its queue holds, or has stopped.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Sched, &World) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |sched: &Sched, world: &World| {
            let _caller_left = reply.send(question(sched, world));
        });
        self.inputs.try_send(Input::Ask(question)).map_err(|_full| busy())?;
        answer.await.map_err(|_full| busy())
    }

    /// A place in the loop's queue, taken before anything becomes durable.
    ///
    /// # Errors
    /// The queue is full or the loop has stopped.
    pub(crate) fn place(&self) -> Result<mpsc::OwnedPermit<Input>, Problem> {
        self.inputs.clone().try_reserve_owned().map_err(|_full| busy())
    }
}

/// The loop cannot take more now.
pub(crate) fn busy() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "the controller has more to do than it can queue")
        .hint("nothing was accepted; try again with the same Idempotency-Key")
        .retry_after_s(1)
}
