//! Network interfaces and their addresses, from /sys/class/net and the kernel's routing tables in /proc.
//!
//! /proc lists local addresses without their interface; the most specific route that covers an address
//! names it, and a directly connected one gives the prefix length.

use super::Tree;
use rackwright_wire::facts::Nic;
use std::net::{Ipv4Addr, Ipv6Addr};

/// An IPv4 route of the main table.
struct Route {
    interface: String,
    network: u32,
    mask: u32,
    connected: bool,
}

pub(super) fn read(tree: &Tree<'_>) -> Vec<Nic> {
    let routes = routes(&tree.optional("/proc/net/route").unwrap_or_default());
    let local = local_addresses(&tree.optional("/proc/net/fib_trie").unwrap_or_default());
    let six = tree.optional("/proc/net/if_inet6").unwrap_or_default();
    tree.names("/sys/class/net")
        .into_iter()
        .filter_map(|name| {
            let mut addresses: Vec<String> = local.iter().filter_map(|ip| on(&routes, *ip, &name)).collect();
            addresses.extend(six.lines().filter_map(|line| global_v6(line, &name)));
            counts(tree, &name, &addresses).then(|| Nic {
                mtu: tree
                    .optional(&format!("/sys/class/net/{name}/mtu"))
                    .and_then(|mtu| mtu.parse().ok())
                    .unwrap_or(0),
                name,
                addresses,
            })
        })
        .collect()
}

/// A physical interface that is up, or a virtual one with addresses that is no bridge or bridge port of ours.
fn counts(tree: &Tree<'_>, name: &str, addresses: &[String]) -> bool {
    let has = |file: &str| tree.exists(&format!("/sys/class/net/{name}/{file}"));
    let up = tree.optional(&format!("/sys/class/net/{name}/operstate")).is_some_and(|state| state != "down");
    let physical = has("device");
    let inner = has("bridge") || has("brport") || has("master") || name == "lo";
    up && (physical || (!inner && !addresses.is_empty()))
}

/// `/proc/net/route`: interface, destination and gateway and mask in little-endian hex.
fn routes(table: &str) -> Vec<Route> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok().map(u32::swap_bytes);
            Some(Route {
                interface: (*fields.first()?).to_owned(),
                network: number(1)?,
                mask: number(7)?,
                connected: number(2)? == 0,
            })
        })
        .collect()
}

/// Addresses that `/proc/net/fib_trie` marks as the host's own, without loopback.
fn local_addresses(trie: &str) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        } else if line.contains("/32 host LOCAL") {
            found.extend(last.filter(|ip: &Ipv4Addr| !ip.is_loopback()));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// `address/prefix` when `interface` is the one that carries this address.
fn on(routes: &[Route], address: Ipv4Addr, interface: &str) -> Option<String> {
    let ip = u32::from(address);
    let best = routes
        .iter()
        .filter(|route| route.mask != 0 && ip & route.mask == route.network)
        .max_by_key(|route| (route.mask, route.connected))?;
    let prefix = if best.connected { best.mask.leading_ones() } else { 32 };
    (best.interface == interface).then(|| format!("{address}/{prefix}"))
}

/// A line of `/proc/net/if_inet6` (address, index, prefix, scope, flags, name) with global scope.
fn global_v6(line: &str, interface: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [address, _, prefix, "00", _, name] = fields.as_slice() else {
        return None;
    };
    let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
    let prefix = u8::from_str_radix(prefix, 16).ok()?;
    (*name == interface).then(|| format!("{address}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0101010A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        priv\t0000000A\t0100000A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn the_most_specific_route_names_the_interface() {
        let routes = routes(ROUTES);
        let at = |ip: [u8; 4], name: &str| on(&routes, Ipv4Addr::from(ip), name);
        assert_eq!(at([10, 77, 0, 11], "eth0").as_deref(), Some("10.77.0.11/24"));
        assert_eq!(at([10, 77, 0, 11], "priv"), None);
        assert_eq!(at([10, 0, 0, 2], "priv").as_deref(), Some("10.0.0.2/32"), "a point-to-point address");
        assert_eq!(at([192, 168, 0, 1], "eth0"), None, "the default route names nobody");
    }

    #[test]
    fn local_addresses_are_found_once() {
        let trie = "Main:\n  +-- 10.77.0.0/24\n     |-- 10.77.0.11\n        /32 host LOCAL\n     |-- 10.77.0.255\n        \
                    /32 link BROADCAST\nLocal:\n     |-- 10.77.0.11\n        /32 host LOCAL\n     |-- 127.0.0.1\n        \
                    /32 host LOCAL\n";
        assert_eq!(local_addresses(trie), [Ipv4Addr::new(10, 77, 0, 11)]);
    }
}
