//! The cluster's API, reached through a control server's SSH session.

use crate::conditions::Control;
use crate::connect::{ConnectError, Rack};
use crate::forward::{Forward, ForwardError};
use crate::objects;
use crate::pki::{Authorities, Issued, PkiError};
use crate::runs::Runs;
use base64::Engine as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::AuthInfo;
use rackwright_core::inventory::Inventory;
use rackwright_wire::step::Difference;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const API_PORT: u16 = 6443;
/// The controller's own certificate for bootstrap objects lives one hour: `system:masters` cannot be revoked.
const BOOTSTRAP_LIFE_S: u64 = 3600;
/// How often nodes are looked at while they are waited for.
const POLL: Duration = Duration::from_millis(250);

/// The API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No local port.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// No address.
    #[error("read {0:?} as the API's address")]
    Url(String),
    /// The client could not be made.
    #[error("make a client for the API")]
    Client(#[source] kube::Error),
    /// A request failed.
    #[error("{what}")]
    Request {
        /// Such as `apply CSIDriver data.rackwright.dev`.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API does not answer in time.
    #[error("see the API answer within {waited_s} s of the last step")]
    NoApi {
        /// How long, in seconds.
        waited_s: u64,
    },
    /// Nodes are not ready in time.
    #[error("see {wanted} nodes ready within {waited_s} s of the last step: {missing}")]
    NotReady {
        /// How many were waited for.
        wanted: usize,
        /// How long, in seconds.
        waited_s: u64,
        /// Which are missing, and why.
        missing: String,
    },
}

/// One node as people look at it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// Whether its kubelet says that it is ready.
    pub ready: bool,
    /// Whether somebody keeps new pods off it.
    pub cordoned: bool,
    /// What the kubelet says, when it is not.
    pub message: String,
    /// Kubelet version.
    pub version: String,
    /// What pods may use: CPU and memory.
    pub allocatable: BTreeMap<String, String>,
}

/// The API of one cluster.
pub struct Cluster {
    client: kube::Client,
    _forward: Forward,
}

impl Cluster {
    /// Reaches the API through this control server. Nothing is asked yet.
    pub async fn open(
        rack: &Rack,
        control: &Control,
        authorities: &Authorities,
        now_s: u64,
    ) -> Result<Self, ClusterError> {
        let identity = authorities.client(
            "kubernetes",
            "rackwright-bootstrap",
            "system:masters",
            BOOTSTRAP_LIFE_S,
            now_s,
        )?;
        let session = rack.session(&control.server).await?;
        let forward = Forward::start(session, &control.address.to_string(), API_PORT).await?;
        let client = client(&format!("https://{}", forward.address()), &identity)?;
        Ok(Self { client, _forward: forward })
    }

    /// How the cluster's own objects and the nodes' marks differ from what is wanted.
    pub async fn differences(&self, inventory: &Inventory) -> Result<Vec<Difference>, ClusterError> {
        let mut found = Vec::new();
        let objects = objects::wanted();
        let live = futures::future::try_join_all(objects.iter().map(|object| self.live(object))).await?;
        for (wanted, live) in objects.iter().zip(&live) {
            found.extend(objects::difference(wanted, live.as_ref()));
        }
        let nodes = self.nodes_by_name().await?;
        for server in &inventory.servers {
            let live = nodes.get(&server.name);
            let marked = live.is_some_and(|node| {
                let node = serde_json::to_value(node).unwrap_or_default();
                objects::node_patch(server, &node).is_none()
            });
            if !marked {
                found.push(objects::node_difference(server, live.is_some()));
            }
        }
        Ok(found)
    }

    /// Applies every object that differs, and returns how many did.
    pub async fn apply_objects(&self) -> Result<u32, ClusterError> {
        let mut changed = 0;
        for object in objects::wanted() {
            let live = self.live(&object).await?;
            if objects::difference(&object, live.as_ref()).is_none() {
                continue;
            }
            let (api, name) = self.api(&object);
            let params = PatchParams::apply(objects::MANAGER).force();
            let done = api.patch(&name, &params, &Patch::Apply(&object)).await;
            done.map_err(|source| ClusterError::Request { what: format!("apply {name}"), source })?;
            changed += 1;
        }
        Ok(changed)
    }

