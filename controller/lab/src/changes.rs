//! What `lab up` will change on the machine, computed before anything is touched.
//!
//! The same list of things goes into the record and is what `lab down` removes.

use crate::base;
use crate::group::Hierarchies;
use crate::names;
use crate::paths::Paths;
use crate::record::Thing;
use crate::settings::Change;
use crate::spec::LabSpec;
use rackwright_wire::units::Bytes;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// What will be different on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// The lab.
    pub lab: String,
    /// Whether a lab of this name is up already, so that at most stopped servers are started.
    pub is_up: bool,
    /// Debian packages to install; they stay.
    pub packages: Vec<String>,
    /// Kernel modules to load; they stay until the next boot.
    pub modules: Vec<String>,
    /// Kernel settings to change; the last lab that goes puts them back.
    pub settings: Vec<Change>,
    /// The base image's folder; it stays.
    pub base: PathBuf,
    /// Whether the base image is to be made.
    pub makes_base: bool,
    /// The lab's folder.
    pub folder: PathBuf,
    /// The machine's address on the bridge, with the length of its network's prefix.
    pub gateway: String,
    /// Which control groups the machine has.
    pub group_version: String,
    /// In how many hierarchies each server gets a control group.
    pub group_hierarchies: usize,
    /// Names and sizes of the servers.
    pub servers: Vec<String>,
    /// Everything that is made, in the order of making.
    pub things: Vec<Thing>,
}

/// What the machine is like before.
#[derive(Debug, Clone)]
pub(crate) struct Before<'a> {
    pub(crate) is_up: bool,
    pub(crate) packages: Vec<&'static str>,
    pub(crate) modules: Vec<&'static str>,
    pub(crate) settings: Vec<Change>,
    pub(crate) has_base: bool,
    pub(crate) hierarchies: &'a Hierarchies,
}

impl Changes {
    /// The changes for a lab on a machine that is like that.
    pub(crate) fn of(spec: &LabSpec, paths: &Paths, before: &Before<'_>) -> Self {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let server = |server: &crate::spec::ServerSpec| {
            format!(
                "{} {} ({}, {} CPUs, disk {})",
                server.name, server.address, server.memory, server.cpus, server.disk
            )
        };
        Self {
            lab: spec.name.to_string(),
            is_up: before.is_up,
            packages: owned(&before.packages),
            modules: owned(&before.modules),
            settings: before.settings.clone(),
            base: base::place(paths.cache()),
            makes_base: !before.has_base,
            folder: paths.lab(&spec.name).folder().to_owned(),
            gateway: format!("{}/{}", spec.subnet.gateway(), spec.subnet.prefix()),
            group_version: before.hierarchies.version().to_owned(),
            group_hierarchies: before.hierarchies.count(),
            servers: spec.servers.iter().map(server).collect(),
            things: things(spec, paths),
        }
    }
}

/// Everything that a lab makes on a machine, in the order of making. Folders of the lab itself are not listed:
/// they lie below its folder, which goes last.
pub(crate) fn things(spec: &LabSpec, paths: &Paths) -> Vec<Thing> {
    let lab = &spec.name;
    let name = names::lab_wide(lab);
    let mut things = vec![
        Thing::Folder { path: base::partial(paths.cache(), lab) },
        Thing::Group { name: name.clone() },
        Thing::Bridge { name: name.clone() },
        Thing::Table { name },
    ];
    for server in &spec.servers {
        let folders = paths.lab(lab).server(&server.name);
        things.extend([
            Thing::Loop { file: folders.disk() },
            Thing::Mount { path: folders.data() },
            Thing::Mount { path: folders.root() },
            Thing::Folder { path: nspawn_folder(&names::machine(lab, &server.name)) },
            Thing::Link { name: names::host_link(lab, &server.name) },
        ]);
    }
    things
}

/// The folder that systemd-nspawn makes for a machine, and leaves behind when it is killed.
pub(crate) fn nspawn_folder(machine: &str) -> PathBuf {
    Path::new("/run/systemd/nspawn/propagate").join(machine)
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_up {
            return write!(f, "Lab {} is up: only servers that do not run are started.", self.lab);
        }
        writeln!(f, "Raising lab {} changes this machine:", self.lab)?;
        for (name, lines) in [self.machine_rows(), self.lab_rows()].into_iter().flatten() {
            for (index, line) in lines.iter().enumerate() {
                writeln!(f, "  {:<9} {line}", if index == 0 { name } else { "" })?;
            }
        }
        write!(
            f,
            "`rackwright lab down` takes back everything but what stays; the settings go with the last lab."
        )
    }
}

