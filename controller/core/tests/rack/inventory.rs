//! Bad inventories: everything that is wrong is found at once, with its line and a hint.

use super::{LAB, container_v1, lab, metal_v2, print};
use rackwright_core::inventory::{Inventory, Role, reserve};
use rackwright_wire::units::{Bytes, MilliCpu};
use std::fmt::Write as _;

/// One change each to an inventory that is right.
const SLIPS: &[(&str, &str, &str)] = &[
    (
        "unknown key with a near one",
        "rack = \"r1\"\nswitch = \"s1\"\ncontract = { monthly = \"44.00\"",
        "rak = \"r1\"\nswitch = \"s1\"\ncontract = { monthly = \"44.00\"",
    ),
    ("unknown key without a near one", "cni = \"routes\"", "cni = \"routes\"\ncolour = \"red\""),
    ("unknown key in an inline table", "memory = \"3GiB\", cpu = \"2\"", "memory = \"3GiB\", cpus = \"2\""),
    ("wrong unit of memory", "system_memory = \"128MiB\"", "system_memory = \"128 apples\""),
    ("unit missing", "data_memory = \"256MiB\"", "data_memory = 256"),
    ("memory where CPU belongs", "kube_cpu = \"100m\"", "kube_cpu = \"1GiB\""),
    ("wrong unit of a lab server", "cpu = \"1500m\", disk = \"8GiB\"", "cpu = \"1500 mhz\", disk = 8"),
    ("price with its currency", "monthly = \"44.00\"", "monthly = \"44.00 EUR\""),
    ("no date", "since = \"2026-01-01\"", "since = \"2026-02-30\""),
    ("duplicate address", "address = \"10.77.0.13\"", "address = \"10.77.0.12\""),
    ("duplicate name", "name = \"ml2\"", "name = \"ml1\""),
    ("address of another network", "address = \"10.77.0.13\"", "address = \"10.78.0.13\""),
    ("no address", "address = \"10.77.0.13\"", "address = \"ml1.example\""),
    ("missing role", "role = \"results\"", "role = \"dev\""),
    ("unknown role", "role = \"results\"", "role = \"result\""),
    (
        "no role at all",
        "name = \"results1\"\naddress = \"10.77.0.15\"\nrole = \"results\"",
        "name = \"results1\"\naddress = \"10.77.0.15\"",
    ),
    ("even number of control servers", "role = \"data\"\nprovider", "role = \"control\"\nprovider"),
    ("pods overlap services", "service_cidr = \"10.96.0.0/16\"", "service_cidr = \"10.42.128.0/17\""),
    ("pods overlap servers", "pod_cidr = \"10.42.0.0/16\"", "pod_cidr = \"10.64.0.0/10\""),
    ("host bits", "pod_cidr = \"10.42.0.0/16\"", "pod_cidr = \"10.42.0.1/16\""),
    ("too few pod ranges", "pod_cidr = \"10.42.0.0/16\"", "pod_cidr = \"10.42.0.0/22\""),
    ("no room for Services", "service_cidr = \"10.96.0.0/16\"", "service_cidr = \"10.96.0.0/32\""),
    ("the lab elsewhere", "range = \"10.77.0.0/24\"", "range = \"10.79.0.0/24\""),
    (
        "inline secret",
        "minio_secret_key = \"file:~/.local/state/rackwright/lab/secrets/minio\"",
        "minio_secret_key = \"hunter2hunter2\"",
    ),
    ("unknown bastion", "role = \"data\"\nprovider", "role = \"data\"\nbastion = \"controll1\"\nprovider"),
    ("bastion of itself", "role = \"data\"\nprovider", "role = \"data\"\nbastion = \"data1\"\nprovider"),
    (
        "kernel name of a disk",
        "role = \"data\"\nprovider",
        "role = \"data\"\ndisks = [\"/dev/sda\", \"sdb\"]\nprovider",
    ),
    ("no exact version", "kubernetes = \"1.36.3\"", "kubernetes = \"v1.36\""),
    (
        "host key instead of its fingerprint",
        "role = \"data\"\nprovider",
        "role = \"data\"\nssh = { host_key = \"ssh-ed25519 AAAA\" }\nprovider",
    ),
    ("upper case", "name = \"data1\"", "name = \"Data1\""),
    ("bucket of a table", "table = \"apt.packages\"", "bucket = \"apt\""),
    ("bucket of another folder", "bucket = \"apt-indexes\"", "bucket = \"../etc\""),
    ("bucket in upper case", "bucket = \"bulk\"", "bucket = \"Bulk\""),
    ("a contract of no month", "term_months = 1", "term_months = 0"),
    ("data in the agent's folder", "data_dir = \"/data/rackwright\"", "data_dir = \"/var/lib/rackwright\""),
    ("data in a system folder", "data_dir = \"/data/rackwright\"", "data_dir = \"/etc//rackwright\""),
    ("data around the kubelet's folder", "data_dir = \"/data/rackwright\"", "data_dir = \"/var/lib\""),
    ("more replicas than servers", "target_nodes = 2", "target_nodes = 9"),
    ("success of more than there are", "[lab]\n", "[cluster.success]\nml = 3\n[lab]\n"),
    ("port out of range", "port = 22", "port = 70000"),
    ("port of ours", "clickhouse_port = 8123", "clickhouse_port = 6443"),
    ("two databases on one port", "minio_port = 9000", "minio_port = 8123"),
    ("the network's broadcast address", "address = \"10.77.0.15\"", "address = \"10.77.0.255\""),
    ("the bridge's own address", "address = \"10.77.0.14\"", "address = \"10.77.0.1\""),
    (
        "a currency that nobody else has",
        "monthly = \"64.00\", setup = \"0\", currency = \"EUR\"",
        "monthly = \"64.00\", setup = \"0\", currency = \"EUX\"",
    ),
    ("not TOML", "[lab]\n", "[lab\n"),
    ("a server of no lab", "[lab]\nrange = \"10.77.0.0/24\"\n", ""),
];

