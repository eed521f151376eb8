//! The cluster trait over a real Kubernetes.

use crate::cluster::{Change, Cluster, ClusterError, Created, Snapshot};
use crate::log_text::{self, Pieces};
use crate::seen::{self, PodSeen};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{AsyncReadExt as _, FutureExt as _, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Config};
use rackwright_wire::id::NodeName;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// A call that takes longer counts as not answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries to reconnect a watch.
const RECONNECT: Duration = Duration::from_secs(1);
/// Lines asked for at most when a tail is archived: the bytes are cut afterwards.
const TAIL_LINES: i64 = 2000;
/// Bytes asked for at most for a tail; lines longer than this on average are cut at the front.
const TAIL_LIMIT: u32 = 4 << 20;
/// Objects per page of a full list: bounds what one answer takes in memory.
const PAGE: u32 = 500;
/// Bytes read at once from a followed log.
const CHUNK: usize = 16 * 1024;

/// A connection to an apiserver.
#[derive(Clone)]
pub(crate) struct Kubernetes {
    client: Client,
    profile: &'static str,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kubernetes")
    }
}

impl Kubernetes {
    /// A client from a kubeconfig file; nothing is asked yet. Without seccomp, which the restricted
    /// profile insists on, teams' namespaces enforce the baseline profile.
    ///
    /// # Errors
    /// The file is absent or of no use.
    pub(crate) async fn from_kubeconfig(
        path: &Path,
        seccomp: bool,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let file = Kubeconfig::read_from(path)?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        let profile = if seccomp { "restricted" } else { "baseline" };
        Ok(Self { client: Client::try_from(config)?, profile })
    }

