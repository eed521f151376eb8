//! A plan for one server: the steps in order, and the facts it was made from.

use crate::step::{Difference, Step};
use serde::{Deserialize, Serialize};

/// The version of [`ServerPlan`] that this build writes.
pub const PLAN_VERSION: u32 = 1;

/// Everything one server must do, in order. The agent decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerPlan {
    /// [`PLAN_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, PLAN_VERSION>")]
    pub version: u32,
    /// BLAKE3 (hex) over server, generation, facts digest and steps.
    pub id: String,
    /// Inventory name of the server.
    pub server: String,
    /// The only machine that may run this plan.
    pub machine_id: String,
    /// Counts up with every plan of the cluster; an agent refuses an older one.
    pub generation: u64,
    /// [`crate::facts::Facts::digest`] that the plan was made from.
    pub facts_digest: String,
    /// All steps of the server in an order that respects `needs`.
    pub steps: Vec<Step>,
    /// The differences found when the plan was made; empty means nothing to do.
    pub differences: Vec<Difference>,
}

impl ServerPlan {
    /// Whether applying would change nothing.
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty()
    }

    /// The id that belongs to this content (the `id` field itself is left out).
    pub fn compute_id(&self) -> String {
        let bare = Self { id: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&bare).unwrap_or_default();
        blake3::hash(&bytes).to_hex().to_string()
    }
}

/// What `rackwright-agent check` reads on stdin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// [`PLAN_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, PLAN_VERSION>")]
    pub version: u32,
    /// The steps to compare with the server.
    pub steps: Vec<Step>,
    /// SHA-256 (hex) of artifacts that the steps may need.
    pub artifacts: Vec<String>,
}

/// What `rackwright-agent check` answers on stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// [`PLAN_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, PLAN_VERSION>")]
    pub version: u32,
    /// What differs, in step order.
    pub differences: Vec<Difference>,
    /// Artifacts that are neither installed nor staged on this server.
    pub missing_artifacts: Vec<String>,
    /// The generation of the newest plan this server accepted.
    pub generation: u64,
    /// An apply that is running or was interrupted: its plan id.
    pub unfinished: Option<String>,
}
