//! Control groups: each server has its own in every hierarchy, with its memory and CPU limits.
//!
//! Knows cgroup v1 (one hierarchy a controller), v2 (one for all) and both at once. What is done is computed as
//! a list of steps first, so that the v2 form has a golden text even where only v1 can be run: v1 with an empty v2
//! beside it is what servers have been raised under; v2 alone has not been run yet. Under v2,
//! systemd-nspawn puts the server's processes into `payload` and itself into `supervisor` below the group.

use crate::error::{LabError, file_error};
use crate::mount::Mount;
use crate::process;
use rackwright_wire::units::{Bytes, MilliCpu};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Length of the CPU quota's period, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// How long killed processes may take to go: they may have to finish a write to a slow disk.
const KILL: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(10);
/// Controllers that a server needs under v2.
const V2_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "io"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// One of v1's, with its controllers.
    V1(Vec<String>),
    /// v2, with all controllers.
    V2,
    /// v2 with none of them, because v1 has them all: it only groups processes.
    Beside,
}

/// A server's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory.
    pub memory: Bytes,
    /// CPU time per time.
    pub cpus: MilliCpu,
}

/// All hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies(Vec<Hierarchy>);

/// One step towards a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Make {
        folder: PathBuf,
    },
    /// v1's cpuset starts empty and takes no process until it has CPUs and memory nodes.
    Copy {
        from: PathBuf,
        to: PathBuf,
    },
    Write {
        file: PathBuf,
        value: String,
        needed: bool,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { folder } => write!(f, "make {}", folder.display()),
            Self::Copy { from, to } => write!(f, "copy {} to {}", from.display(), to.display()),
            Self::Write { file, value, needed } => {
                write!(
                    f,
                    "write {value} to {}{}",
                    file.display(),
                    if *needed { "" } else { " if it is there" }
                )
            }
        }
    }
}

impl Hierarchies {
    /// The hierarchies among the machine's mounts.
    pub(crate) fn among(mounts: &[Mount]) -> Self {
        let ours = |mount: &&Mount| mount.root == "/" && mount.path.starts_with("/sys/fs/cgroup");
        let has_v1 = mounts.iter().filter(ours).any(|mount| mount.kind == "cgroup");
        let hierarchy = |mount: &Mount| {
            let kind = match mount.kind.as_str() {
                "cgroup" => Kind::V1(mount.options.split(',').map(str::to_owned).collect()),
                "cgroup2" if has_v1 => Kind::Beside,
                "cgroup2" => Kind::V2,
                _ => return None,
            };
            Some(Hierarchy { root: mount.path.clone(), kind })
        };
        Self(mounts.iter().filter(ours).filter_map(hierarchy).collect())
    }