impl Changes {
    /// What all labs share.
    fn machine_rows(&self) -> Vec<(&'static str, Vec<String>)> {
        let mut rows = vec![("packages", vec![listed(&self.packages, "none are missing", "they stay")])];
        if !self.modules.is_empty() {
            rows.push(("modules", vec![listed(&self.modules, "", "they stay until the next boot")]));
        }
        if self.settings.is_empty() {
            rows.push(("settings", vec!["all are as they must be".to_owned()]));
        } else {
            rows.push(("settings", self.settings.iter().map(setting).collect()));
        }
        let (base, size) = (self.base.display(), Bytes::mib(base::USUAL_MIB));
        rows.push(if self.makes_base {
            ("base", vec![format!("{base}: made once, {size}, usually {} s; it stays", base::USUAL_S)])
        } else {
            ("base", vec![format!("{base} is there")])
        });
        rows
    }

    /// What is this lab's own.
    fn lab_rows(&self) -> Vec<(&'static str, Vec<String>)> {
        let Self { lab, gateway, group_version, .. } = self;
        let hierarchies = match self.group_hierarchies {
            1 => "one hierarchy".to_owned(),
            count => format!("each of {count} hierarchies"),
        };
        let link = |thing: &Thing| if let Thing::Link { name } = thing { Some(name.clone()) } else { None };
        let links = self.things.iter().filter_map(link).collect::<Vec<_>>().join(" ");
        let count = self.servers.len();
        vec![
            ("bridge", vec![format!("rw-{lab} with {gateway}, a link for each server: {links}")]),
            ("nft", vec![format!("table ip rw-{lab}: servers reach the outside as this machine")]),
            ("groups", vec![format!("rw-{lab} in {hierarchies} (control groups {group_version})")]),
            ("loops", vec![format!("{count} devices, a disk for each server, sparse files")]),
            ("folder", vec![self.folder.display().to_string()]),
            ("servers", self.servers.clone()),
        ]
    }
}

fn listed(names: &[String], none: &str, afterwards: &str) -> String {
    if names.is_empty() { none.to_owned() } else { format!("{} ({afterwards})", names.join(" ")) }
}

fn setting(change: &Change) -> String {
    format!("{} {} -> {} ({})", change.key, change.was, change.becomes, change.reason())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Mount;
    use crate::spec::tests::{lab, server};

    fn changes(before: impl FnOnce(&mut Before<'_>)) -> Changes {
        let mount = Mount {
            root: "/".to_owned(),
            path: "/sys/fs/cgroup/memory".into(),
            kind: "cgroup".to_owned(),
            options: "rw,memory".to_owned(),
        };
        let hierarchies =
            Hierarchies::among(&[mount.clone(), Mount { path: "/sys/fs/cgroup/cpu".into(), ..mount }]);
        let mut bare = Before {
            is_up: false,
            packages: vec![],
            modules: vec![],
            settings: vec![],
            has_base: true,
            hierarchies: &hierarchies,
        };
        before(&mut bare);
        let spec = lab(vec![server("control1", 11), server("results1-b", 15)]);
        Changes::of(&spec, &Paths::at("/var/lib/rackwright-lab", "/home/me/.cache/rackwright/lab"), &bare)
    }

    #[test]
    fn a_bare_machine_is_told_everything() {
        let changes = changes(|before| {
            before.packages = vec!["systemd-container", "mmdebstrap"];
            before.modules = vec!["br_netfilter"];
            before.has_base = false;
            before.settings = crate::settings::differing(|key| match key {
                "kernel.panic" | "net.ipv4.ip_forward" => Some("0".to_owned()),
                _ => None,
            });
        });
        insta::assert_snapshot!(changes.to_string().replace(&base::name(), "base-HASH"));
    }

    #[test]
    fn a_prepared_machine_is_told_only_the_lab() {
        insta::assert_snapshot!(changes(|_| {}).to_string().replace(&base::name(), "base-HASH"));
    }

    #[test]
    fn a_lab_that_is_up_changes_nothing_of_the_machine() {
        insta::assert_snapshot!(changes(|before| before.is_up = true), @"Lab dev is up: only servers that do not run are started.");
    }

    #[test]
    fn every_name_that_is_made_carries_the_labs_or_is_its_hash() {
        for thing in changes(|_| {}).things {
            let text = format!("{thing:?}");
            assert!(text.contains("dev") || text.contains("vb-x") || text.contains("propagate/x"), "{text}");
        }
    }
}
