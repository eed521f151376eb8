//! What jobs get of a server, computed from the measured server.
//!
//! A kubelet reports the machine's CPUs and memory as capacity. In a control group (the lab, or a rented
//! container) less of it may be used; the difference is reserved, so that allocatable is what the control
//! group allows minus our own share:
//!
//! ```text
//! capacity     = everything that the kernel shows
//! allowed      = capacity - hidden                (the control group's limit)
//! allocatable  = allowed - system - kube - data - services - eviction
//! ```

use super::Role;
use rackwright_wire::facts::Facts;
use rackwright_wire::units::{Bytes, MilliCpu};
use serde::Serialize;

/// Reservations that the operator sets; what is open is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Reservations {
    /// Operating system, sshd, journald.
    pub system_cpu: Option<MilliCpu>,
    /// Operating system, sshd, journald.
    pub system_memory: Option<Bytes>,
    /// Kubelet, containerd, kube-proxy.
    pub kube_cpu: Option<MilliCpu>,
    /// Kubelet, containerd, kube-proxy.
    pub kube_memory: Option<Bytes>,
    /// The agent's data plane.
    pub data_cpu: Option<MilliCpu>,
    /// The agent's data plane.
    pub data_memory: Option<Bytes>,
}

/// An amount of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Amount {
    /// Thousandths of a CPU.
    pub cpu_milli: MilliCpu,
    /// Bytes of memory.
    pub memory_bytes: Bytes,
}

impl Amount {
    /// From raw integers; what no server can have is cut to the unit's largest value.
    fn new(cpu_milli: u64, memory_bytes: u64) -> Self {
        Self {
            cpu_milli: MilliCpu::new(cpu_milli).unwrap_or(MilliCpu::MAX),
            memory_bytes: Bytes::new(memory_bytes).unwrap_or(Bytes::MAX),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli + other.cpu_milli,
            memory_bytes: self.memory_bytes + other.memory_bytes,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

/// How one server is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// What the kernel shows but the control group does not allow.
    pub hidden: Amount,
    /// Operating system.
    pub system: Amount,
    /// Kubelet and runtime.
    pub kube: Amount,
    /// The agent's data plane.
    pub data: Amount,
    /// What the role runs beside the kubelet: control plane, databases.
    pub services: Amount,
    /// The kubelet's hard eviction threshold, which it takes off allocatable itself.
    pub eviction_bytes: Bytes,
    /// What the kubelet's `systemReserved` must say: hidden + system + data + services.
    pub kubelet_system: Amount,
    /// What is left for pods.
    pub allocatable: Amount,
}

/// A server that is smaller than its reservations; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reserve {wanted} {what} on a server that may use {allowed}")]
pub struct TooSmall {
    /// `CPUs` or `of memory`.
    pub what: &'static str,
    /// Sum of the reservations.
    pub wanted: String,
    /// What the server may use.
    pub allowed: String,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The kubelet evicts pods when less memory than this is free.
const EVICTION: Bytes = Bytes::mib(100);

/// Divides a measured server.
///
/// Defaults, of what is allowed: system 1/32; kube 1/32 of the CPUs and 1/16 of the memory; data 1/16; within bounds
/// that were seen to hold on small servers (an idle kubelet with containerd takes some 120 MiB) and that stop growing
/// on large ones. Control servers keep a quarter for the control plane, data and results servers half for their
/// databases. docs/operators.md has the table.
pub fn reserve(set: &Reservations, facts: &Facts, role: Role) -> Result<Reserved, TooSmall> {
    let capacity = Amount::new(u64::from(facts.cpu.logical) * 1000, facts.memory.total_bytes);
    let allowed = Amount::new(
        facts.cpu.allowed_milli.min(capacity.cpu_milli.get()),
        facts.memory.allowed_bytes.min(capacity.memory_bytes.get()),
    );
    let (cpu, memory) = (allowed.cpu_milli.get(), allowed.memory_bytes.get());
    let chosen = |set_cpu: Option<MilliCpu>, set_memory: Option<Bytes>, computed: Amount| Amount {
        cpu_milli: set_cpu.unwrap_or(computed.cpu_milli),
        memory_bytes: set_memory.unwrap_or(computed.memory_bytes),
    };
    let system = Amount::new((cpu / 32).clamp(100, 500), (memory / 32).clamp(128 * MIB, GIB));
    let kube = Amount::new((cpu / 32).clamp(100, 500), (memory / 16).clamp(256 * MIB, 2 * GIB));
    let data = Amount::new((cpu / 16).clamp(100, 2000), (memory / 16).clamp(256 * MIB, 4 * GIB));
    let system = chosen(set.system_cpu, set.system_memory, system);
    let kube = chosen(set.kube_cpu, set.kube_memory, kube);
    let data = chosen(set.data_cpu, set.data_memory, data);
    let services = match role {
        Role::Control => Amount::new((cpu / 4).clamp(250, 4000), (memory / 4).clamp(768 * MIB, 16 * GIB)),
        Role::Data | Role::Results => Amount::new(cpu / 2, memory / 2),
        Role::Ml | Role::Dev => Amount::default(),
    };
    let hidden = capacity.minus(allowed);
    let ours = system.plus(kube).plus(data).plus(services);
    let allocatable = left(allowed, ours)?;
    let kubelet_system = hidden.plus(system).plus(data).plus(services);
    Ok(Reserved {
        hidden,
        system,
        kube,
        data,
        services,
        eviction_bytes: EVICTION,
        kubelet_system,
        allocatable,
    })
}

/// What pods get, which must be something.
fn left(allowed: Amount, ours: Amount) -> Result<Amount, TooSmall> {
    let ours = ours.plus(Amount { cpu_milli: MilliCpu::ZERO, memory_bytes: EVICTION });
    let left = allowed.minus(ours);
    if left.cpu_milli.is_zero() {
        let (wanted, allowed) = (ours.cpu_milli.to_string(), allowed.cpu_milli.to_string());
        return Err(TooSmall { what: "CPUs", wanted, allowed });
    }
    if left.memory_bytes.is_zero() {
        let (wanted, allowed) = (ours.memory_bytes.to_string(), allowed.memory_bytes.to_string());
        return Err(TooSmall { what: "of memory", wanted, allowed });
    }
    Ok(left)
}
