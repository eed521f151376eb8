//! The lab's network: one bridge with the servers' links on it, and one nft table that lets them out.
//!
//! A cut link keeps its carrier: the port drops everything, as when a switch further on fails. With the
//! carrier gone the server's network service would take its addresses and routes away, which a partition does not do.

use crate::error::LabError;
use crate::names;
use crate::spec::{LabName, LabSpec, Rate, Subnet};
use crate::tool::Tools;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

/// The state of a bridge's port as `bridge link set` takes it (`IFLA_BRPORT_STATE`).
const PORT_DISABLED: &str = "0";
const PORT_FORWARDING: &str = "3";
/// How long the shaper lets a packet wait. Longer only fills buffers, shorter drops what a window sends at once.
const SHAPER_LATENCY: &str = "50ms";

/// Makes the bridge and the table.
///
/// # Errors
/// What ip and nft said.
pub(crate) async fn raise(tools: &Tools, lab: &LabName, subnet: Subnet) -> Result<(), LabError> {
    let bridge = names::lab_wide(lab);
    let address = names::bridge_address(lab);
    tools.run("ip", ["link", "add", &bridge, "address", &address, "type", "bridge"]).await?;
    let gateway = format!("{}/{}", subnet.gateway(), subnet.prefix());
    tools.run("ip", ["addr", "add", &gateway, "dev", &bridge]).await?;
    tools.run("ip", ["link", "set", &bridge, "up"]).await?;
    tools.run("nft", [table_text(&bridge, subnet)]).await?;
    Ok(())
}

/// Traffic between servers stays as it is, also when the kernel shows bridged packets to this machine's rules.
fn table_text(name: &str, subnet: Subnet) -> String {
    format!(
        "table ip {name} {{\n  chain post {{\n    type nat hook postrouting priority 100;\n    \
         ip saddr {subnet} ip daddr != {subnet} oifname != \"{name}\" masquerade\n  }}\n}}\n"
    )
}

