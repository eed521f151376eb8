//! What the ledger is made from: servers with their rent and room, and what held that room.

use crate::job::{Class, Outcome, Resources};
use jiff::civil::Date;
use rackwright_wire::id::{DatasetName, ModelName, NodeName, Owner, PodKey, Project, Team};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu, Money};
use serde::{Deserialize, Serialize};

/// Half-open time that is billed: `from_ms..until_ms`, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First millisecond.
    pub from_ms: u64,
    /// First millisecond after it.
    pub until_ms: u64,
}

impl Window {
    /// Milliseconds of the window; none when it ends before it starts.
    pub const fn length_ms(self) -> u64 {
        self.until_ms.saturating_sub(self.from_ms)
    }

    /// The part that both have.
    #[must_use]
    pub fn overlap(self, other: Self) -> Self {
        Self { from_ms: self.from_ms.max(other.from_ms), until_ms: self.until_ms.min(other.until_ms) }
    }
}

/// What one attempt held: the row that `GET /v1/usage` answers with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRow {
    /// Job, task and attempt.
    pub pod: PodKey,
    /// Who submitted.
    pub owner: Owner,
    /// For which team.
    pub team: Team,
    /// For which project.
    pub project: Project,
    /// For which model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// On which datasets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetName>,
    /// Fixed or flexible.
    pub class: Class,
    /// The server.
    pub node: NodeName,
    /// From when it held room.
    pub from_ms: u64,
    /// Until when; for an attempt that still runs, the time of asking.
    pub until_ms: u64,
    /// How much room.
    pub resources: Resources,
    /// How it ended; unset while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl UsageRow {
    /// When it held room.
    pub const fn held(&self) -> Window {
        Window { from_ms: self.from_ms, until_ms: self.until_ms }
    }

    /// How much room it held.
    pub const fn room(&self) -> Room {
        Room { cpu: self.resources.cpu, memory: self.resources.memory, gpu: self.resources.gpu }
    }
}

/// An amount of every resource that has a price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    /// CPU.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
    /// GPUs.
    #[serde(default)]
    pub gpu: MilliGpu,
}

/// What a server costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rent {
    /// Price of a month.
    pub monthly: Money,
    /// Paid once; spread over the minimum term.
    pub setup: Money,
    /// Minimum term in months.
    pub term_months: u32,
    /// First day that is paid for; always, when unset.
    pub since: Option<Date>,
    /// Where the price is from, with its date.
    pub source: String,
}

/// A server of the rack, as the bill sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RackServer {
    /// Its name.
    pub name: NodeName,
    /// What it costs.
    pub rent: Rent,
    /// All that it may use.
    pub room: Room,
    /// What jobs may use of it; nothing on servers that run none. The rest is the system's.
    pub for_jobs: Room,
}
