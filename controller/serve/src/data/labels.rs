//! Nodes of the cluster, as far as the data plane marks them.

use super::Error;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, Patch, PatchParams};
use rackwright_core::data::NodeMarks;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;

/// Labels and annotations of one node.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeHas {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Where nodes are marked. Tests keep a book of their own; Kubernetes is the real one.
pub(super) trait NodeBook: fmt::Debug + Send + Sync {
    /// Every node by name.
    fn nodes(&self) -> BoxFuture<'_, Result<BTreeMap<String, NodeHas>, Error>>;
    /// Sets and removes labels and annotations.
    fn mark<'a>(&'a self, node: &'a str, marks: &'a NodeMarks) -> BoxFuture<'a, Result<(), Error>>;
}

/// The cluster's nodes.
pub(super) struct KubeNodes(Api<Node>);

impl KubeNodes {
    pub(super) fn new(client: kube::Client) -> Self {
        Self(Api::all(client))
    }
}

impl fmt::Debug for KubeNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KubeNodes")
    }
}

impl NodeBook for KubeNodes {
    fn nodes(&self) -> BoxFuture<'_, Result<BTreeMap<String, NodeHas>, Error>> {
        async move {
            let list = self.0.list_metadata(&ListParams::default()).await;
            let list = list.map_err(|cause| Error::Cluster(cause.into()))?;
            let has = list.items.into_iter().filter_map(|node| {
                let labels = node.metadata.labels.unwrap_or_default();
                let annotations = node.metadata.annotations.unwrap_or_default();
                Some((node.metadata.name?, NodeHas { labels, annotations }))
            });
            Ok(has.collect())
        }
        .boxed()
    }

    fn mark<'a>(&'a self, node: &'a str, marks: &'a NodeMarks) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let patch = json!({"metadata": {"labels": marks.labels, "annotations": marks.annotations}});
            let patched = self.0.patch_metadata(node, &PatchParams::default(), &Patch::Merge(&patch)).await;
            patched.map(|_node| ()).map_err(|cause| Error::Cluster(cause.into()))
        }
        .boxed()
    }
}
