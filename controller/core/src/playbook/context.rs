//! What templates may look at: one server, its facts, and the cluster around it.

use crate::inventory::{Cidr, DatasetSource, Inventory, Reserved, Role, Server, TooSmall, reserve};
use minijinja::Value;
use rackwright_wire::facts::Facts;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

/// Everything that rendering one server depends on.
///
/// Templates see: `server`, `servers`, `control`, `ml` and so on (the servers of a role), `cluster`, `facts`, `reserved`,
/// `data`, `datasets`, `artifacts` (name to SHA-256), `pki` (CA to SHA-256), `secrets`.
#[derive(Debug, Clone)]
pub struct Context {
    pub(super) role: Role,
    pub(super) value: Value,
    pub(super) artifacts: BTreeMap<String, String>,
    pub(super) pki: BTreeMap<String, String>,
}

/// Why a server has no context; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The inventory has no such server.
    #[error("find the server {0:?} in the inventory")]
    NoServer(String),
    /// The ranges leave no room for this server.
    #[error("give {0:?} a pod range and the API an address")]
    NoRange(String),
    /// The server is smaller than its reservations.
    #[error("divide the server {server:?}")]
    TooSmall {
        /// The server.
        server: String,
        /// What is short.
        #[source]
        source: TooSmall,
    },
}

#[derive(Serialize)]
struct View<'a> {
    server: ServerView<'a>,
    servers: Vec<ServerView<'a>>,
    #[serde(flatten)]
    roles: BTreeMap<&'static str, Vec<ServerView<'a>>>,
    cluster: ClusterView<'a>,
    facts: &'a Facts,
    reserved: ReservedView,
    data_plane: DataView<'a>,
    datasets: Vec<DatasetView<'a>>,
    artifacts: &'a BTreeMap<String, String>,
    pki: &'a BTreeMap<String, String>,
    secrets: &'a BTreeMap<String, String>,
}

#[derive(Clone, Serialize)]
struct ServerView<'a> {
    name: &'a str,
    address: Ipv4Addr,
    role: Role,
    rack: &'a str,
    switch: &'a str,
    pod_cidr: Cidr,
}

#[derive(Serialize)]
struct ClusterView<'a> {
    name: &'a str,
    kubernetes: &'a str,
    pod_cidr: Cidr,
    service_cidr: Cidr,
    node_cidr: Cidr,
    api_ip: Ipv4Addr,
}

#[derive(Serialize)]
struct DataView<'a> {
    dir: &'a Path,
    /// The folder beside the content store where databases keep theirs: the same disk.
    services_dir: &'a Path,
    clickhouse_port: u16,
    clickhouse_user: &'a str,
    /// Of an object store that is there already; empty when data servers run MinIO.
    s3_endpoint: &'a str,
    minio_port: u16,
    minio_access_key: &'a str,
}

#[derive(Serialize)]
struct DatasetView<'a> {
    name: &'a str,
    source: &'static str,
    table: &'a str,
    bucket: &'a str,
    prefix: &'a str,
    role: Role,
    min_nodes: u32,
    target_nodes: Option<u32>,
}

#[derive(Serialize)]
struct ReservedView {
    system_cpu_milli: u64,
    system_memory_bytes: u64,
    kube_cpu_milli: u64,
    kube_memory_bytes: u64,
    data_cpu_milli: u64,
    data_memory_bytes: u64,
    services_memory_bytes: u64,
    eviction_bytes: u64,
    /// For the kubelet's `systemReserved`.
    kubelet_system_cpu_milli: u64,
    kubelet_system_memory_bytes: u64,
}

