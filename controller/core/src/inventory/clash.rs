//! What only shows when the whole inventory is known: clashes, missing roles, references into nothing.

use super::read::{Raw, RawServer};
use super::{Cidr, Role};
use crate::finding::{Findings, nearest};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The longest prefix of `service_cidr`: 16 addresses. The API server itself refuses fewer than 8, of which the
/// network, its broadcast, the API and cluster DNS would leave four.
const SERVICES_PREFIX: u8 = 28;

pub(crate) fn check(raw: &Raw, findings: &mut Findings<'_>) {
    names(raw, findings);
    addresses(raw, findings);
    ranges(raw, findings);
    roles(raw, findings);
    bastions(raw, findings);
    logins(raw, findings);
    currencies(raw, findings);
    counts(raw, findings);
}

fn names(raw: &Raw, findings: &mut Findings<'_>) {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for server in raw.servers.iter().filter(|server| !server.name.value.is_empty()) {
        let (line, _) = findings.position(server.name.at.start);
        if let Some(other) = first.get(server.name.value.as_str()) {
            let message = format!("two servers are called `{}`", server.name.value);
            findings.add(
                &server.name.at,
                "duplicate-name",
                message,
                format!("the other one is on line {other}"),
            );
        } else {
            first.insert(&server.name.value, line);
        }
    }
}

fn addresses(raw: &Raw, findings: &mut Findings<'_>) {
    let nodes = raw.cluster.range("node_cidr").map(|range| range.value);
    let mut first: BTreeMap<Ipv4Addr, &RawServer> = BTreeMap::new();
    for server in &raw.servers {
        let Some(address) = &server.address else { continue };
        if let Some(other) = first.get(&address.value) {
            let (line, _) = findings.position(other.at.start);
            let message = format!("address {} is taken", address.value);
            let hint = format!("by the server on line {line}");
            findings.add(&address.at, "duplicate-address", message, hint);
        } else {
            first.insert(address.value, server);
        }
        if let Some(nodes) = nodes.filter(|nodes| !nodes.contains(address.value)) {
            let message = format!("address {} lies outside node_cidr {nodes}", address.value);
            findings.add(&address.at, "address-outside", message, "correct the address or `node_cidr`");
        } else if let Some(whose) = nodes.and_then(|nodes| reserved(raw, nodes, address.value)) {
            let message = format!("address {} is {whose}", address.value);
            findings.add(&address.at, "address-reserved", message, "give the server another one");
        }
    }
}

/// Whose an address of the servers' network is that no server may have, if it is such a one.
fn reserved(raw: &Raw, nodes: Cidr, address: Ipv4Addr) -> Option<&'static str> {
    if nodes.prefix() > 30 {
        return None; // RFC 3021: two addresses, both of hosts
    }
    if address == nodes.network() {
        Some("the network itself")
    } else if address == nodes.broadcast() {
        Some("the network's broadcast address")
    } else if raw.lab.is_some() && Some(address) == nodes.address(1) {
        Some("the lab bridge's own")
    } else {
        None
    }
}

fn ranges(raw: &Raw, findings: &mut Findings<'_>) {
    let mut seen: Vec<(&str, Cidr)> = Vec::new();
    for (name, range) in &raw.cluster.ranges {
        for (other, taken) in seen.iter().filter(|(_, taken)| taken.overlaps(range.value)) {
            let message = format!("{name} {} overlaps {other} {taken}", range.value);
            findings.add(&range.at, "range-overlap", message, "choose ranges that share no address");
        }
        seen.push((name, range.value));
    }
    if let Some(services) = raw.cluster.range("service_cidr")
        && services.value.prefix() > SERVICES_PREFIX
    {
        let message = format!("service_cidr {} has too few addresses", services.value);
        let hint = format!(
            "the API takes one and every Service another: /{SERVICES_PREFIX} or wider, such as `10.96.0.0/16`"
        );
        findings.add(&services.at, "range-too-small", message, hint);
    }
    if let Some(pods) = raw.cluster.range("pod_cidr") {
        let (parts, servers) = (pods.value.parts(raw.cluster.node_prefix), raw.servers.len());
        if parts < u64::try_from(servers).unwrap_or(u64::MAX) {
            let prefix = raw.cluster.node_prefix;
            let message =
                format!("pod_cidr {} has {parts} ranges of /{prefix} for {servers} servers", pods.value);
            findings.add(
                &pods.at,
                "range-too-small",
                message,
                "widen `pod_cidr` or raise `node_cidr_prefix`",
            );
        }
    }
    if let (Some(lab), Some(nodes)) = (&raw.lab, raw.cluster.range("node_cidr"))
        && lab.value.range != nodes.value
    {
        let message = format!("[lab] range {} is not node_cidr {}", lab.value.range, nodes.value);
        findings.add(&lab.at, "range-differs", message, "the lab's bridge is the servers' own network");
    }
}