    /// Waits until every named server is a Ready node with its role's marks, except those that were given up
    /// meanwhile.
    ///
    /// # Errors
    /// Names what is missing when the runs are overdue.
    pub async fn wait_for_nodes(
        &self,
        inventory: &Inventory,
        servers: &[&str],
        runs: &Runs,
        mut ready: impl FnMut(&str),
    ) -> Result<(), ClusterError> {
        let mut seen: Vec<String> = Vec::new();
        loop {
            let nodes = self.nodes_by_name().await.unwrap_or_default();
            let mut missing = Vec::new();
            for name in servers.iter().filter(|name| !runs.is_given_up(name)) {
                match self.settle(inventory, name, nodes.get(*name)).await {
                    Ok(()) if seen.iter().any(|known| known == name) => {}
                    Ok(()) => {
                        ready(name);
                        seen.push((*name).to_owned());
                    }
                    Err(why) => missing.push(format!("{name} ({why})")),
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(waited_s) = runs.overdue() {
                let missing = missing.join(", ");
                return Err(ClusterError::NotReady { wanted: servers.len(), waited_s, missing });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// All nodes, by name.
    pub async fn nodes(&self) -> Result<Vec<NodeState>, ClusterError> {
        Ok(self.nodes_by_name().await?.values().map(state).collect())
    }

    /// Gives a node its marks, and says why it is not ready.
    async fn settle(&self, inventory: &Inventory, name: &str, node: Option<&Node>) -> Result<(), String> {
        let Some(node) = node else {
            return Err("not registered: `journalctl -u kubelet` there says why".to_owned());
        };
        let live = serde_json::to_value(node).unwrap_or_default();
        if let Some(patch) = inventory.server(name).and_then(|server| objects::node_patch(server, &live)) {
            let nodes: Api<Node> = Api::all(self.client.clone());
            let done = nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            done.map_err(|error| format!("its marks: {error}"))?;
        }
        let state = state(node);
        if state.ready { Ok(()) } else { Err(state.message) }
    }

    async fn nodes_by_name(&self) -> Result<BTreeMap<String, Node>, ClusterError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let list = nodes.list(&ListParams::default()).await;
        let list = list.map_err(|source| ClusterError::Request { what: "list nodes".to_owned(), source })?;
        let name = |node: Node| (node.metadata.name.clone().unwrap_or_default(), node);
        Ok(list.items.into_iter().map(name).collect())
    }

    async fn live(&self, object: &Value) -> Result<Option<Value>, ClusterError> {
        let (api, name) = self.api(object);
        let found = api.get_opt(&name).await;
        let found = found.map_err(|source| ClusterError::Request { what: format!("get {name}"), source })?;
        Ok(found.map(|object| serde_json::to_value(object).unwrap_or_default()))
    }

    fn api(&self, object: &Value) -> (Api<DynamicObject>, String) {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let resource = match text("/kind") {
            "ClusterRole" => ApiResource::erase::<ClusterRole>(&()),
            "ClusterRoleBinding" => ApiResource::erase::<ClusterRoleBinding>(&()),
            _ => ApiResource::erase::<CSIDriver>(&()),
        };
        (Api::all_with(self.client.clone(), &resource), text("/metadata/name").to_owned())
    }
}

fn state(node: &Node) -> NodeState {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.unwrap_or_default().into_iter().find(|of| of.type_ == "Ready");
    let is_ready = ready.as_ref().is_some_and(|condition| condition.status == "True");
    let message = ready.and_then(|condition| condition.message).unwrap_or_else(|| "no word yet".to_owned());
    let version = status.node_info.map(|info| info.kubelet_version).unwrap_or_default();
    let allocatable = status.allocatable.unwrap_or_default();
    let shown = ["cpu", "memory"];
    NodeState {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: is_ready,
        cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
        message: if is_ready { String::new() } else { message },
        version,
        allocatable: allocatable
            .into_iter()
            .filter(|(name, _)| shown.contains(&name.as_str()))
            .map(|(name, quantity)| (name, quantity.0))
            .collect(),
    }
}

fn client(url: &str, identity: &Issued) -> Result<kube::Client, ClusterError> {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let ca = rustls_pemfile::certs(&mut identity.ca.as_bytes()).flatten().map(|der| der.to_vec()).collect();
    let Ok(url) = url.parse() else {
        return Err(ClusterError::Url(url.to_owned()));
    };
    let mut config = kube::Config::new(url);
    config.root_cert = Some(ca);
    config.auth_info = AuthInfo {
        client_certificate_data: Some(base64(&identity.cert)),
        client_key_data: Some(base64(&identity.key).into()),
        ..AuthInfo::default()
    };
    kube::Client::try_from(config).map_err(ClusterError::Client)
}

/// A kubeconfig with everything inside, for `kubectl` and its kin.
pub fn kubeconfig(cluster: &str, user: &str, url: &str, identity: &Issued) -> String {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster:\n    server: {url}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {user}\n\
         current-context: {cluster}\n",
        ca = base64(&identity.ca),
        cert = base64(&identity.cert),
        key = base64(&identity.key),
    )
}
