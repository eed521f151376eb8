//! The Debian image that all servers share as the lower layer of their overlays.
//!
//! Made once for each recipe into the user's cache, beside its final place and renamed there, so that an image
//! that is there is whole. Bookworm, because its systemd 252 is the last that still takes cgroup v1.

use crate::error::{LabError, file_error};
use crate::group::Hierarchies;
use crate::launch::Launch;
use crate::lock::Lock;
use crate::names;
use crate::paths::LabPaths;
use crate::record::Journal;
use crate::spec::LabName;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// How long another lab's making of the same image is waited for.
const BUILD: Duration = Duration::from_mins(10);
/// What making it usually takes, for those who wait.
pub const USUAL_S: u64 = 60;
/// What it usually measures.
pub const USUAL_MIB: u32 = 250;

const SUITE: &str = "bookworm";
/// What a rented server brings, and what kubelets call.
const PACKAGES: [&str; 19] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "iproute2",
    "iptables",
    "nftables",
    "conntrack",
    "kmod",
    "ca-certificates",
    "curl",
    "procps",
    "ethtool",
    "socat",
    "util-linux",
    "mount",
    "iputils-ping",
    "zstd",
    "sudo",
];

/// Files of our own: path, mode, content.
const FILES: [(&str, u32, &str); 4] = [
    // systemd-nspawn mounts v1's hierarchies and /proc/sys read-only; a rented server has them writable.
    (
        "etc/systemd/system/lab-writable.service",
        0o644,
        "[Unit]\nDescription=Control groups and kernel settings as on a machine of its own\n\
         DefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/bin/sh -c 'mount -o remount,bind,rw /sys/fs/cgroup; \
         for d in /sys/fs/cgroup/*; do mountpoint -q $d && mount -o remount,bind,rw $d || true; done; \
         mount -o remount,rw /proc/sys || true'\n",
    ),
    (
        "etc/systemd/system/lab-host-keys.service",
        0o644,
        "[Unit]\nDescription=SSH host keys of this server's own, made at its first boot\nBefore=ssh.service\n\
         ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/usr/bin/ssh-keygen -q -t ecdsa -N '' -f /etc/ssh/ssh_host_ecdsa_key\n\
         ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n",
    ),
    (
        "etc/ssh/sshd_config.d/10-lab.conf",
        0o644,
        "HostKey /etc/ssh/ssh_host_ed25519_key\nHostKey /etc/ssh/ssh_host_ecdsa_key\n\
         PasswordAuthentication no\nUseDNS no\n",
    ),
    ("etc/machine-id", 0o444, ""),
];

/// Links of our own: path, target.
const LINKS: [(&str, &str); 9] = [
    ("etc/systemd/system/sysinit.target.wants/lab-writable.service", "../lab-writable.service"),
    ("etc/systemd/system/multi-user.target.wants/lab-host-keys.service", "../lab-host-keys.service"),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/lib/systemd/system/systemd-networkd.service",
    ),
    // They would start by the clock in the middle of a measurement, on all servers at once.
    ("etc/systemd/system/apt-daily.timer", "/dev/null"),
    ("etc/systemd/system/apt-daily-upgrade.timer", "/dev/null"),
    ("etc/systemd/system/dpkg-db-backup.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_all.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_reap.service", "/dev/null"),
    ("etc/systemd/system/fstrim.timer", "/dev/null"),
];

/// The image's name: a hash of everything that goes in, so that the same recipe is the same image.
pub fn name() -> String {
    let text = format!("{SUITE} {PACKAGES:?} {FILES:?} {LINKS:?}");
    let hash = blake3::hash(text.as_bytes()).to_hex();
    format!("base-{}", hash.chars().take(16).collect::<String>())
}

/// The image's folder in a cache.
pub fn place(cache: &Path) -> PathBuf {
    cache.join(name())
}

/// Where a lab makes it.
pub fn partial(cache: &Path, lab: &LabName) -> PathBuf {
    cache.join(format!("{}.of-{lab}", name()))
}

fn words(folder: &Path) -> Vec<OsString> {
    let include = format!("--include={}", PACKAGES.join(","));
    // In mounts of its own, so that none stays behind when it is killed. Synced once at the end instead of after
    // each file.
    let builder = ["unshare", "--mount", "mmdebstrap", "--variant=minbase", "--dpkgopt=force-unsafe-io"];
    let words = builder.into_iter().chain([include.as_str(), SUITE]).map(OsString::from);
    words.chain([folder.into()]).collect()
}

