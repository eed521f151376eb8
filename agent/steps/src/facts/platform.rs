//! Distribution, kernel, and which of the kernel's parts are there.

use super::{FactsError, Tree};
use rackwright_wire::facts::Os;
use std::path::Path;

/// Modules that Kubernetes and our network need, with where a built-in one shows.
const MODULES: [(&str, &[&str]); 8] = [
    ("br_netfilter", &["/proc/sys/net/bridge/bridge-nf-call-iptables"]),
    ("bridge", &["/sys/module/bridge", "/proc/sys/net/bridge"]),
    ("ip_tables", &["/sys/module/ip_tables", "/proc/net/ip_tables_names"]),
    ("nf_conntrack", &["/sys/module/nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max"]),
    ("nf_tables", &["/sys/module/nf_tables", "/proc/sys/net/netfilter/nf_hooks_lwtunnel"]),
    ("overlay", &["/sys/module/overlay"]),
    ("veth", &["/sys/module/veth"]),
    ("vxlan", &["/sys/module/vxlan"]),
];

pub(super) fn os(tree: &Tree<'_>) -> Result<Os, FactsError> {
    let release = tree.required("/etc/os-release")?;
    let kernel = tree.required("/proc/sys/kernel/osrelease")?;
    let modules = MODULES
        .iter()
        .filter(|(name, _)| module_present(tree.root, name))
        .map(|(name, _)| (*name).to_owned())
        .collect();
    Ok(Os {
        id: release_field(&release, "ID"),
        codename: release_field(&release, "VERSION_CODENAME"),
        kernel,
        arch: std::env::consts::ARCH.to_owned(),
        cgroup_version: cgroup_version(tree),
        systemd: tree.exists("/run/systemd/system"),
        container: tree.exists("/run/systemd/container") || tree.exists("/run/host/container-manager"),
        modules,
        swap: tree.optional("/proc/swaps").is_some_and(|swaps| swaps.lines().count() > 1),
    })
}

/// 2 when the unified hierarchy is the only one; a hybrid machine counts as 1.
pub(super) fn cgroup_version(tree: &Tree<'_>) -> u8 {
    if tree.exists("/sys/fs/cgroup/cgroup.controllers") { 2 } else { 1 }
}

fn release_field(release: &str, key: &str) -> String {
    let value = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

/// Whether the kernel below `root` has this module, loaded or built in.
///
/// Built-in modules without parameters leave no folder in /sys/module, and a machine may have no
/// /lib/modules; then what the module provides is the evidence.
pub fn module_present(root: &Path, name: &str) -> bool {
    let tree = Tree { root };
    let loaded = tree
        .optional("/proc/modules")
        .is_some_and(|modules| modules.lines().any(|line| line.split(' ').next() == Some(name)));
    loaded || tree.exists(&format!("/sys/module/{name}")) || shows(&tree, name) || built_in(&tree, name)
}

fn shows(tree: &Tree<'_>, name: &str) -> bool {
    // A container may have no /sys/module at all; a file system shows in this list.
    let file_systems = tree.optional("/proc/filesystems").unwrap_or_default();
    if file_systems.lines().any(|line| line.split_ascii_whitespace().next_back() == Some(name)) {
        return true;
    }
    MODULES
        .iter()
        .filter(|(module, _)| *module == name)
        .any(|(_, evidence)| evidence.iter().any(|path| tree.exists(path)))
}

fn built_in(tree: &Tree<'_>, name: &str) -> bool {
    let Some(kernel) = tree.optional("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let list = tree.optional(&format!("/lib/modules/{kernel}/modules.builtin")).unwrap_or_default();
    let dashed = name.replace('_', "-");
    list.lines().any(|line| {
        let file = line.rsplit('/').next().unwrap_or_default();
        let module = file.split(".ko").next().unwrap_or_default();
        module == name || module == dashed
    })
}
