//! `[ssh]` and `[[server]]`.

use super::{RawServer, label, secret};
use crate::finding::Findings;
use crate::inventory::table::{Located, Table};
use crate::inventory::{Contract, LabServer, Role, SecretRef, Server, Ssh};
use jiff::civil::Date;
use rackwright_wire::units::{Currency, Money};
use std::net::Ipv4Addr;
use toml::Spanned;
use toml::de::DeValue;

/// What a server's `ssh` leaves open.
pub(super) struct SshDefaults {
    user: String,
    port: u16,
    key: Option<SecretRef>,
}

pub(super) fn ssh_defaults(root: &Table<'_, '_>, findings: &mut Findings<'_>) -> SshDefaults {
    let mut defaults = SshDefaults { user: "root".to_owned(), port: 22, key: None };
    if let Some(table) = root.table("ssh", "[ssh]", &["user", "port", "key"], findings) {
        if let Some(user) = table.need_text("user", "\"root\"", findings) {
            user.value.clone_into(&mut defaults.user);
        }
        if let Some(port) = table.integer("port", 1..=65_535, findings) {
            defaults.port = port.value;
        }
        defaults.key = secret(&table, "key", findings);
    }
    defaults
}

pub(super) fn servers(
    root: &Table<'_, '_>,
    defaults: &SshDefaults,
    findings: &mut Findings<'_>,
) -> Vec<(RawServer, Option<Server>)> {
    let Some(value) = root.get("server") else {
        return Vec::new();
    };
    let Some(list) = value.get_ref().as_array() else {
        root.wrong_type("server", "a list of tables ([[server]])", value, findings);
        return Vec::new();
    };
    list.iter().filter_map(|item| server(root, item, defaults, findings)).collect()
}

fn server(
    root: &Table<'_, '_>,
    item: &Spanned<DeValue<'_>>,
    defaults: &SshDefaults,
    findings: &mut Findings<'_>,
) -> Option<(RawServer, Option<Server>)> {
    let Some(inner) = item.get_ref().as_table() else {
        root.wrong_type("server", "a list of tables ([[server]])", item, findings);
        return None;
    };
    let known = [
        "name",
        "address",
        "role",
        "bastion",
        "rack",
        "switch",
        "provider",
        "contract",
        "disks",
        "gpus_expected",
        "ssh",
        "lab",
    ];
    let table = Table::new("[[server]]", item.span(), inner, &known, findings);
    let name = label(&table, "name", 40, findings);
    let address = table.need::<Ipv4Addr>("address", "bad-address", "\"10.20.0.11\"", findings);
    let role = table.need::<Role>("role", "unknown-role", "\"ml\"", findings).map(|role| role.value);
    let owned = |text: Located<&str>| Located { value: text.value.to_owned(), at: text.at };
    let bastion = table.text("bastion", findings).map(owned);
    let ssh = ssh(&table, defaults, findings);
    let lab = lab_server(&table, findings);
    let contract = contract(&table, findings);
    let raw = RawServer {
        at: item.span(),
        name: name.clone().unwrap_or(Located { value: String::new(), at: item.span() }),
        address: address.clone(),
        role,
        bastion: bastion.clone(),
        has_lab: table.get("lab").is_some(),
        has_key: ssh.key.is_some(),
        currency: contract
            .as_ref()
            .map(|of| Located { value: of.value.monthly.currency(), at: of.at.clone() }),
    };
    let mut word = |key| table.text(key, findings).map(|text| text.value.to_owned());
    let (rack, switch, provider) = (word("rack"), word("switch"), word("provider"));
    let disks = disks(&table, findings);
    let gpus_expected = table.integer("gpus_expected", 0..=64, findings).map_or(0, |gpus| gpus.value);
    let whole = || {
        let (name, address, bastion) = (name?.value, address?.value, bastion.map(|bastion| bastion.value));
        let role = role?;
        Some(Server {
            name,
            address,
            role,
            bastion,
            rack,
            switch,
            provider,
            contract: contract.map(|contract| contract.value),
            disks,
            gpus_expected,
            ssh,
            lab,
        })
    };
    Some((raw, whole()))
}

