//! Disks: mounted file systems on real devices, and whole disks that nobody mounted.
//!
//! Mounts of pods, container root file systems and single bound files are not a server's disks.

use super::Tree;
use rackwright_wire::facts::Disk;
use std::collections::BTreeMap;
use std::path::Path;

/// Mount points below these come and go, or are single files that a container manager bound in.
const NOT_OURS: [&str; 8] =
    ["/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/var/lib/kubelet/", "/var/lib/containerd/"];
/// Virtual block devices that never hold data.
const VIRTUAL: [&str; 6] = ["ram", "zram", "loop", "dm-", "nbd", "sr"];
const SECTOR: u64 = 512;

pub(super) fn read(tree: &Tree<'_>) -> Vec<Disk> {
    let mut disks = mounted(tree);
    let mounted: Vec<String> = disks.iter().map(|disk| disk.device.clone()).collect();
    disks.extend(
        tree.names("/sys/block")
            .into_iter()
            .filter(|name| !VIRTUAL.iter().any(|prefix| name.starts_with(prefix)))
            .filter(|name| !mounted.contains(name) && !is_in_use(tree, name))
            .map(|name| Disk {
                wwn: wwn(tree, &name),
                mount: None,
                fs: None,
                size_bytes: device_size(tree, &name).unwrap_or(0),
                device: name,
            }),
    );
    disks
}

pub(super) fn mounted(tree: &Tree<'_>) -> Vec<Disk> {
    let table = tree
        .optional("/proc/self/mountinfo")
        .or_else(|| tree.optional("/proc/1/mountinfo"))
        .unwrap_or_default();
    // By mount point: a later mount at the same place hides the earlier one.
    let topmost: BTreeMap<_, _> =
        table.lines().filter_map(|line| disk(tree, line)).map(|disk| (disk.mount.clone(), disk)).collect();
    topmost.into_values().collect()
}

/// One line of mountinfo (proc(5)): `id parent dev root point options … - type source super`.
fn disk(tree: &Tree<'_>, line: &str) -> Option<Disk> {
    let (left, right) = line.split_once(" - ")?;
    let mount = left.split(' ').nth(4)?;
    let mut kind = right.split(' ');
    let (fs, source) = (kind.next()?, kind.next()?);
    let device = source.strip_prefix("/dev/")?;
    if NOT_OURS.iter().any(|prefix| mount.starts_with(prefix)) || fs == "devtmpfs" {
        return None;
    }
    let size_bytes = file_system_size(tree, mount).or_else(|| device_size(tree, device)).unwrap_or(0);
    Some(Disk {
        device: device.to_owned(),
        wwn: wwn(tree, device),
        mount: Some(mount.to_owned()),
        fs: Some(fs.to_owned()),
        size_bytes,
    })
}

/// Asks the file system itself, which only the running server has; a recorded tree has device sizes.
fn file_system_size(tree: &Tree<'_>, mount: &str) -> Option<u64> {
    if tree.root != Path::new("/") {
        return None;
    }
    let stat = rustix::fs::statvfs(mount).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Whether a disk has partitions, or belongs to a RAID or a volume group.
fn is_in_use(tree: &Tree<'_>, disk: &str) -> bool {
    let folder = format!("/sys/block/{disk}");
    !tree.names(&format!("{folder}/holders")).is_empty()
        || tree.names(&folder).iter().any(|name| name.starts_with(disk))
}

fn device_size(tree: &Tree<'_>, device: &str) -> Option<u64> {
    let sectors: u64 = tree.optional(&format!("/sys/class/block/{device}/size"))?.parse().ok()?;
    Some(sectors.saturating_mul(SECTOR))
}

/// World-wide name or serial of the disk, or of the disk that a partition is on.
fn wwn(tree: &Tree<'_>, device: &str) -> Option<String> {
    let disk = device.trim_end_matches(|c: char| c.is_ascii_digit());
    let disk = if device.starts_with("nvme") { disk.trim_end_matches('p') } else { disk };
    [device, disk].iter().find_map(|name| {
        ["wwid", "device/wwid", "device/serial", "serial"].iter().find_map(|file| {
            let text = tree.optional(&format!("/sys/class/block/{name}/{file}"))?;
            (!text.trim().is_empty()).then(|| text.trim().to_owned())
        })
    })
}
