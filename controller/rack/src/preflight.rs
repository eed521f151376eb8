//! What would go wrong later, found in the facts before anything is planned. Pure.

use rackwright_core::inventory::{Inventory, Server};
use rackwright_wire::facts::Facts;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Clocks that differ by more make certificates begin in the future.
const CLOCK_TOLERANCE_S: u64 = 60;

/// One thing that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Obstacle {
    /// The server.
    pub server: String,
    /// Whether nothing can be planned while it stands; else it is only said.
    pub blocks: bool,
    /// Stable code, such as `no-systemd`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What helps.
    pub hint: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.blocks { "error" } else { "warning" };
        write!(f, "{severity}: {}: {} [{}]", self.server, self.message, self.code)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "\n    help: {}", self.hint) }
    }
}

/// Looks at all servers that answered, and at each other. `now_s` is the controller's clock in seconds
/// since the epoch.
pub fn preflight(inventory: &Inventory, facts: &BTreeMap<String, Facts>, now_s: u64) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for server in &inventory.servers {
        if let Some(facts) = facts.get(&server.name) {
            one(server, facts, now_s, &mut found);
        }
    }
    twins(facts, &mut found);
    found.sort();
    found
}

fn one(server: &Server, facts: &Facts, now_s: u64, found: &mut Vec<Obstacle>) {
    let mut add = |blocks, code, message: String, hint| {
        found.push(Obstacle { server: server.name.clone(), blocks, code, message, hint });
    };
    if !facts.os.systemd {
        let hint = "servers need systemd as process 1";
        add(true, "no-systemd", "systemd does not answer".to_owned(), hint);
    }
    if facts.os.id != "debian" {
        let message = format!("it runs {} {}", facts.os.id, facts.os.codename);
        add(true, "not-debian", message, "playbooks are written for Debian 12 and later");
    }
    if facts.os.arch != "x86_64" {
        let message = format!("its processor is {}", facts.os.arch);
        add(true, "not-x86-64", message, "binaries are made for x86_64");
    }
    let skew = facts.read_at_s.abs_diff(now_s);
    if skew > CLOCK_TOLERANCE_S {
        let message = format!("its clock differs from this machine's by {skew} s");
        add(true, "clock", message, "set up time synchronisation on both");
    }
    let gpus = facts.gpus.len();
    if u32::try_from(gpus).unwrap_or(u32::MAX) < server.gpus_expected {
        let message = format!("{gpus} of {} expected GPUs are on its PCI bus", server.gpus_expected);
        add(true, "gpu-missing", message, "look at the provider's console, or correct gpus_expected");
    }
    let address = format!("{}/", server.address);
    let own = facts.nics.iter().flat_map(|nic| &nic.addresses).any(|found| found.starts_with(&address));
    if !own {
        let message = format!("no interface of it has the address {}", server.address);
        let hint = "the inventory's address must be one of the server's own: nodes find each other by it";
        add(true, "foreign-address", message, hint);
    }
    if facts.os.swap && !facts.os.container {
        add(false, "swap", "swap is on".to_owned(), "memory limits of pods do not hold with it: turn it off");
    }
}

/// Two names for one machine: cloned machine-ids or a doubled address.
fn twins(facts: &BTreeMap<String, Facts>, found: &mut Vec<Obstacle>) {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for (server, facts) in facts {
        let id = facts.identity.machine_id.as_str();
        if let Some(other) = first.insert(id, server) {
            found.push(Obstacle {
                server: server.clone(),
                blocks: true,
                code: "same-machine",
                message: format!("it has the machine-id of {other}"),
                hint: "a cloned image: remove /etc/machine-id, run systemd-machine-id-setup and reboot",
            });
        }
    }
}
