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
use crate::spec::{LabName, LabSpec};
use std::collections::BTreeSet;
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
    (
        "etc/systemd/system/sysinit.target.wants/lab-writable.service",
        "../lab-writable.service",
    ),
    (
        "etc/systemd/system/multi-user.target.wants/lab-host-keys.service",
        "../lab-host-keys.service",
    ),
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

/// What an image is made of; its hash names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    packages: BTreeSet<String>,
    mirror: Option<String>,
}

impl Recipe {
    /// The recipe of a lab's image.
    pub fn of(spec: &LabSpec) -> Self {
        let own = PACKAGES.iter().map(|&name| name.to_owned());
        Self {
            packages: own.chain(spec.base_packages.iter().cloned()).collect(),
            mirror: spec.mirror.clone(),
        }
    }

    /// The image's name: the same recipe is the same image.
    pub fn name(&self) -> String {
        let text = format!(
            "{SUITE} {:?} {:?} {FILES:?} {LINKS:?}",
            self.packages, self.mirror
        );
        let hash = blake3::hash(text.as_bytes()).to_hex();
        format!("base-{}", hash.chars().take(16).collect::<String>())
    }

    /// The image's folder in a cache.
    pub fn place(&self, cache: &Path) -> PathBuf {
        cache.join(self.name())
    }

    /// Where a lab makes it.
    pub fn partial(&self, cache: &Path, lab: &LabName) -> PathBuf {
        cache.join(format!("{}.of-{lab}", self.name()))
    }

    fn words(&self, folder: &Path) -> Vec<OsString> {
        let packages: Vec<&str> = self.packages.iter().map(String::as_str).collect();
        let include = format!("--include={}", packages.join(","));
        // Synced once at the end instead of after each file.
        let options = [
            "mmdebstrap",
            "--variant=minbase",
            "--dpkgopt=force-unsafe-io",
            &include,
            SUITE,
        ];
        let mut words: Vec<OsString> = options.map(OsString::from).into();
        words.push(folder.into());
        words.extend(self.mirror.iter().map(OsString::from));
        words
    }
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
    pub(crate) async fn ensure(&self, recipe: &Recipe) -> Result<PathBuf, LabError> {
        let place = recipe.place(self.cache);
        if place.exists() {
            return Ok(place);
        }
        let _lock = Lock::take(&place.with_extension("lock"), BUILD).await?;
        if place.exists() {
            return Ok(place);
        }
        let partial = recipe.partial(self.cache, self.lab);
        self.debootstrap(recipe, &partial).await?;
        furnish(&partial)?;
        let folder = File::open(&partial).map_err(file_error("open", &partial))?;
        rustix::fs::syncfs(&folder).map_err(|cause| file_error("sync", &partial)(cause.into()))?;
        std::fs::rename(&partial, &place).map_err(file_error("rename", &partial))?;
        Ok(place)
    }

    async fn debootstrap(&self, recipe: &Recipe, folder: &Path) -> Result<(), LabError> {
        let group = names::build_group(self.lab);
        self.hierarchies.make(&group, None)?;
        let output = self.paths.base_log();
        let words = recipe.words(folder);
        let launch = Launch {
            server: None,
            groups: self.hierarchies.folders(&group),
            words: words.clone(),
            variables: &[],
            output: &output,
        };
        let (mut child, _) = launch.start(self.journal, self.boot).await?;
        let command = words.join(&OsString::from(" ")).to_string_lossy().into_owned();
        let ended = child.wait().await.map_err(|cause| LabError::Start {
            command: command.clone(),
            cause,
        })?;
        if !ended.success() {
            let said = crate::tool::tail(&std::fs::read(&output).unwrap_or_default());
            return Err(LabError::Tool {
                command,
                status: ended.to_string(),
                said,
            });
        }
        self.hierarchies.kill(&group).await?;
        self.hierarchies.remove(&group).await
    }
}

/// Adds our files and links, and takes away what belongs to one server only.
fn furnish(root: &Path) -> Result<(), LabError> {
    for stale in [
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/hostname",
        "etc/resolv.conf",
    ] {
        let _not_there = std::fs::remove_file(root.join(stale));
    }
    let ssh = root.join("etc/ssh");
    for entry in std::fs::read_dir(&ssh)
        .map_err(file_error("list", &ssh))?
        .flatten()
    {
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
    use crate::spec::tests::{lab, server};

    #[test]
    fn the_name_changes_with_what_goes_in_and_with_nothing_else() {
        let spec = lab(vec![server("ml1", 11)]);
        let other_servers = lab(vec![server("ml1", 11), server("ml2", 12)]);
        assert_eq!(Recipe::of(&spec).name(), Recipe::of(&other_servers).name());
        let mut more = spec.clone();
        more.base_packages = vec!["runc".to_owned()];
        assert_ne!(Recipe::of(&spec).name(), Recipe::of(&more).name());
        let mut same = spec.clone();
        same.base_packages = vec!["systemd".to_owned()];
        assert_eq!(Recipe::of(&spec).name(), Recipe::of(&same).name());
    }

    #[test]
    fn an_image_carries_nothing_of_one_server() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_config",
            "etc/hostname",
            "etc/machine-id",
        ] {
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
