//! `[cluster]` and `[lab]`.

use super::{RawCluster, label};
use crate::finding::Findings;
use crate::inventory::table::{Located, Table};
use crate::inventory::{Cidr, Cluster, Cni, Lab, Reservations, Role};

pub(super) fn cluster(root: &Table<'_, '_>, findings: &mut Findings<'_>) -> RawCluster {
    let known = [
        "name",
        "kubernetes",
        "pod_cidr",
        "service_cidr",
        "node_cidr",
        "node_cidr_prefix",
        "cni",
        "reservations",
        "success",
    ];
    let Some(table) = root.table("cluster", "[cluster]", &known, findings) else {
        findings.add(&(0..0), "missing-key", "no [cluster] table", "see inventory/example.toml");
        return RawCluster::default();
    };
    let name = label(&table, "name", 20, findings);
    let kubernetes = kubernetes(&table, findings);
    let pods = table.need::<Cidr>("pod_cidr", "bad-range", "\"10.42.0.0/16\"", findings);
    let services = table.need::<Cidr>("service_cidr", "bad-range", "\"10.96.0.0/16\"", findings);
    let nodes = table.need::<Cidr>("node_cidr", "bad-range", "\"10.20.0.0/24\"", findings);
    let prefix = table.integer("node_cidr_prefix", 16..=28, findings);
    cni(&table, findings);
    let reservations = reservations(&table, findings);
    let success = success(&table, findings);
    let node_prefix = prefix.map_or(24, |prefix| prefix.value);
    let ranges = [("pod_cidr", &pods), ("service_cidr", &services), ("node_cidr", &nodes)]
        .into_iter()
        .filter_map(|(name, range)| Some((name, range.clone()?)))
        .collect();
    let rules = success.iter().map(|(role, count)| (role.value, *count)).collect();
    let whole = || {
        Some(Cluster {
            name: name?.value,
            kubernetes: kubernetes?,
            pod_cidr: pods?.value,
            service_cidr: services?.value,
            node_cidr: nodes?.value,
            node_cidr_prefix: node_prefix,
            cni: Cni::Routes,
            reservations,
            success: rules,
        })
    };
    RawCluster { cluster: whole(), at: table.span().clone(), ranges, node_prefix, success }
}

fn kubernetes(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<String> {
    let text = table.need_text("kubernetes", "\"1.36.3\"", findings)?;
    let parts: Vec<_> = text.value.split('.').map(str::parse::<u16>).collect();
    if parts.len() != 3 || parts.iter().any(Result::is_err) {
        let message = format!("`kubernetes = \"{}\"` is no exact release", text.value);
        findings.add(
            &text.at,
            "bad-version",
            message,
            "write all three numbers and no `v`, such as `1.36.3`",
        );
        return None;
    }
    Some(text.value.to_owned())
}

fn cni(table: &Table<'_, '_>, findings: &mut Findings<'_>) {
    if let Some(mode) = table.text("cni", findings)
        && mode.value != "routes"
    {
        let message = format!("unknown CNI mode `{}`", mode.value);
        findings.add(&mode.at, "unknown-value", message, "the one mode is `routes`");
    }
}

fn reservations(cluster: &Table<'_, '_>, findings: &mut Findings<'_>) -> Reservations {
    let known = ["system_cpu", "system_memory", "kube_cpu", "kube_memory", "data_cpu", "data_memory"];
    let name = "[cluster.reservations]";
    let Some(table) = cluster.table("reservations", name, &known, findings) else {
        return Reservations::default();
    };
    let mut cpu = |key| table.parse(key, "wrong-unit", "\"250m\"", findings).map(|cpu| cpu.value);
    let (system_cpu, kube_cpu, data_cpu) = (cpu("system_cpu"), cpu("kube_cpu"), cpu("data_cpu"));
    let mut memory = |key| table.parse(key, "wrong-unit", "\"512MiB\"", findings).map(|memory| memory.value);
    Reservations {
        system_cpu,
        kube_cpu,
        data_cpu,
        system_memory: memory("system_memory"),
        kube_memory: memory("kube_memory"),
        data_memory: memory("data_memory"),
    }
}

fn success(cluster: &Table<'_, '_>, findings: &mut Findings<'_>) -> Vec<(Located<Role>, u32)> {
    let known = Role::ALL.map(Role::name);
    let Some(table) = cluster.table("success", "[cluster.success]", &known, findings) else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    for role in Role::ALL {
        if let Some(count) = table.integer::<u32>(role.name(), 0..=10_000, findings) {
            rules.push((Located { value: role, at: count.at }, count.value));
        }
    }
    rules
}

pub(super) fn lab(root: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<Located<Lab>> {
    let table = root.table("lab", "[lab]", &["range"], findings)?;
    let range = table.need::<Cidr>("range", "bad-range", "\"10.77.0.0/24\"", findings)?;
    Some(Located { value: Lab { range: range.value }, at: range.at })
}
