//! From TOML to an [`Inventory`], collecting every finding on the way.
//!
//! One function a table. Each returns what could be read; [`super::clash`] then
//! looks at what only shows when all tables are known.

mod cluster;
mod data;
mod server;

use super::table::{Located, Table};
use super::{Cidr, Cluster, Dataset, Inventory, Lab, Role, SecretRef, clash};
use crate::finding::{Finding, Findings};
use rackwright_wire::units::Currency;
use std::net::Ipv4Addr;
use toml::de::DeTable;

/// An inventory whose values still know where they stand.
pub(crate) struct Raw {
    pub(crate) cluster: RawCluster,
    pub(crate) datasets: Vec<Located<Dataset>>,
    pub(crate) lab: Option<Located<Lab>>,
    pub(crate) servers: Vec<RawServer>,
}

/// What could be read of `[cluster]`, and where it stands.
#[derive(Default)]
pub(crate) struct RawCluster {
    /// `None` when a part is missing or wrong, which has been reported.
    pub(crate) cluster: Option<Cluster>,
    pub(crate) at: std::ops::Range<usize>,
    pub(crate) ranges: Vec<(&'static str, Located<Cidr>)>,
    pub(crate) node_prefix: u8,
    pub(crate) success: Vec<(Located<Role>, u32)>,
}

impl RawCluster {
    /// The range of a key, when it could be read.
    pub(crate) fn range(&self, key: &str) -> Option<&Located<Cidr>> {
        self.ranges.iter().find(|(name, _)| *name == key).map(|(_, range)| range)
    }
}

/// A server and where its values stand.
pub(crate) struct RawServer {
    pub(crate) at: std::ops::Range<usize>,
    pub(crate) name: Located<String>,
    /// `None` when it is missing or wrong, which has been reported.
    pub(crate) address: Option<Located<Ipv4Addr>>,
    pub(crate) role: Option<Role>,
    pub(crate) bastion: Option<Located<String>>,
    pub(crate) has_lab: bool,
    pub(crate) has_key: bool,
    /// Its contract's.
    pub(crate) currency: Option<Located<Currency>>,
}

pub(crate) fn inventory(file: &str, text: &str) -> Result<Inventory, Vec<Finding>> {
    let mut findings = Findings::new(file, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        findings.add(&error.span().unwrap_or(0..0), "syntax", error.message().replace('\n', ", "), "");
    }
    if !errors.is_empty() {
        return Err(findings.into_vec()); // what could be recovered would only give wrong findings
    }
    let known = ["cluster", "ssh", "data", "datasets", "lab", "server"];
    let root = Table::new("the inventory", 0..0, document.get_ref(), &known, &mut findings);
    let value = read(&root, &mut findings);
    findings.finish(value)
}

fn read(root: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<Inventory> {
    let cluster = cluster::cluster(root, findings);
    let lab = cluster::lab(root, findings);
    let defaults = server::ssh_defaults(root, findings);
    let data = data::data(root, findings);
    let datasets = data::datasets(root, findings);
    let servers = server::servers(root, &defaults, findings);
    let (raw_servers, servers): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
    let raw = Raw { cluster, datasets, lab, servers: raw_servers };
    clash::check(&raw, findings);
    Some(Inventory {
        cluster: raw.cluster.cluster?,
        data: data?,
        datasets: raw.datasets.into_iter().map(|dataset| dataset.value).collect(),
        lab: raw.lab.map(|lab| lab.value),
        servers: servers.into_iter().collect::<Option<_>>()?,
    })
}

/// A name that can be a DNS label: it becomes a host name, a node name and a folder.
fn label(
    table: &Table<'_, '_>,
    key: &str,
    longest: usize,
    findings: &mut Findings<'_>,
) -> Option<Located<String>> {
    let text = table.need_text(key, "\"name-1\"", findings)?;
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
    let fine = text.value.bytes().all(inner)
        && edge(text.value.bytes().next())
        && edge(text.value.bytes().last())
        && text.value.len() <= longest;
    if !fine {
        let hint =
            format!("lower-case letters, digits and `-`, at most {longest} characters, no `-` at an end");
        findings.add(&text.at, "bad-name", format!("`{key} = \"{}\"` is no host name", text.value), hint);
        return None;
    }
    Some(Located { value: text.value.to_owned(), at: text.at })
}

/// A reference to a secret. The text itself never appears in a finding.
fn secret(table: &Table<'_, '_>, key: &str, findings: &mut Findings<'_>) -> Option<SecretRef> {
    let text = table.text(key, findings)?;
    if let Ok(reference) = text.value.parse() {
        return Some(reference);
    }
    let hint = format!(
        "write `{key} = \"env:NAME\"` or `{key} = \"file:/PATH\"`, and change the secret if this file was shared"
    );
    findings.add(&text.at, "inline-secret", format!("`{key}` is not a reference to a secret"), hint);
    None
}

fn need_secret(table: &Table<'_, '_>, key: &str, findings: &mut Findings<'_>) -> Option<SecretRef> {
    if table.get(key).is_none() {
        table.missing(key, "\"env:NAME\"", findings);
    }
    secret(table, key, findings)
}
