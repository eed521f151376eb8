//! The pure side of the rack: inventories, playbooks, plans, lints.
//!
//! Golden files are regenerated with `INSTA_UPDATE=always cargo test --release -p rackwright-core`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]
#![expect(clippy::wildcard_enum_match_arm, reason = "tests ask for one kind of step and pass over the rest")]

#[path = "rack/inventory.rs"]
mod inventory;
#[path = "rack/plans.rs"]
mod plans;
#[path = "rack/playbooks.rs"]
mod playbooks;

use rackwright_core::finding::Finding;
use rackwright_core::inventory::Inventory;
use rackwright_core::playbook::{Context, Playbook, render};
use rackwright_wire::facts::Facts;
use rackwright_wire::step::Step;
use std::collections::BTreeMap;

const LAB: &str = include_str!("../../../inventory/lab.toml");

/// Recorded on a server of the lab.
fn container_v1() -> Facts {
    serde_json::from_str(include_str!("facts/container-v1.json")).unwrap()
}

/// A rented server as Debian 12 shows it, with a GPU.
fn metal_v2() -> Facts {
    serde_json::from_str(include_str!("facts/metal-v2.json")).unwrap()
}

fn lab() -> Inventory {
    Inventory::parse("inventory/lab.toml", LAB).unwrap()
}

fn hash(of: &str) -> String {
    blake3::hash(of.as_bytes()).to_hex().to_string()
}

fn secrets() -> BTreeMap<String, String> {
    [("clickhouse_password", "click<house>&1"), ("minio_secret_key", "minio \"quoted\" $key")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// The context of a server, with a hash for every name that the lockfile has.
fn context(inventory: &Inventory, server: &str, facts: &Facts) -> Context {
    let artifacts = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "etcd",
        "etcdctl",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
        "cni-bridge",
        "cni-host-local",
        "cni-loopback",
        "cni-portmap",
        "minio",
        "pause",
        "busybox",
        "python",
        "rackwright",
        "rackwright-agent",
    ];
    let artifacts = artifacts.map(|name| (name.to_owned(), hash(name))).into();
    let pki = ["kubernetes", "etcd", "front-proxy", "data"].map(|name| (name.to_owned(), hash(name))).into();
    Context::new(inventory, server, facts, &artifacts, &pki, &secrets()).unwrap()
}

fn steps(server: &str, facts: &Facts) -> Vec<Step> {
    render(&Playbook::builtin().unwrap(), &context(&lab(), server, facts)).unwrap_or_else(|found| {
        panic!("{}", print(&found));
    })
}

fn print(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    lines.join("\n") + "\n"
}
