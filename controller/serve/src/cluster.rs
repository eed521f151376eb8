//! The few things that the controller does to a cluster, as a trait, so that what decides and what acts
//! meet at one narrow place.
//!
//! Every deletion carries the uid of the pod that was meant: a pod of the same name that somebody made
//! meanwhile is never hit.

use crate::seen::PodSeen;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use rackwright_core::job::NodeFacts;
use rackwright_wire::id::NodeName;
use std::fmt::Debug;
use std::time::Duration;

/// Why the cluster did not do it; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// No answer, or one that may be different soon: try again.
    #[error("{doing}: the apiserver is away")]
    Away {
        /// What was tried.
        doing: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The apiserver answered that it, or a kubelet behind it, cannot do it now.
    #[error("{doing}: {message}")]
    Failing {
        /// What was tried.
        doing: String,
        /// Its words.
        message: String,
    },
    /// The apiserver refused it for good.
    #[error("{doing}: {message}")]
    Refused {
        /// What was tried.
        doing: String,
        /// The apiserver's words.
        message: String,
    },
    /// It is not there.
    #[error("{doing}: it is not there")]
    NotFound {
        /// What was tried.
        doing: String,
    },
}

/// What asks the apiserver for something that a kubelet must answer waits no longer than this: after an absence
/// of the apiserver kubelets take a while to find it again, and a dead server's never answers.
const LOG_PATIENCE: Duration = Duration::from_secs(5);
/// The end of a log that is read and kept.
const TAIL_BYTES: usize = 64 * 1024;

/// The end of a pod's log.
pub(crate) async fn tail(cluster: &dyn Cluster, namespace: &str, name: &str) -> Result<String, ClusterError> {
    in_time(namespace, name, cluster.logs(namespace, name, TAIL_BYTES)).await
}

/// A pod's log as it grows; only its begin is waited for with limited patience.
pub(crate) async fn follow(
    cluster: &dyn Cluster,
    namespace: &str,
    name: &str,
) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, ClusterError> {
    in_time(namespace, name, cluster.follow(namespace, name)).await
}

async fn in_time<T>(
    namespace: &str,
    name: &str,
    log: impl Future<Output = Result<T, ClusterError>>,
) -> Result<T, ClusterError> {
    tokio::time::timeout(LOG_PATIENCE, log).await.unwrap_or_else(|_late| {
        let message = "its kubelet does not answer".to_owned();
        Err(ClusterError::Failing { doing: format!("read the log of {namespace}/{name}"), message })
    })
}

/// How a creation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Created {
    /// It was made now, or had been made by an earlier try of the same attempt; with its uid.
    Here(String),
    /// A pod of that name is there that is not this attempt.
    Taken(String),
}

/// Everything that was there at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// All nodes.
    pub(crate) nodes: Vec<NodeFacts>,
    /// All pods, everybody's.
    pub(crate) pods: Vec<PodSeen>,
}

/// A change that a watch shows. A change wakes the loop; the full pass makes it right.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A node is new or different.
    Node(Box<NodeFacts>),
    /// A node is gone.
    NodeGone(String),
    /// A pod is new or different.
    Pod(Box<PodSeen>),
    /// A pod is gone.
    PodGone(Box<PodSeen>),
}

/// The cluster.
pub(crate) trait Cluster: Debug + Send + Sync + 'static {
    /// Makes a team's namespace with the restricted profile, unless it is there.
    fn ensure_namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ClusterError>>;
    /// Makes a pod; a repeat of the same attempt is no error.
    fn create<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Created, ClusterError>>;
    /// Has the kubelet end exactly the pod with this uid, grace period included, and keep its record:
    /// its deadline is set to one second.
    fn end<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterError>>;
    /// Deletes exactly the pod with this uid; one that is gone already is no error.
    fn delete<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
        grace_s: u32,
    ) -> BoxFuture<'a, Result<(), ClusterError>>;
    /// Whether a node's kubelet has renewed its lease in the last `within`; one without a lease has not.
    fn is_alive<'a>(
        &'a self,
        node: &'a NodeName,
        within: Duration,
    ) -> BoxFuture<'a, Result<bool, ClusterError>>;
    /// One pod.
    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodSeen>, ClusterError>>;
    /// Everything.
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, ClusterError>>;
    /// What changes from now on, until the stream is dropped; it reconnects by itself.
    fn watch(&self) -> BoxStream<'static, Change>;
    /// The last `tail_bytes` of a pod's log.
    fn logs<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        tail_bytes: usize,
    ) -> BoxFuture<'a, Result<String, ClusterError>>;
    /// A pod's log from its beginning, as it grows.
    fn follow<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Bytes, std::io::Error>>, ClusterError>>;
}