/// Removes an interface, if it is there. A link's end goes by itself when the server's namespace ends, which
/// may happen in between.
///
/// # Errors
/// What ip said.
pub(crate) async fn remove_link(tools: &Tools, name: &str) -> Result<(), LabError> {
    match tools.run("ip", ["link", "del", name]).await {
        Err(_) if !is_link(name) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Removes an nft table, if it is there.
///
/// # Errors
/// What nft said.
pub(crate) async fn remove_table(tools: &Tools, name: &str) -> Result<(), LabError> {
    // Adding what is there changes nothing, so that deleting always finds it; both happen at once or not at all.
    let text = format!("add table ip {name}\ndelete table ip {name}\n");
    tools.run("nft", [text]).await.map(|_| ())
}

/// Whether there is such an interface.
pub(crate) fn is_link(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Drops everything at a server's port, or lets it through again.
///
/// # Errors
/// What bridge said.
pub(crate) async fn set_cut(tools: &Tools, link: &str, cut: bool) -> Result<(), LabError> {
    let state = if cut { PORT_DISABLED } else { PORT_FORWARDING };
    tools.run("bridge", ["link", "set", "dev", link, "state", state]).await.map(|_| ())
}

/// Limits a link in both directions, or lifts the limit. What the server sends is limited at its own end, inside
/// the namespace of its first process.
///
/// # Errors
/// What tc said.
pub(crate) async fn shape(
    tools: &Tools,
    link: &str,
    inner_init: i32,
    rate: Option<Rate>,
) -> Result<(), LabError> {
    let namespace = format!("--net=/proc/{inner_init}/ns/net");
    for (device, enter) in [(link, None), ("host0", Some(namespace.as_str()))] {
        let words: Vec<String> = match rate {
            Some(rate) => shaper(device, rate),
            None => ["qdisc", "del", "dev", device, "root"].map(str::to_owned).into(),
        };
        let ran = match enter {
            None => tools.run("tc", &words).await,
            Some(namespace) => {
                let words = [namespace, "tc"].into_iter().chain(words.iter().map(String::as_str));
                tools.run("nsenter", words).await
            }
        };
        // Lifting a limit that is not there is what was wanted.
        if rate.is_some() {
            ran?;
        }
    }
    Ok(())
}

fn shaper(device: &str, rate: Rate) -> Vec<String> {
    let (bits, burst) = (format!("{}bit", rate.bits_per_s()), rate.burst_bytes().to_string());
    let words = ["qdisc", "replace", "dev", device, "root", "tbf"];
    let limits = ["rate", &bits, "burst", &burst, "latency", SHAPER_LATENCY];
    words.into_iter().chain(limits).map(str::to_owned).collect()
}

/// Those of the machine's ports that drop everything.
///
/// # Errors
/// What bridge said.
pub(crate) async fn cut_links() -> Result<BTreeSet<String>, LabError> {
    Ok(parse_cut(&Tools::that_look().run("bridge", ["-json", "link", "show"]).await?))
}

#[derive(Deserialize)]
struct Port {
    ifname: String,
    #[serde(default)]
    state: String,
}

fn parse_cut(json: &str) -> BTreeSet<String> {
    let ports: Vec<Port> = serde_json::from_str(json).unwrap_or_default();
    ports.into_iter().filter(|port| port.state == "disabled").map(|port| port.ifname).collect()
}

/// The rates to which the machine's links are limited.
///
/// # Errors
/// What tc said.
pub(crate) async fn rates() -> Result<BTreeMap<String, Rate>, LabError> {
    Ok(parse_rates(&Tools::that_look().run("tc", ["-json", "qdisc", "show"]).await?))
}

#[derive(Deserialize)]
struct Discipline {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    dev: String,
    #[serde(default)]
    options: Options,
}

#[derive(Default, Deserialize)]
struct Options {
    /// In bytes a second.
    #[serde(default)]
    rate: u64,
}

fn parse_rates(json: &str) -> BTreeMap<String, Rate> {
    let all: Vec<Discipline> = serde_json::from_str(json).unwrap_or_default();
    let shapers = all.into_iter().filter(|one| one.kind == "tbf");
    shapers.map(|one| (one.dev, Rate::of_bytes_per_s(one.options.rate))).collect()
}

/// Refuses a range in which something else on this machine has an address, such as another lab.
///
/// # Errors
/// [`LabError::Spec`], or what ip said.
pub(crate) async fn refuse_overlap(spec: &LabSpec) -> Result<(), LabError> {
    let addresses = Tools::that_look().run("ip", ["-json", "-4", "addr", "show"]).await?;
    let others = parse_in_the_way(&addresses, &names::lab_wide(&spec.name), spec.subnet);
    if others.is_empty() {
        return Ok(());
    }
    let fault = format!("{} is in use on this machine by {}", spec.subnet, others.join(", "));
    Err(LabError::Spec { faults: vec![fault] })
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    local: Option<Ipv4Addr>,
}

fn parse_in_the_way(json: &str, bridge: &str, subnet: Subnet) -> Vec<String> {
    let interfaces: Vec<Interface> = serde_json::from_str(json).unwrap_or_default();
    let meets =
        |one: &Interface| one.addr_info.iter().filter_map(|at| at.local).any(|at| subnet.contains(at));
    interfaces.into_iter().filter(|one| one.ifname != bridge && meets(one)).map(|one| one.ifname).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_masqueraded_only_on_their_way_out() {
        let text = table_text("rw-dev", "10.77.0.0/24".parse().unwrap());
        insta::assert_snapshot!(text, @r#"
        table ip rw-dev {
          chain post {
            type nat hook postrouting priority 100;
            ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 oifname != "rw-dev" masquerade
          }
        }
        "#);
    }

    #[test]
    fn a_shaped_link_waits_at_most_as_long_as_its_buffer() {
        let words = shaper("vb-dev-ml1", "200mbit".parse().unwrap()).join(" ");
        let expected = "qdisc replace dev vb-dev-ml1 root tbf rate 200000000bit burst 262144 latency 50ms";
        assert_eq!(words, expected);
    }

    #[test]
    fn only_disabled_ports_count_as_cut() {
        let json =
            r#"[{"ifname":"vb-a","state":"disabled"},{"ifname":"vb-b","state":"forwarding"},{"ifname":"c"}]"#;
        assert_eq!(parse_cut(json), BTreeSet::from(["vb-a".to_owned()]));
        assert!(parse_cut("").is_empty());
    }

    #[test]
    fn a_limited_link_shows_its_rate_in_bits() {
        let json = r#"[{"kind":"noqueue","dev":"lo","options":{}},
            {"kind":"tbf","dev":"vb-a","root":true,"options":{"rate":25000000,"burst":262125,"lat":50000}}]"#;
        assert_eq!(parse_rates(json), BTreeMap::from([("vb-a".to_owned(), "200mbit".parse().unwrap())]));
    }

    #[test]
    fn an_interface_in_the_range_is_named_unless_it_is_the_labs_own() {
        let json = r#"[{"ifname":"lo","addr_info":[{"local":"127.0.0.1"}]},
            {"ifname":"vpn0","addr_info":[{"local":"10.77.0.200"}]},
            {"ifname":"rw-dev","addr_info":[{"local":"10.77.0.1"}]},{}]"#;
        let subnet = "10.77.0.0/24".parse().unwrap();
        assert_eq!(parse_in_the_way(json, "rw-dev", subnet), ["vpn0"]);
        assert_eq!(parse_in_the_way(json, "rw-test", subnet), ["vpn0", "rw-dev"]);
    }
}