    /// The client itself, for the data plane's labels.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Created, ClusterError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let doing = format!("create pod {namespace}/{name}");
        match within(self.pods(namespace).create(&PostParams::default(), pod)).await {
            Ok(made) => Ok(Created::Here(made.metadata.uid.unwrap_or_default())),
            Err(Failure::Kube(kube::Error::Api(status))) if status.reason == "AlreadyExists" => {
                let there = self.one_pod(namespace, name).await?;
                Ok(adopt(&seen::pod(pod), there))
            }
            Err(cause) => Err(cause.doing(doing)),
        }
    }

    async fn one_pod(&self, namespace: &str, name: &str) -> Result<Option<PodSeen>, ClusterError> {
        let found = within(self.pods(namespace).get_opt(name)).await;
        let found = found.map_err(|cause| cause.doing(format!("read pod {namespace}/{name}")))?;
        Ok(found.as_ref().map(seen::pod))
    }

    async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        grace_s: u32,
    ) -> Result<(), ClusterError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let params = DeleteParams::default().grace_period(grace_s).preconditions(preconditions);
        match within(self.pods(namespace).delete(name, &params)).await {
            Ok(_) => Ok(()),
            // Another pod of that name has another uid: the one that was meant is gone.
            Err(Failure::Kube(kube::Error::Api(status)))
                if status.code == 404 || (status.code == 409 && status.reason == "Conflict") =>
            {
                Ok(())
            }
            Err(cause) => Err(cause.doing(format!("delete pod {namespace}/{name}"))),
        }
    }

    async fn end_pod(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ClusterError> {
        let patch = json!({"metadata": {"uid": uid}, "spec": {"activeDeadlineSeconds": 1}});
        let ended =
            within(self.pods(namespace).patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await;
        match ended {
            Ok(_) => Ok(()),
            // Another uid: the pod that was meant is gone.
            Err(Failure::Kube(kube::Error::Api(status))) if status.code == 409 => {
                Err(ClusterError::NotFound { doing: format!("end pod {namespace}/{name}") })
            }
            Err(cause) => Err(cause.doing(format!("end pod {namespace}/{name}"))),
        }
    }

    async fn renewed(&self, node: &NodeName, within_: Duration) -> Result<bool, ClusterError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let found = within(leases.get_opt(node.as_str())).await;
        let found = found.map_err(|cause| cause.doing(format!("read the lease of {node}")))?;
        let renewed = found.and_then(|lease| lease.spec?.renew_time);
        let limit = jiff::Timestamp::now() - jiff::SignedDuration::try_from(within_).unwrap_or_default();
        Ok(renewed.is_some_and(|at| at.0 >= limit))
    }

    async fn make_namespace(&self, name: &str) -> Result<(), ClusterError> {
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {
                "app.kubernetes.io/managed-by": "rackwright",
                "pod-security.kubernetes.io/enforce": self.profile,
                "pod-security.kubernetes.io/warn": self.profile,
            }}
        }))
        .unwrap_or_default();
        let api: Api<Namespace> = Api::all(self.client.clone());
        match within(api.create(&PostParams::default(), &namespace)).await {
            Ok(_) => Ok(()),
            Err(Failure::Kube(kube::Error::Api(status))) if status.reason == "AlreadyExists" => Ok(()),
            Err(cause) => Err(cause.doing(format!("create namespace {name}"))),
        }
    }

    async fn everything(&self) -> Result<Snapshot, ClusterError> {
        let mut snapshot = Snapshot::default();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let found = within(nodes.list(&ListParams::default())).await;
        let found = found.map_err(|cause| cause.doing("list nodes".to_owned()))?;
        snapshot.nodes = found.items.iter().filter_map(seen::node).collect();
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = within(pods.list(&params)).await;
            let page = page.map_err(|cause| cause.doing("list pods".to_owned()))?;
            snapshot.pods.extend(page.items.iter().map(seen::pod));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(snapshot),
            }
        }
    }

    async fn tail(&self, namespace: &str, name: &str, tail_bytes: usize) -> Result<String, ClusterError> {
        let doing = format!("read the log of {namespace}/{name}");
        let limit_bytes = Some(i64::from(TAIL_LIMIT));
        let params = LogParams { tail_lines: Some(TAIL_LINES), limit_bytes, ..LogParams::default() };
        // Bytes, for `Api::logs` refuses a log that is no UTF-8.
        let reader = within(self.pods(namespace).log_stream(name, &params)).await;
        let reader = reader.map_err(|cause| cause.reading(doing.clone()))?;
        let mut log = Vec::new();
        let read = Box::pin(reader).take(u64::from(TAIL_LIMIT)).read_to_end(&mut log).await;
        read.map_err(|cause| ClusterError::Away { doing, source: Box::new(cause) })?;
        Ok(log_text::tail(&log, tail_bytes))
    }

    async fn stream(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, ClusterError> {
        let params = LogParams { follow: true, ..LogParams::default() };
        let reader = within(self.pods(namespace).log_stream(name, &params)).await;
        let reader = reader.map_err(|cause| cause.doing(format!("follow the log of {namespace}/{name}")))?;
        let begin = (Box::pin(reader), Pieces::default());
        let chunks = stream::try_unfold(begin, |(mut reader, mut pieces)| async move {
            let mut chunk = vec![0; CHUNK];
            let count = reader.read(&mut chunk).await?;
            chunk.truncate(count);
            let text = if count > 0 { pieces.text(&chunk) } else { pieces.rest() };
            Ok((count > 0 || !text.is_empty()).then(|| (Bytes::from(text), (reader, pieces))))
        });
        Ok(chunks.boxed())
    }
}

/// A pod that an earlier try of the same attempt made is the one that was asked for.
fn adopt(wanted: &PodSeen, there: Option<PodSeen>) -> Created {
    match there {
        Some(there) if there.ours == wanted.ours && there.node == wanted.node && !there.deleting => {
            Created::Here(there.uid)
        }
        Some(there) => Created::Taken(format!("{} is another pod or on its way out", there.name)),
        None => Created::Taken(format!("{} was there a moment ago", wanted.name)),
    }
}