    /// In words.
    pub fn version(&self) -> &'static str {
        let has = |kind: &Kind| self.0.iter().any(|hierarchy| hierarchy.kind == *kind);
        match (has(&Kind::V2), has(&Kind::Beside)) {
            (true, _) => "v2",
            (false, true) => "v1 with v2 beside it",
            (false, false) if self.0.is_empty() => "none",
            (false, false) => "v1",
        }
    }

    /// How many hierarchies there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The folders of a group, one for each hierarchy.
    pub(crate) fn folders(&self, group: &str) -> Vec<PathBuf> {
        self.0.iter().map(|hierarchy| hierarchy.root.join(group)).collect()
    }

    /// Makes a group and those above it, with limits on the group itself.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub(crate) fn make(&self, group: &str, limits: Option<Limits>) -> Result<(), LabError> {
        self.0.iter().flat_map(|hierarchy| hierarchy.steps(group, limits)).try_for_each(|step| step.run())
    }

    /// Under v2 the server sees `payload` as its root: it reads its own limits there.
    pub(crate) fn show_limits(&self, group: &str, limits: Limits) {
        for hierarchy in self.0.iter().filter(|hierarchy| hierarchy.kind == Kind::V2) {
            let payload = hierarchy.root.join(group).join("payload");
            for step in limit_steps(&payload, &Kind::V2, limits).into_iter().filter(|_| payload.exists()) {
                // The group above holds the limits in any case.
                let _shown = step.run();
            }
        }
    }

    /// Every process in a group and those below it.
    pub(crate) fn members(&self, group: &str) -> BTreeSet<i32> {
        let mut members = BTreeSet::new();
        for folder in self.folders(group) {
            for below in tree(&folder) {
                let text = std::fs::read_to_string(below.join("cgroup.procs")).unwrap_or_default();
                members.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
            }
        }
        members
    }

    /// Kills every process in a group and those below it.
    ///
    /// # Errors
    /// [`LabError::Late`] when some outlive it.
    pub(crate) async fn kill(&self, group: &str) -> Result<(), LabError> {
        let deadline = Instant::now() + KILL;
        loop {
            let members = self.members(group);
            if members.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let detail = format!(": {} are left, such as {:?}", members.len(), members.first());
                return Err(LabError::Late {
                    what: format!("the processes of control group {group} end"),
                    waited_s: KILL.as_secs(),
                    detail,
                });
            }
            members.into_iter().for_each(process::kill_pid);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Removes a group whose processes are gone, in every hierarchy.
    ///
    /// # Errors
    /// [`LabError::File`] when a folder stays busy.
    pub(crate) async fn remove(&self, group: &str) -> Result<(), LabError> {
        let deadline = Instant::now() + KILL;
        for folder in self.folders(group) {
            while let Err(cause) = remove_tree(&folder) {
                if Instant::now() >= deadline {
                    return Err(LabError::File { action: "remove", path: folder, cause });
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        Ok(())
    }

    /// Memory that a group uses, less the file cache that the kernel would give back first: what a kubelet
    /// calls the working set.
    pub(crate) fn memory_used(&self, group: &str) -> Option<Bytes> {
        let hierarchy = self.0.iter().find(|hierarchy| hierarchy.limits("memory"))?;
        let folder = hierarchy.root.join(group);
        let v1 = hierarchy.kind != Kind::V2;
        let usage = if v1 { "memory.usage_in_bytes" } else { "memory.current" };
        let inactive = if v1 { "total_inactive_file " } else { "inactive_file " };
        let used: u64 = std::fs::read_to_string(folder.join(usage)).ok()?.trim().parse().ok()?;
        let stat = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
        let idle: u64 = stat.lines().find_map(|line| line.strip_prefix(inactive)?.parse().ok()).unwrap_or(0);
        Bytes::new(used.saturating_sub(idle)).ok()
    }
}

impl Hierarchy {
    fn steps(&self, group: &str, limits: Option<Limits>) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut folder = self.root.clone();
        for part in group.split('/') {
            let parent = folder.clone();
            folder.push(part);
            if self.kind == Kind::V2 {
                steps.extend(V2_CONTROLLERS.iter().map(|controller| Step::Write {
                    file: parent.join("cgroup.subtree_control"),
                    value: format!("+{controller}"),
                    needed: false,
                }));
            }
            steps.push(Step::Make { folder: folder.clone() });
            if self.kind != Kind::V2 && self.limits("cpuset") {
                steps.extend(
                    ["cpuset.cpus", "cpuset.mems"]
                        .map(|file| Step::Copy { from: parent.join(file), to: folder.join(file) }),
                );
            }
        }
        if let Some(limits) = limits {
            steps.extend(limit_steps(&folder, &self.kind, limits));
        }
        steps
    }

    /// Whether this hierarchy is where that controller works.
    fn limits(&self, controller: &str) -> bool {
        match &self.kind {
            Kind::V1(controllers) => controllers.iter().any(|name| name == controller),
            Kind::V2 => true,
            Kind::Beside => false,
        }
    }
}

/// The limits of the group at `folder`.
fn limit_steps(folder: &Path, kind: &Kind, limits: Limits) -> Vec<Step> {
    let quota = limits.cpus.get() * PERIOD_US / 1000;
    let memory = limits.memory.get().to_string();
    let write = |file: &str, value: String, needed| Step::Write { file: folder.join(file), value, needed };
    match kind {
        Kind::Beside => Vec::new(),
        Kind::V2 => vec![
            write("memory.max", memory, true),
            write("memory.swap.max", "0".to_owned(), false),
            write("cpu.max", format!("{quota} {PERIOD_US}"), true),
        ],
        Kind::V1(controllers) => {
            let mut steps = Vec::new();
            if controllers.iter().any(|name| name == "memory") {
                steps.push(write("memory.limit_in_bytes", memory, true));
            }
            if controllers.iter().any(|name| name == "cpu") {
                steps.push(write("cpu.cfs_period_us", PERIOD_US.to_string(), true));
                steps.push(write("cpu.cfs_quota_us", quota.to_string(), true));
            }
            steps
        }
    }
}

impl Step {
    fn run(&self) -> Result<(), LabError> {
        match self {
            Self::Make { folder } => std::fs::create_dir_all(folder).map_err(file_error("make", folder)),
            Self::Copy { from, to } => {
                let own = std::fs::read_to_string(to).map_err(file_error("read", to))?;
                if own.trim().is_empty() {
                    let given = std::fs::read_to_string(from).map_err(file_error("read", from))?;
                    std::fs::write(to, given.trim()).map_err(file_error("write", to))?;
                }
                Ok(())
            }
            Self::Write { file, value, needed } => match std::fs::write(file, value) {
                Err(cause) if *needed => Err(LabError::File { action: "write", path: file.clone(), cause }),
                _ => Ok(()),
            },
        }
    }
}

/// A folder and all below it, deepest last.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        open.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|e| e.path()),
        );
        found.push(folder);
    }
    found
}