fn findings(text: &str) -> String {
    match Inventory::parse("inventory/lab.toml", text) {
        Ok(_) => "(accepted)\n".to_owned(),
        Err(found) => print(&found),
    }
}

#[test]
fn every_slip_is_named_with_its_line_and_a_hint() {
    let mut golden = String::new();
    for (name, right, wrong) in SLIPS {
        assert!(LAB.contains(right), "{name}: the lab's inventory has no {right:?} any more");
        let found = findings(&LAB.replacen(right, wrong, 1));
        assert_ne!(found, "(accepted)\n", "{name}");
        writeln!(golden, "# {name}\n{found}").unwrap();
    }
    insta::assert_snapshot!(golden);
}

#[test]
fn all_slips_of_a_file_are_found_at_once() {
    let skipped = ["not TOML", "a server of no lab", "no role at all"];
    let mut text = LAB.to_owned();
    for (_, right, wrong) in SLIPS.iter().filter(|(name, ..)| !skipped.contains(name)) {
        text = text.replacen(right, wrong, 1);
    }
    let found = findings(&text);
    insta::assert_snapshot!(found);
}

#[test]
fn a_secret_never_appears_in_a_finding() {
    let wrong = LAB.replace("file:~/.local/state/rackwright/lab/secrets/", "hunter2-");
    assert!(!findings(&wrong).contains("hunter2"));
}

#[test]
fn an_empty_file_says_what_is_missing() {
    insta::assert_snapshot!(findings(""));
}

#[test]
fn the_commented_example_is_right_and_complete() {
    let text = include_str!("../../../../inventory/example.toml");
    let inventory =
        Inventory::parse("inventory/example.toml", text).unwrap_or_else(|found| panic!("{}", print(&found)));
    assert_eq!(inventory.servers.len(), 5);
    assert_eq!(inventory.server("gpu-1").unwrap().ssh.port, 2222);
    assert_eq!(inventory.server("gpu-1").unwrap().bastion.as_deref(), Some("ctl-1"));
    assert_eq!(inventory.cluster.success.get(&Role::Ml), Some(&1));
}

#[test]
fn servers_get_pod_ranges_in_the_order_of_the_file() {
    let lab = lab();
    let range = |name| lab.pod_cidr_of(name).map(|range| range.to_string());
    assert_eq!(range("control1").as_deref(), Some("10.42.0.0/24"));
    assert_eq!(range("results1").as_deref(), Some("10.42.4.0/24"));
    assert_eq!(range("nobody"), None);
    assert_eq!(lab.api_service_ip().unwrap().to_string(), "10.96.0.1");
}

#[test]
fn a_kubelet_in_a_control_group_offers_what_the_group_allows_minus_our_share() {
    let lab = lab();
    let facts = container_v1();
    for role in Role::ALL {
        let reserved = reserve(&lab.cluster.reservations, &facts, role).unwrap();
        // What the kubelet computes: capacity - systemReserved - kubeReserved - evictionHard.
        let memory = facts.memory.total_bytes
            - reserved.kubelet_system.memory_bytes.get()
            - reserved.kube.memory_bytes.get()
            - reserved.eviction_bytes.get();
        let cpu = u64::from(facts.cpu.logical) * 1000
            - reserved.kubelet_system.cpu_milli.get()
            - reserved.kube.cpu_milli.get();
        assert_eq!(
            (cpu, memory),
            (reserved.allocatable.cpu_milli.get(), reserved.allocatable.memory_bytes.get())
        );
        assert!(memory < facts.memory.allowed_bytes && cpu < facts.cpu.allowed_milli, "{role}");
    }
}

#[test]
fn a_whole_machine_hides_nothing() {
    let reserved =
        reserve(&rackwright_core::inventory::Reservations::default(), &metal_v2(), Role::Ml).unwrap();
    assert!(reserved.hidden.cpu_milli.is_zero() && reserved.hidden.memory_bytes.is_zero());
    assert_eq!(reserved.allocatable.cpu_milli, MilliCpu::new(32_000 - 500 - 500 - 2000).unwrap());
}

#[test]
fn a_server_smaller_than_its_reservations_is_refused() {
    let mut facts = container_v1();
    facts.memory.allowed_bytes = Bytes::mib(512).get();
    let error = reserve(&lab().cluster.reservations, &facts, Role::Ml).unwrap_err();
    assert_eq!(error.to_string(), "reserve 740 MiB of memory on a server that may use 512 MiB");
}