impl Cluster for Kubernetes {
    fn ensure_namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        self.make_namespace(name).boxed()
    }

    fn create<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Created, ClusterError>> {
        self.create_pod(pod).boxed()
    }

    fn end<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterError>> {
        self.end_pod(namespace, name, uid).boxed()
    }

    fn delete<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
        grace_s: u32,
    ) -> BoxFuture<'a, Result<(), ClusterError>> {
        self.delete_pod(namespace, name, uid, grace_s).boxed()
    }

    fn is_alive<'a>(
        &'a self,
        node: &'a NodeName,
        within: Duration,
    ) -> BoxFuture<'a, Result<bool, ClusterError>> {
        self.renewed(node, within).boxed()
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodSeen>, ClusterError>> {
        self.one_pod(namespace, name).boxed()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, ClusterError>> {
        self.everything().boxed()
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        let nodes = watcher(Api::<Node>::all(self.client.clone()), watcher::Config::default());
        let pods = watcher(Api::<Pod>::all(self.client.clone()), watcher::Config::default().page_size(PAGE));
        let nodes = nodes.backoff(Steady).filter_map(|event| async move {
            let here = |node: Node| seen::node(&node).map(|node| Change::Node(Box::new(node)));
            let gone = |node: Node| node.metadata.name.map(Change::NodeGone);
            changed(event, here, gone)
        });
        let pods = pods.backoff(Steady).filter_map(|event| async move {
            let here = |pod: Pod| Some(Change::Pod(Box::new(seen::pod(&pod))));
            let gone = |pod: Pod| Some(Change::PodGone(Box::new(seen::pod(&pod))));
            changed(event, here, gone)
        });
        stream::select(nodes, pods).boxed()
    }

    fn logs<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        tail_bytes: usize,
    ) -> BoxFuture<'a, Result<String, ClusterError>> {
        self.tail(namespace, name, tail_bytes).boxed()
    }

    fn follow<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Bytes, std::io::Error>>, ClusterError>> {
        self.stream(namespace, name).boxed()
    }
}

/// Between two tries to reconnect a watch: there are two of them, so the apiserver is not flooded.
struct Steady;

impl Iterator for Steady {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(RECONNECT)
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
}

/// What a watch event means; a watch that broke reconnects by itself and is only noted.
fn changed<K>(
    event: Result<watcher::Event<K>, watcher::Error>,
    here: impl Fn(K) -> Option<Change>,
    gone: impl Fn(K) -> Option<Change>,
) -> Option<Change> {
    match event {
        Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => here(object),
        Ok(watcher::Event::Delete(object)) => gone(object),
        // What vanished while the watch was down is found by the full pass.
        Ok(watcher::Event::Init | watcher::Event::InitDone) => None,
        Err(cause) => {
            tracing::debug!(error = %cause, "watch broke, reconnecting");
            None
        }
    }
}

enum Failure {
    Kube(kube::Error),
    Late,
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(outcome) => outcome.map_err(Failure::Kube),
        Err(_late) => Err(Failure::Late),
    }
}

impl Failure {
    /// As [`Failure::doing`], for a log: kubelets ask the apiserver who may read, and for a while after it
    /// was away they remember that nobody may.
    fn reading(self, doing: String) -> ClusterError {
        if let Self::Kube(kube::Error::Api(status)) = &self
            && matches!(status.code, 401 | 403)
        {
            return ClusterError::Failing { doing, message: status.message.clone() };
        }
        self.doing(doing)
    }

    /// 4xx answers are final, but for those that ask to come back; all else may pass.
    fn doing(self, doing: String) -> ClusterError {
        match self {
            Self::Late => ClusterError::Away { doing, source: "no answer in time".into() },
            Self::Kube(kube::Error::Api(status)) => match status.code {
                404 => ClusterError::NotFound { doing },
                401 | 408 | 409 | 429 => ClusterError::Away { doing, source: status.message.into() },
                // Our rights are not bound yet, or were taken away: nothing is wrong with the pod.
                403 if status.message.contains(" cannot ") => {
                    ClusterError::Away { doing, source: status.message.into() }
                }
                400..500 => ClusterError::Refused { doing, message: status.message },
                _ => ClusterError::Failing { doing, message: status.message },
            },
            Self::Kube(cause) => ClusterError::Away { doing, source: Box::new(cause) },
        }
    }
}