fn remove_tree(folder: &Path) -> std::io::Result<()> {
    // Parents stand before their children in `tree`.
    for below in tree(folder).iter().rev() {
        match std::fs::remove_dir(below) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str, kind: &str, options: &str) -> Mount {
        Mount { root: "/".to_owned(), path: path.into(), kind: kind.to_owned(), options: options.to_owned() }
    }

    fn text(hierarchies: &Hierarchies) -> String {
        let limits = Limits { memory: Bytes::mib(4096), cpus: MilliCpu::new(1500).unwrap() };
        let steps = hierarchies.0.iter().flat_map(|one| one.steps("rw-dev/ml1", Some(limits)));
        steps.map(|step| step.to_string()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_server_under_v1_gets_a_group_in_every_hierarchy() {
        let hierarchies = Hierarchies::among(&[
            mount("/sys/fs/cgroup", "tmpfs", "rw"),
            mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
            mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
            mount("/sys/fs/cgroup/cpuset", "cgroup", "rw,cpuset"),
            mount("/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd"),
            mount("/elsewhere/cpu", "cgroup", "rw,cpu"),
        ]);
        assert_eq!(hierarchies.version(), "v1");
        insta::assert_snapshot!(text(&hierarchies));
    }

    #[test]
    fn a_server_under_v2_gets_one_group_with_controllers_handed_down() {
        let hierarchies = Hierarchies::among(&[mount("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")]);
        assert_eq!(hierarchies.version(), "v2");
        insta::assert_snapshot!(text(&hierarchies));
    }

    #[test]
    fn a_v2_beside_v1_gets_no_limits_that_it_cannot_keep() {
        let hierarchies = Hierarchies::among(&[
            mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
            mount("/sys/fs/cgroup/unified", "cgroup2", "rw"),
        ]);
        assert_eq!(hierarchies.version(), "v1 with v2 beside it");
        let limits = Limits { memory: Bytes::mib(512), cpus: MilliCpu::new(500).unwrap() };
        let steps = hierarchies.0[1].steps("rw-dev/ml1", Some(limits));
        assert!(steps.iter().all(|step| matches!(step, Step::Make { .. })), "{steps:?}");
    }

    #[test]
    fn children_are_removed_before_their_parents() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().join("rw-dev");
        for below in ["ml1/system.slice/a.service", "ml1/init.scope", "ml2"] {
            std::fs::create_dir_all(group.join(below)).unwrap();
        }
        remove_tree(&group).unwrap();
        assert!(!group.exists());
        remove_tree(&group).unwrap();
    }
}