impl Context {
    /// The context of one server.
    ///
    /// `artifacts` maps names of the lockfile to SHA-256, `pki` names of CAs to the SHA-256 of their certificate, and
    /// `secrets` the names that playbooks use to values that were resolved just now.
    pub fn new(
        inventory: &Inventory,
        server: &str,
        facts: &Facts,
        artifacts: &BTreeMap<String, String>,
        pki: &BTreeMap<String, String>,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Self, ContextError> {
        let own = inventory.server(server).ok_or_else(|| ContextError::NoServer(server.to_owned()))?;
        let reserved = reserve(&inventory.cluster.reservations, facts, own.role)
            .map_err(|source| ContextError::TooSmall { server: server.to_owned(), source })?;
        let view = |of: &'_ Server| server_view(inventory, of.name.as_str());
        let no_range = || ContextError::NoRange(server.to_owned());
        let servers: Vec<_> =
            inventory.servers.iter().map(view).collect::<Option<_>>().ok_or_else(no_range)?;
        let roles = Role::ALL
            .map(|role| (role.name(), servers.iter().filter(|of| of.role == role).cloned().collect()))
            .into();
        let view = View {
            server: view(own).ok_or_else(no_range)?,
            roles,
            cluster: cluster_view(inventory).ok_or_else(no_range)?,
            servers,
            facts,
            reserved: reserved_view(&reserved),
            data_plane: data_view(inventory),
            datasets: datasets_view(inventory),
            artifacts,
            pki,
            secrets,
        };
        let value = Value::from(minijinja::value::Serde(&view));
        Ok(Self { role: own.role, value, artifacts: artifacts.clone(), pki: pki.clone() })
    }
}

fn server_view<'a>(inventory: &'a Inventory, name: &str) -> Option<ServerView<'a>> {
    let server = inventory.server(name)?;
    Some(ServerView {
        name: &server.name,
        address: server.address,
        role: server.role,
        rack: server.rack.as_deref().unwrap_or("default"),
        switch: server.switch.as_deref().unwrap_or("default"),
        pod_cidr: inventory.pod_cidr_of(name)?,
    })
}

fn cluster_view(inventory: &Inventory) -> Option<ClusterView<'_>> {
    let cluster = &inventory.cluster;
    Some(ClusterView {
        name: &cluster.name,
        kubernetes: &cluster.kubernetes,
        pod_cidr: cluster.pod_cidr,
        service_cidr: cluster.service_cidr,
        node_cidr: cluster.node_cidr,
        api_ip: inventory.api_service_ip()?,
    })
}

fn data_view(inventory: &Inventory) -> DataView<'_> {
    let data = &inventory.data;
    DataView {
        dir: &data.data_dir,
        services_dir: data.data_dir.parent().unwrap_or(&data.data_dir),
        clickhouse_port: data.clickhouse_port,
        clickhouse_user: &data.clickhouse_user,
        s3_endpoint: data.s3_endpoint.as_deref().unwrap_or_default(),
        minio_port: data.minio_port,
        minio_access_key: &data.minio_access_key,
    }
}

fn datasets_view(inventory: &Inventory) -> Vec<DatasetView<'_>> {
    inventory
        .datasets
        .iter()
        .map(|dataset| {
            let (source, table, bucket, prefix) = match &dataset.source {
                DatasetSource::ClickHouse { table } => ("clickhouse", table.as_str(), "", ""),
                DatasetSource::S3 { bucket, prefix } => ("s3", "", bucket.as_str(), prefix.as_str()),
            };
            DatasetView {
                name: &dataset.name,
                source,
                table,
                bucket,
                prefix,
                role: dataset.role,
                min_nodes: dataset.min_nodes,
                target_nodes: dataset.target_nodes,
            }
        })
        .collect()
}

fn reserved_view(reserved: &Reserved) -> ReservedView {
    ReservedView {
        system_cpu_milli: reserved.system.cpu_milli.get(),
        system_memory_bytes: reserved.system.memory_bytes.get(),
        kube_cpu_milli: reserved.kube.cpu_milli.get(),
        kube_memory_bytes: reserved.kube.memory_bytes.get(),
        data_cpu_milli: reserved.data.cpu_milli.get(),
        data_memory_bytes: reserved.data.memory_bytes.get(),
        services_memory_bytes: reserved.services.memory_bytes.get(),
        eviction_bytes: reserved.eviction_bytes.get(),
        kubelet_system_cpu_milli: reserved.kubelet_system.cpu_milli.get(),
        kubelet_system_memory_bytes: reserved.kubelet_system.memory_bytes.get(),
    }
}
