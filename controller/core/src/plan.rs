//! Plan is data: per server the steps, the facts they were made from, and every difference.
//!
//! A dry run prints the same value that `apply` consumes. It is saved as JSON, has an id over its content, and
//! is refused when the facts of a server moved since. Nothing here talks to a server: differences
//! arrive as [`CheckReport`]s.

mod show;
mod verdict;

pub use verdict::{Outcome, Standing, Verdict, verdict};

use rackwright_wire::facts::Facts;
use rackwright_wire::plan::{CheckReport, PLAN_VERSION, ServerPlan};
use rackwright_wire::step::Step;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a whole rack must do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the writer.
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, PLAN_VERSION>")]
    pub version: u32,
    /// BLAKE3 (hex) over cluster, generation, servers and absent servers.
    pub id: String,
    /// The cluster's name.
    pub cluster: String,
    /// Counts up with every plan of the cluster.
    pub generation: u64,
    /// One plan for each server that answered, in inventory order.
    pub servers: Vec<ServerPlan>,
    /// Servers that did not answer. They are a state, not an error.
    pub absent: Vec<AbsentServer>,
}

/// A server that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbsentServer {
    /// Inventory name.
    pub server: String,
    /// Why, as a fragment that reads after "absent: ".
    pub reason: String,
}

/// What is known about one server that answered.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Inventory name.
    pub server: String,
    /// What was measured.
    pub facts: Facts,
    /// What it must look like, in order.
    pub steps: Vec<Step>,
    /// How it differs from that.
    pub report: CheckReport,
}

/// Why a plan cannot be applied any more; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The file was changed, or written by another build.
    #[error("trust the plan: its content does not match its id")]
    Changed,
    /// A server is another machine now.
    #[error("apply to {server}: it is another machine than planned (machine-id {found})")]
    OtherMachine {
        /// Inventory name.
        server: String,
        /// Machine id that was found.
        found: String,
    },
    /// A server's facts differ.
    #[error("apply to {server}: its facts moved since the plan was made")]
    Moved {
        /// Inventory name.
        server: String,
    },
}

impl Plan {
    /// Whether applying would change nothing anywhere.
    pub fn is_empty(&self) -> bool {
        self.servers.iter().all(ServerPlan::is_empty)
    }

    /// How many differences there are.
    pub fn changes(&self) -> usize {
        self.servers.iter().map(|server| server.differences.len()).sum()
    }

    /// The plan of one server.
    pub fn server(&self, name: &str) -> Option<&ServerPlan> {
        self.servers.iter().find(|server| server.server == name)
    }

    /// The id that belongs to this content (the `id` field itself is left out).
    pub fn compute_id(&self) -> String {
        let bare = Self { id: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&bare).unwrap_or_default();
        blake3::hash(&bytes).to_hex().to_string()
    }
}

/// Makes a plan. Its generation is one above the newest that any server has accepted, and above `last`,
/// the newest that the controller has made.
pub fn build(cluster: &str, last: u64, answered: Vec<Answered>, absent: Vec<AbsentServer>) -> Plan {
    let newest = answered.iter().map(|server| server.report.generation).max().unwrap_or(0);
    let generation = newest.max(last) + 1;
    let servers = answered.into_iter().map(|server| server_plan(server, generation)).collect();
    let mut plan = Plan {
        version: PLAN_VERSION,
        id: String::new(),
        cluster: cluster.to_owned(),
        generation,
        servers,
        absent,
    };
    plan.id = plan.compute_id();
    plan
}

fn server_plan(answered: Answered, generation: u64) -> ServerPlan {
    let mut plan = ServerPlan {
        version: PLAN_VERSION,
        id: String::new(),
        server: answered.server,
        machine_id: answered.facts.identity.machine_id.clone(),
        generation,
        facts_digest: answered.facts.digest(),
        steps: answered.steps,
        differences: answered.report.differences,
    };
    plan.id = plan.compute_id();
    plan
}

/// Refuses a plan whose content or whose facts moved since it was made.
///
/// `facts` holds what was measured just now, by server; servers that are absent now are not looked at. Everything
/// that moved is returned at once.
pub fn verify_fresh(plan: &Plan, facts: &BTreeMap<String, Facts>) -> Result<(), Vec<Stale>> {
    let mut stale = Vec::new();
    let whole = plan.id == plan.compute_id() && plan.servers.iter().all(|of| of.id == of.compute_id());
    if !whole {
        stale.push(Stale::Changed);
    }
    for planned in &plan.servers {
        let Some(now) = facts.get(&planned.server) else {
            continue;
        };
        if now.identity.machine_id != planned.machine_id {
            let found = now.identity.machine_id.clone();
            stale.push(Stale::OtherMachine { server: planned.server.clone(), found });
        } else if now.digest() != planned.facts_digest {
            stale.push(Stale::Moved { server: planned.server.clone() });
        }
    }
    if stale.is_empty() { Ok(()) } else { Err(stale) }
}