fn roles(raw: &Raw, findings: &mut Findings<'_>) {
    let count = |role| raw.servers.iter().filter(|server| server.role == Some(role)).count();
    // A server whose role did not read may be the missing one: that was reported already.
    let unread = raw.servers.iter().any(|server| server.role.is_none());
    for role in [Role::Control, Role::Data, Role::Ml, Role::Results] {
        if count(role) == 0 && !unread {
            let message = format!("no server has the role `{role}`");
            let hint = format!("a rack needs at least one: set `role = \"{role}\"` on a server");
            findings.add(&raw.cluster.at, "missing-role", message, hint);
        }
    }
    let control = count(Role::Control);
    if control > 0 && !matches!(control, 1 | 3 | 5) {
        let hint =
            "etcd needs an odd number: an even one survives no more failures and adds one that can fail";
        let message = format!("{control} servers have the role `control`, expected 1, 3 or 5");
        findings.add(&raw.cluster.at, "control-count", message, hint);
    }
}

fn bastions(raw: &Raw, findings: &mut Findings<'_>) {
    let by_name: BTreeMap<&str, &RawServer> =
        raw.servers.iter().map(|server| (server.name.value.as_str(), server)).collect();
    for server in &raw.servers {
        let Some(bastion) = &server.bastion else { continue };
        if !by_name.contains_key(bastion.value.as_str()) {
            let hint = nearest(&bastion.value, by_name.keys().copied()).map_or_else(
                || "name a server of this file".to_owned(),
                |meant| format!("did you mean `{meant}`?"),
            );
            let message = format!("bastion `{}` is no server of this inventory", bastion.value);
            findings.add(&bastion.at, "unknown-bastion", message, hint);
            continue;
        }
        let mut hop = Some(server);
        let hops = std::iter::from_fn(|| {
            hop = hop
                .and_then(|at| at.bastion.as_ref())
                .and_then(|next| by_name.get(next.value.as_str()).copied());
            hop
        });
        if hops.take(raw.servers.len() + 1).any(|at| at.name.value == server.name.value) {
            let message = format!("`{}` is reached through itself", server.name.value);
            findings.add(
                &bastion.at,
                "bastion-cycle",
                message,
                "one server of the chain must be reached directly",
            );
        }
    }
}

fn logins(raw: &Raw, findings: &mut Findings<'_>) {
    for server in &raw.servers {
        if raw.lab.is_none() && !server.has_key {
            let message = format!("no SSH key for `{}`", server.name.value);
            let hint = "add `key = \"file:~/.ssh/id_ed25519\"` to [ssh]";
            findings.add(&server.at, "missing-key", message, hint);
        }
        if raw.lab.is_some() != server.has_lab {
            let (message, hint) = if server.has_lab {
                ("`lab` on a server, but no [lab] table", "add [lab], or remove `lab` from the server")
            } else {
                (
                    "a server of a [lab] without `lab`",
                    "add `lab = { memory = \"3GiB\", cpu = \"1500m\", disk = \"8GiB\" }`",
                )
            };
            findings.add(&server.at, "lab-limits", message, hint);
        }
    }
}

/// One bill has one currency. A slip such as `EUX` shows here too.
fn currencies(raw: &Raw, findings: &mut Findings<'_>) {
    let mut paid = raw.servers.iter().filter_map(|server| server.currency.as_ref());
    let Some(first) = paid.next() else { return };
    for other in paid.filter(|other| other.value != first.value) {
        let (line, _) = findings.position(first.at.start);
        let message = format!("a contract in {} beside others in {}", other.value, first.value);
        let hint = format!("`cost bill` adds them up: write all in the currency of line {line}");
        findings.add(&other.at, "mixed-currencies", message, hint);
    }
}

fn counts(raw: &Raw, findings: &mut Findings<'_>) {
    let count =
        |role| raw.servers.iter().filter(|server| server.role == Some(role)).map(|_| 1_u64).sum::<u64>();
    for (role, needed) in &raw.cluster.success {
        if u64::from(*needed) > count(role.value) {
            let message = format!("success needs {needed} of {} `{}` servers", count(role.value), role.value);
            findings.add(&role.at, "out-of-range", message, "lower it, or add servers");
        }
    }
    for dataset in &raw.datasets {
        let have = count(dataset.value.role);
        let wants = dataset.value.target_nodes.unwrap_or(dataset.value.min_nodes);
        if u64::from(wants) > have {
            let message = format!(
                "dataset `{}` wants {wants} `{}` servers, there are {have}",
                dataset.value.name, dataset.value.role
            );
            findings.add(
                &dataset.at,
                "out-of-range",
                message,
                "lower `target_nodes` and `min_nodes`, or add servers",
            );
        }
    }
}
