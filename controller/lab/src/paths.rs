//! Where the lab keeps things: one folder of the machine for what lives with a lab, one of the user's for the
//! base image, which outlives it.

use crate::spec::LabName;
use std::path::{Path, PathBuf};

/// The folders of all labs on this machine.
#[derive(Debug, Clone)]
pub struct Paths {
    state: PathBuf,
    cache: PathBuf,
}

impl Paths {
    /// The machine's folder and the user's cache. The first is no user's: bridges, mounts and kernel
    /// settings are the machine's, and whoever asks must find the same record of them.
    pub fn of_this_machine() -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        Self {
            state: PathBuf::from("/var/lib/rackwright-lab"),
            cache: cache.unwrap_or_else(|| home().join(".cache")).join("rackwright/lab"),
        }
    }

    #[cfg(test)]
    pub(crate) fn at(state: &str, cache: &str) -> Self {
        Self { state: state.into(), cache: cache.into() }
    }

    /// The folder of all labs' state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder of base images.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// What was changed for all labs together.
    pub fn machine_record(&self) -> PathBuf {
        self.state.join("machine.json")
    }

    /// The lock that is held while what all labs share is changed.
    pub fn machine_lock(&self) -> PathBuf {
        self.state.join("machine.lock")
    }

    /// The lock that is held while a lab is changed.
    pub fn lock(&self, lab: &LabName) -> PathBuf {
        self.state.join(format!("lab-{lab}.lock"))
    }

    /// The folder in which each lab has its own.
    pub fn labs(&self) -> PathBuf {
        self.state.join("labs")
    }

    /// One lab's folder, below which everything of it lies.
    pub fn lab(&self, lab: &LabName) -> LabPaths {
        LabPaths { folder: self.labs().join(lab.as_str()) }
    }
}

/// One lab's folder.
#[derive(Debug, Clone)]
pub struct LabPaths {
    folder: PathBuf,
}

impl LabPaths {
    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The record of everything made.
    pub fn record(&self) -> PathBuf {
        self.folder.join("record.jsonl")
    }

    /// The operator's private key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("key")
    }

    /// The servers' host keys, in the format of OpenSSH.
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// What the base image's builder said.
    pub fn base_log(&self) -> PathBuf {
        self.folder.join("base.log")
    }

    /// One server's folders.
    pub fn server(&self, name: &str) -> ServerPaths {
        ServerPaths { folder: self.folder.join("servers").join(name) }
    }
}

/// One server's folders.
#[derive(Debug, Clone)]
pub struct ServerPaths {
    folder: PathBuf,
}

impl ServerPaths {
    /// Folders on the machine's own file system that a server sees instead of its overlay, because
    /// containerd's overlays, the kubelet's volumes and etcd's syncs need a real one.
    pub const REAL: [(&'static str, &'static str); 3] =
        [("containerd", "/var/lib/containerd"), ("kubelet", "/var/lib/kubelet"), ("etcd", "/var/lib/etcd")];

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The merged root, a mount while the server runs.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// What the server wrote over the base.
    pub fn upper(&self) -> PathBuf {
        self.folder.join("upper")
    }

    /// The overlay's work folder.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// The data disk's file.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("data.img")
    }

    /// The data disk's mount.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server wrote to its console.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// The SSH host key's public half.
    pub fn host_key(&self) -> PathBuf {
        self.upper().join("etc/ssh/ssh_host_ed25519_key.pub")
    }
}
