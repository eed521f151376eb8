//! What this server is, read from files only: /proc, /sys, os-release, the package database.
//!
//! Gathering facts changes nothing and forks nothing. Every path is taken below a root, so that recorded
//! trees of other servers are fixtures. What comes and goes with pods (their interfaces and mounts) is
//! left out: a plan is bound to the digest of the facts.

mod disks;
mod limits;
mod nics;
mod platform;

use rackwright_wire::facts::{Cpu, Disk, FACTS_VERSION, Facts, Gpu, Identity, Memory};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use platform::module_present;

/// Packages whose presence changes what can be planned.
const NOTABLE_PACKAGES: [&str; 18] = [
    "apparmor",
    "chrony",
    "clickhouse-server",
    "containerd",
    "containerd.io",
    "docker-ce",
    "docker.io",
    "etcd-server",
    "iptables",
    "kubelet",
    "nftables",
    "nvidia-driver",
    "openssh-server",
    "runc",
    "snapd",
    "systemd",
    "ufw",
    "unattended-upgrades",
];

/// Units of other provisioners, which clash with ours when they exist.
const NOTABLE_UNITS: [&str; 6] = [
    "docker.service",
    "firewalld.service",
    "k0sworker.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-agent.service",
];

/// Facts could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct FactsError {
    path: PathBuf,
    source: io::Error,
}

/// Reads the facts of the server whose root is `root`, at `now_s` seconds after the epoch.
///
/// # Errors
/// When an identity (machine id, SSH host key) or a basic file of /proc cannot be read; what a server may
/// lack is left empty instead.
pub fn read(root: &Path, now_s: u64) -> Result<Facts, FactsError> {
    let tree = Tree { root };
    let os = platform::os(&tree)?;
    let total_bytes = limits::memory_total(&tree)?;
    let cpu = cpu(&tree, os.cgroup_version)?;
    Ok(Facts {
        version: FACTS_VERSION,
        identity: identity(&tree)?,
        memory: Memory { total_bytes, allowed_bytes: limits::memory(&tree, os.cgroup_version, total_bytes) },
        cpu,
        disks: disks::read(&tree),
        nics: nics::read(&tree),
        gpus: gpus(&tree),
        software: software(&tree),
        os,
        read_at_s: now_s,
    })
}

/// Mounted file systems of the server whose root is `root`.
pub(crate) fn mounted(root: &Path) -> Vec<Disk> {
    disks::mounted(&Tree { root })
}

/// Bytes of memory that the server may use; `None` when the kernel does not say.
pub(crate) fn memory_allowed(root: &Path) -> Option<u64> {
    let tree = Tree { root };
    let total = limits::memory_total(&tree).ok()?;
    Some(limits::memory(&tree, platform::cgroup_version(&tree), total))
}

/// Bytes of memory that the server's control group uses, without what can be dropped at once.
pub(crate) fn memory_used(root: &Path) -> Option<u64> {
    let tree = Tree { root };
    limits::memory_used(&tree, platform::cgroup_version(&tree))
}

/// Files below a root.
pub(crate) struct Tree<'a> {
    pub(crate) root: &'a Path,
}

impl Tree<'_> {
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// A file's text without the last line end.
    fn required(&self, absolute: &str) -> Result<String, FactsError> {
        let path = self.path(absolute);
        let text = fs::read_to_string(&path).map_err(|source| FactsError { path, source })?;
        Ok(text.trim_end().to_owned())
    }

    /// The same where a server may lack the file.
    pub(crate) fn optional(&self, absolute: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(absolute)).ok()?.trim_end().to_owned())
    }

    pub(crate) fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }

    /// Names in a folder, sorted; none when there is no such folder.
    pub(crate) fn names(&self, absolute: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(absolute)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn identity(tree: &Tree<'_>) -> Result<Identity, FactsError> {
    Ok(Identity {
        machine_id: tree.required("/etc/machine-id")?,
        hostname: tree.required("/proc/sys/kernel/hostname")?,
        host_key: tree
            .optional("/etc/ssh/ssh_host_ed25519_key.pub")
            .and_then(|line| fingerprint(&line))
            .unwrap_or_default(),
    })
}

/// `SHA256:…` of a public key line, as `ssh-keygen -l` prints it.
fn fingerprint(line: &str) -> Option<String> {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    use sha2::{Digest, Sha256};
    let blob = STANDARD.decode(line.split_ascii_whitespace().nth(1)?).ok()?;
    Some(format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob))))
}

fn cpu(tree: &Tree<'_>, cgroup_version: u8) -> Result<Cpu, FactsError> {
    let info = tree.required("/proc/cpuinfo")?;
    let listed = info.lines().filter(|line| line.starts_with("processor")).count();
    let online = tree.optional("/sys/devices/system/cpu/online").map_or(0, |list| limits::count(&list));
    let logical = if online > 0 { online } else { u32::try_from(listed).unwrap_or(u32::MAX) };
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(String::new, |(_, model)| model.trim().to_owned());
    let nodes = tree.optional("/sys/devices/system/node/online").map_or(1, |list| limits::count(&list));
    Ok(Cpu {
        logical,
        allowed_milli: limits::cpu_milli(tree, cgroup_version, logical),
        model,
        numa_nodes: nodes.max(1),
    })
}

/// PCI devices of class 03 (display) and 12 (processing accelerators).
fn gpus(tree: &Tree<'_>) -> Vec<Gpu> {
    const BUS: &str = "/sys/bus/pci/devices";
    let hex = |pci: &str, file: &str| {
        let text = tree.optional(&format!("{BUS}/{pci}/{file}"))?;
        text.strip_prefix("0x").map(str::to_owned)
    };
    tree.names(BUS)
        .into_iter()
        .filter(|pci| {
            hex(pci, "class").is_some_and(|class| class.starts_with("03") || class.starts_with("12"))
        })
        .filter_map(|pci| {
            let id = format!("{}:{}", hex(&pci, "vendor")?, hex(&pci, "device")?);
            Some(Gpu { pci, id })
        })
        .collect()
}

fn software(tree: &Tree<'_>) -> BTreeMap<String, String> {
    let packages = crate::dpkg::read(&tree.path(crate::dpkg::STATUS)).unwrap_or_default();
    let mut software: BTreeMap<String, String> = NOTABLE_PACKAGES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), packages.get(*name)?.clone())))
        .collect();
    for unit in NOTABLE_UNITS {
        let folders = ["/etc/systemd/system", "/lib/systemd/system"];
        if folders.iter().any(|folder| tree.exists(&format!("{folder}/{unit}"))) {
            software.insert(unit.to_owned(), "unit present".to_owned());
        }
    }
    software
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_what_ssh_keygen_prints() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl github";
        assert_eq!(fingerprint(line).as_deref(), Some("SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"));
    }

    #[test]
    fn a_tree_that_is_no_server_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/sys/kernel")).unwrap();
        let error = read(dir.path(), 0).unwrap_err().to_string();
        assert!(error.starts_with("read ") && error.ends_with("/etc/os-release"), "{error}");
    }
}
