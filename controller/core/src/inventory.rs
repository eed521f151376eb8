//! The inventory: what the operator owns and wants, in one strict TOML file.
//!
//! Everything that is wrong is found at once, with file, line and a hint ([`Finding`]); an inventory that
//! parsed holds together: names, addresses and ranges do not clash, every role that a rack needs is there,
//! every reference points at something. It never holds a secret, only references ([`SecretRef`]).
//! Nothing here looks at a server: what was measured arrives as [`rackwright_wire::facts::Facts`].

mod cidr;
mod clash;
mod read;
mod reserve;
mod secret;
mod table;

pub use cidr::{Cidr, CidrError};
pub use reserve::{Amount, Reservations, Reserved, TooSmall, reserve};
pub use secret::{NotAReference, SecretRef};

use crate::finding::Finding;
use jiff::civil::Date;
use rackwright_wire::units::{Bytes, MilliCpu, Money};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// Everything in one inventory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The cluster that the servers become.
    pub cluster: Cluster,
    /// Where master data lives.
    pub data: Data,
    /// What is replicated to which role, in the order of the file.
    pub datasets: Vec<Dataset>,
    /// Set when `rackwright lab` raises the servers.
    pub lab: Option<Lab>,
    /// All servers in the order of the file; the order decides each one's pod range.
    pub servers: Vec<Server>,
}

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Name: also the folder of the controller's state.
    pub name: String,
    /// Exact Kubernetes release, such as `1.36.3`.
    pub kubernetes: String,
    /// Range of all pods.
    pub pod_cidr: Cidr,
    /// Range of Service addresses.
    pub service_cidr: Cidr,
    /// Range of the servers' own network.
    pub node_cidr: Cidr,
    /// Prefix of the part of `pod_cidr` that each server gets.
    pub node_cidr_prefix: u8,
    /// How pods of different servers reach each other.
    pub cni: Cni,
    /// What jobs never get, where it is not left to the defaults.
    pub reservations: Reservations,
    /// How many servers of a role must succeed; a role that is missing needs all.
    pub success: BTreeMap<Role, u32>,
}

/// How pods of different servers reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A bridge on each server and plain routes between servers of one layer-2 segment.
    Routes,
}

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// API server, etcd, controllers, `rackwright serve`.
    Control,
    /// ClickHouse and MinIO with the master data.
    Data,
    /// Jobs run here, next to replicas of the data.
    Ml,
    /// ClickHouse with the results; independent of the ML servers.
    Results,
    /// Small shared environments.
    Dev,
}

impl Role {
    /// All roles, in the order in which they are listed for people.
    pub const ALL: [Self; 5] = [Self::Control, Self::Data, Self::Ml, Self::Results, Self::Dev];

    /// The word in inventories, labels and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
            Self::Ml => "ml",
            Self::Results => "results",
            Self::Dev => "dev",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: one of control, data, ml, results, dev")]
pub struct NoSuchRole(pub String);

impl FromStr for Role {
    type Err = NoSuchRole;

    fn from_str(text: &str) -> Result<Self, NoSuchRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| NoSuchRole(text.to_owned()))
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Name: the node's name, and the common name of its certificates.
    pub name: String,
    /// Address on the node network. Never an identity.
    pub address: Ipv4Addr,
    /// What it is for.
    pub role: Role,
    /// Name of the server through which it is reached.
    pub bastion: Option<String>,
    /// Servers of one rack fail together.
    pub rack: Option<String>,
    /// Servers of one switch are close together.
    pub switch: Option<String>,
    /// Whom it is rented from.
    pub provider: Option<String>,
    /// What it costs.
    pub contract: Option<Contract>,
    /// Data disks, as names under `/dev/disk/by-id`.
    pub disks: Vec<String>,
    /// Accelerators that its PCI bus must show.
    pub gpus_expected: u32,
    /// How to log in.
    pub ssh: Ssh,
    /// Limits, when the lab raises it.
    pub lab: Option<LabServer>,
}

/// What a server costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contract {
    /// Price of a month.
    pub monthly: Money,
    /// Price of the first day.
    pub setup: Money,
    /// Minimum term in months.
    pub term_months: u32,
    /// First day that is paid for.
    pub since: Date,
}

impl Contract {
    /// Price of an hour: a month has 730.
    pub fn hourly(&self) -> Money {
        Money::new(self.monthly.micros() / 730, self.monthly.currency())
    }
}

/// How to log in to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ssh {
    /// User; needs to be root.
    pub user: String,
    /// TCP port.
    pub port: u16,
    /// Private key; missing only in a lab, which has a key of its own.
    pub key: Option<SecretRef>,
    /// Fingerprint of the host key as `ssh-keygen -l` prints it (`SHA256:…`).
    pub host_key: Option<String>,
}

/// Where master data lives and who may read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Data {
    /// Folder of the content store on every server.
    pub data_dir: PathBuf,
    /// HTTP port of ClickHouse on data and results servers.
    pub clickhouse_port: u16,
    /// User that the agents log in to ClickHouse as.
    pub clickhouse_user: String,
    /// That user's password.
    pub clickhouse_password: SecretRef,
    /// An object store that is there already, as a URL without a path; data servers get no MinIO then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_endpoint: Option<String>,
    /// Port of MinIO on data servers.
    pub minio_port: u16,
    /// Access key of the object store (a name, not a secret).
    pub minio_access_key: String,
    /// Secret key of the object store.
    pub minio_secret_key: SecretRef,
}

/// One dataset: exported once per version, replicated to a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dataset {
    /// Name in jobs, labels and volumes.
    pub name: String,
    /// What is exported.
    pub source: DatasetSource,
    /// Which servers keep a replica.
    pub role: Role,
    /// A version counts as published when so many servers have it.
    pub min_nodes: u32,
    /// So many servers hold it; all of the role when not given.
    pub target_nodes: Option<u32>,
}

/// What a dataset is exported from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DatasetSource {
    /// A ClickHouse table, `database.table`.
    ClickHouse {
        /// `database.table`.
        table: String,
    },
    /// The objects of a bucket.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Only keys that start with this.
        prefix: String,
    },
}

/// What `rackwright lab` needs to raise the servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lab {
    /// Range of the bridge, which takes the first address.
    pub range: Cidr,
}

/// The limits of one server of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LabServer {
    /// Limit of its control group.
    pub memory: Bytes,
    /// Limit of its control group.
    pub cpu: MilliCpu,
    /// Size of its data disk.
    pub disk: Bytes,
}

impl Inventory {
    /// Reads an inventory; `file` is only used to name the place of findings.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Finding>> {
        read::inventory(file, text)
    }

    /// The server of a name.
    pub fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// The servers of a role, in the order of the file.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(move |server| server.role == role)
    }

    /// The part of the pod range that belongs to a server: the n-th server has the n-th part.
    pub fn pod_cidr_of(&self, name: &str) -> Option<Cidr> {
        let index = self.servers.iter().position(|server| server.name == name)?;
        self.cluster.pod_cidr.part(self.cluster.node_cidr_prefix, u32::try_from(index).ok()?)
    }

    /// The Service address of the API: the first of the range.
    pub fn api_service_ip(&self) -> Option<Ipv4Addr> {
        self.cluster.service_cidr.address(1)
    }
}
