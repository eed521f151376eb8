//! What a server is, measured on it in one round trip, before anything is planned.
//!
//! Facts are read from /proc, /sys and the package database only; gathering them changes nothing.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Facts`] that this build writes.
pub const FACTS_VERSION: u32 = 1;

/// One server's measured facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// [`FACTS_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, FACTS_VERSION>")]
    pub version: u32,
    /// Who this server is; an address is never an identity.
    pub identity: Identity,
    /// Distribution and kernel.
    pub os: Os,
    /// Logical CPUs and how much of them this server may use.
    pub cpu: Cpu,
    /// Memory and how much of it this server may use.
    pub memory: Memory,
    /// Block devices that hold data.
    pub disks: Vec<Disk>,
    /// Network interfaces that are up, without loopback.
    pub nics: Vec<Nic>,
    /// PCI display and accelerator devices.
    pub gpus: Vec<Gpu>,
    /// Existing software that matters: package or unit name to version or state.
    pub software: BTreeMap<String, String>,
    /// Seconds since the epoch when the facts were read (excluded from the hash).
    pub read_at_s: u64,
}

/// Identity that survives a new address or name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// `/etc/machine-id`, 32 hex digits.
    pub machine_id: String,
    /// The kernel's host name.
    pub hostname: String,
    /// SHA256 fingerprint of the ed25519 SSH host key (`SHA256:…`), as `ssh-keygen -l` prints it.
    pub host_key: String,
}

/// Distribution and kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Os {
    /// `ID` of os-release, such as `debian`.
    pub id: String,
    /// `VERSION_CODENAME`, such as `bookworm`.
    pub codename: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub arch: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Whether systemd can be asked (`/run/systemd/system` exists).
    pub systemd: bool,
    /// Whether the server is a container that shares its kernel (the lab's are).
    pub container: bool,
    /// Loaded or built-in kernel modules out of the set that Kubernetes needs.
    pub modules: Vec<String>,
    /// Whether any swap is active.
    pub swap: bool,
}

/// Processor facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Logical CPUs that the kernel shows: what a kubelet reports as capacity.
    pub logical: u32,
    /// Thousandths of a CPU that the control group lets this server use.
    pub allowed_milli: u64,
    /// Model name.
    pub model: String,
    /// NUMA nodes.
    pub numa_nodes: u32,
}

/// Memory facts, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// `MemTotal`: what a kubelet reports as capacity.
    pub total_bytes: u64,
    /// What the control group lets this server use; at most the total.
    pub allowed_bytes: u64,
}

/// A mounted file system or whole disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Kernel name, such as `nvme0n1` or `loop3`.
    pub device: String,
    /// World-wide name or serial, when the device has one.
    pub wwn: Option<String>,
    /// Where it is mounted, if it is.
    pub mount: Option<String>,
    /// File system type, if mounted.
    pub fs: Option<String>,
    /// Size of the file system, or of the device when not mounted.
    pub size_bytes: u64,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Interface name.
    pub name: String,
    /// Addresses with prefix length, such as `10.77.0.11/24`.
    pub addresses: Vec<String>,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
}

/// An accelerator found on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// PCI address.
    pub pci: String,
    /// Vendor and device id, such as `10de:2335`.
    pub id: String,
}

impl Facts {
    /// BLAKE3 (hex) over everything but the reading time: a saved plan names it, and `apply` refuses
    /// the plan when it moved.
    pub fn digest(&self) -> String {
        let still = Self { read_at_s: 0, ..self.clone() };
        let bytes = serde_json::to_vec(&still).unwrap_or_default();
        blake3::hash(&bytes).to_hex().to_string()
    }
}
