//! What a node says about itself while it runs: load, memory, steal, disk latency.

use serde::{Deserialize, Serialize};

/// The version of [`NodeReport`] that this build writes.
pub const REPORT_VERSION: u32 = 1;

/// One node's state now (`rackwright-agent report`, `GET /v1/report`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// [`REPORT_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, REPORT_VERSION>")]
    pub version: u32,
    /// Server name.
    pub server: String,
    /// Seconds since the epoch.
    pub at_s: u64,
    /// Load average over one minute.
    pub load_1m: f64,
    /// Memory in use, bytes.
    pub memory_used_bytes: u64,
    /// Memory this server may use, bytes.
    pub memory_allowed_bytes: u64,
    /// CPU time stolen by a hypervisor over the sample, percent.
    pub steal_percent: f64,
    /// Per disk: mean milliseconds an operation took over the sample.
    pub disks: Vec<DiskReport>,
}

/// One disk's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskReport {
    /// Mount point.
    pub mount: String,
    /// Kernel name.
    pub device: String,
    /// Free bytes.
    pub free_bytes: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Mean milliseconds an operation took over the sample; `None` when nothing happened.
    pub latency_ms: Option<f64>,
}