/// What making an image needs beside the recipe.
#[derive(Debug)]
pub(crate) struct Workshop<'a> {
    pub(crate) lab: &'a LabName,
    pub(crate) cache: &'a Path,
    pub(crate) paths: &'a LabPaths,
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) journal: &'a Mutex<Journal>,
    pub(crate) boot: &'a str,
}

impl Workshop<'_> {
    /// Makes the image unless it is there; whoever comes second waits for the first.
    ///
    /// # Errors
    /// What mmdebstrap said, [`LabError::File`], [`LabError::Busy`].
    pub(crate) async fn ensure(&self) -> Result<PathBuf, LabError> {
        let place = place(self.cache);
        if place.exists() {
            return Ok(place);
        }
        let _lock = Lock::take(&place.with_extension("lock"), BUILD).await?;
        if place.exists() {
            return Ok(place);
        }
        let partial = partial(self.cache, self.lab);
        self.debootstrap(&partial).await?;
        furnish(&partial)?;
        let folder = File::open(&partial).map_err(file_error("open", &partial))?;
        rustix::fs::syncfs(&folder).map_err(|cause| file_error("sync", &partial)(cause.into()))?;
        std::fs::rename(&partial, &place).map_err(file_error("rename", &partial))?;
        Ok(place)
    }

    async fn debootstrap(&self, folder: &Path) -> Result<(), LabError> {
        let group = names::build_group(self.lab);
        self.hierarchies.make(&group, None)?;
        let output = self.paths.base_log();
        let words = words(folder);
        let launch = Launch {
            server: None,
            groups: self.hierarchies.folders(&group),
            words: words.clone(),
            variables: &[],
            output: &output,
        };
        let (mut child, _) = launch.start(self.journal, self.boot).await?;
        let command = words.join(&OsString::from(" ")).to_string_lossy().into_owned();
        let ended =
            child.wait().await.map_err(|cause| LabError::Start { command: command.clone(), cause })?;
        if !ended.success() {
            let said = crate::tool::tail(&std::fs::read(&output).unwrap_or_default());
            return Err(LabError::Tool { command, status: ended.to_string(), said });
        }
        self.hierarchies.kill(&group).await?;
        self.hierarchies.remove(&group).await
    }
}

/// Adds our files and links, and takes away what belongs to one server only.
fn furnish(root: &Path) -> Result<(), LabError> {
    for stale in ["etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/hostname", "etc/resolv.conf"] {
        let _not_there = std::fs::remove_file(root.join(stale));
    }
    let ssh = root.join("etc/ssh");
    for entry in std::fs::read_dir(&ssh).map_err(file_error("list", &ssh))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            std::fs::remove_file(entry.path()).map_err(file_error("remove", &entry.path()))?;
        }
    }
    for (path, mode, content) in FILES {
        place_file(&root.join(path), mode, content.as_bytes())?;
    }
    for (path, target) in LINKS {
        let link = root.join(path);
        make_parent(&link)?;
        let _not_there = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).map_err(file_error("link", &link))?;
    }
    Ok(())
}

/// Writes a file with its mode, and the folders above it.
///
/// # Errors
/// [`LabError::File`].
pub(crate) fn place_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), LabError> {
    make_parent(path)?;
    std::fs::write(path, content).map_err(file_error("write", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
        .map_err(file_error("set the mode of", path))
}

fn make_parent(path: &Path) -> Result<(), LabError> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(file_error("make", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_to_a_file_of_ours_has_its_file() {
        for (path, target) in LINKS {
            if let Some(unit) = target.strip_prefix("../") {
                assert!(FILES.iter().any(|(file, ..)| file.ends_with(unit)), "{path} points at nothing");
            }
        }
    }

    #[test]
    fn an_image_carries_nothing_of_one_server() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in ["etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_config", "etc/hostname", "etc/machine-id"] {
            place_file(&root.join(path), 0o644, b"x").unwrap();
        }
        furnish(root).unwrap();
        assert!(!root.join("etc/ssh/ssh_host_rsa_key").exists());
        assert!(!root.join("etc/hostname").exists());
        assert!(root.join("etc/ssh/ssh_config").exists());
        assert_eq!(std::fs::read_to_string(root.join("etc/machine-id")).unwrap(), "");
        let timer = std::fs::read_link(root.join("etc/systemd/system/apt-daily.timer")).unwrap();
        assert_eq!(timer, Path::new("/dev/null"));
    }
}