fn ssh(server: &Table<'_, '_>, defaults: &SshDefaults, findings: &mut Findings<'_>) -> Ssh {
    let mut ssh =
        Ssh { user: defaults.user.clone(), port: defaults.port, key: defaults.key.clone(), host_key: None };
    let known = ["user", "port", "key", "host_key"];
    if let Some(table) = server.table("ssh", "`ssh` of a server", &known, findings) {
        if let Some(user) = table.text("user", findings) {
            user.value.clone_into(&mut ssh.user);
        }
        if let Some(port) = table.integer("port", 1..=65_535, findings) {
            ssh.port = port.value;
        }
        ssh.key = secret(&table, "key", findings).or(ssh.key);
        ssh.host_key = host_key(&table, findings);
    }
    ssh
}

fn host_key(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<String> {
    let text = table.text("host_key", findings)?;
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let digest = text.value.strip_prefix("SHA256:");
    if digest.is_none_or(|digest| digest.len() != 43 || !digest.bytes().all(base64)) {
        let hint =
            "write what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the server: `SHA256:…`";
        findings.add(&text.at, "bad-host-key", "`host_key` is no SHA256 fingerprint", hint);
        return None;
    }
    Some(text.value.to_owned())
}

fn lab_server(server: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<LabServer> {
    let table = server.table("lab", "`lab` of a server", &["memory", "cpu", "disk"], findings)?;
    let memory = table.need("memory", "wrong-unit", "\"3GiB\"", findings);
    let cpu = table.need("cpu", "wrong-unit", "\"1500m\"", findings);
    let disk = table.need("disk", "wrong-unit", "\"8GiB\"", findings);
    Some(LabServer { memory: memory?.value, cpu: cpu?.value, disk: disk?.value })
}

/// Stands where its currency does.
fn contract(server: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<Located<Contract>> {
    let known = ["monthly", "setup", "currency", "term_months", "since"];
    let table = server.table("contract", "`contract` of a server", &known, findings)?;
    let currency = table.need::<Currency>("currency", "wrong-unit", "\"EUR\"", findings);
    let mut money = |key| {
        let amount = table.need_text(key, "\"44.00\"", findings)?;
        match format!("{} {}", amount.value, currency.as_ref()?.value).parse::<Money>() {
            Ok(money) if money.micros() >= 0 => Some(money),
            _ => {
                let message = format!("`{key} = \"{}\"` is no price", amount.value);
                findings.add(
                    &amount.at,
                    "wrong-unit",
                    message,
                    "digits only, such as \"44.00\"; `currency` has its own key",
                );
                None
            }
        }
    };
    let (monthly, setup) = (money("monthly"), money("setup"));
    let term_months = table.integer("term_months", 1..=120, findings).map_or(1, |months| months.value);
    let since = table.need_text("since", "\"2026-01-15\"", findings).and_then(|text| {
        let date = text.value.parse::<Date>().ok();
        if date.is_none() {
            let message = format!("`since = \"{}\"` is no date", text.value);
            findings.add(&text.at, "bad-date", message, "year-month-day, such as \"2026-01-15\"");
        }
        date
    });
    let value = Contract { monthly: monthly?, setup: setup?, term_months, since: since? };
    Some(Located { value, at: currency?.at })
}

fn disks(server: &Table<'_, '_>, findings: &mut Findings<'_>) -> Vec<String> {
    let disks = server.texts("disks", findings);
    for disk in &disks {
        if disk.value.contains('/') || disk.value.len() < 8 {
            let hint = "kernel names change at boot: write a name under /dev/disk/by-id, without the folder";
            findings.add(
                &disk.at,
                "unstable-disk",
                format!("`{}` is no stable id of a disk", disk.value),
                hint,
            );
        }
    }
    disks.into_iter().map(|disk| disk.value.to_owned()).collect()
}
