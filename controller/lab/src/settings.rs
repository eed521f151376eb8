//! The few kernel settings that servers need and that belong to the whole machine.
//!
//! The first lab sets them and records what they were; the last one that goes puts them back, unless somebody
//! else has changed them since or the machine was rebooted. Two labs side by side share one record.

use crate::error::{LabError, file_error};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The record's format.
const VERSION: u32 = 1;

/// What a setting must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Exactly(u64),
    AtLeast(u64),
}

/// The settings, with the reason that `lab up` gives.
const WANTED: [(&str, Want, &str); 6] = [
    ("net.ipv4.ip_forward", Want::Exactly(1), "servers reach the outside through this machine"),
    ("vm.overcommit_memory", Want::Exactly(1), "kubelets insist on it"),
    ("kernel.panic", Want::Exactly(10), "kubelets insist on it"),
    ("kernel.panic_on_oops", Want::Exactly(1), "kubelets insist on it"),
    (
        "fs.inotify.max_user_instances",
        Want::AtLeast(1024),
        "all servers' systemd and kubelets count as one user",
    ),
    (BRIDGE_KEY, Want::Exactly(0), "this machine's firewall stays out of the bridge"),
];

/// The module that shows bridged packets to iptables, which kube-proxy in the servers needs and cannot load.
pub(crate) const BRIDGE_MODULE: &str = "br_netfilter";
const BRIDGE_KEY: &str = "net.bridge.bridge-nf-call-iptables";

/// Whether the kernel has that module in it.
pub(crate) fn has_bridge_module() -> bool {
    read(BRIDGE_KEY).is_some()
}

/// Reads a setting as it will be once the module is loaded.
pub(crate) fn read_or_module_default(key: &str) -> Option<String> {
    read(key).or_else(|| (key == BRIDGE_KEY).then(|| "1".to_owned()))
}

/// One setting that differs from what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The setting, as sysctl names it.
    pub key: String,
    /// What it is.
    pub was: String,
    /// What it becomes.
    pub becomes: String,
}

impl Change {
    /// Why a lab changes it.
    pub fn reason(&self) -> &'static str {
        WANTED.iter().find(|(key, ..)| *key == self.key).map_or("", |(_, _, reason)| *reason)
    }
}

/// What differs now, given a reader of settings. A setting that the kernel does not have is left out.
pub(crate) fn differing(read: impl Fn(&str) -> Option<String>) -> Vec<Change> {
    let change = |(key, want, _): &(&str, Want, &str)| {
        let was = read(key)?;
        let (met, value) = match *want {
            Want::Exactly(value) => (was == value.to_string(), value),
            Want::AtLeast(value) => (was.parse::<u64>().is_ok_and(|now| now >= value), value),
        };
        (!met).then(|| Change { key: (*key).to_owned(), was, becomes: value.to_string() })
    };
    WANTED.iter().filter_map(change).collect()
}

/// Reads a setting of this machine.
pub(crate) fn read(key: &str) -> Option<String> {
    std::fs::read_to_string(file_of(key)).ok().map(|text| text.trim().to_owned())
}

/// What was set for all labs of this machine together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineRecord {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, VERSION>")]
    version: u32,
    boot: String,
    settings: Vec<Change>,
}

/// Sets what differs, after recording what it was.
///
/// # Errors
/// [`LabError::File`], [`LabError::Record`].
pub(crate) fn apply(record_path: &Path, boot: &str) -> Result<Vec<Change>, LabError> {
    let changes = differing(read);
    if changes.is_empty() {
        return Ok(changes);
    }
    let known = load(record_path)?.filter(|record| record.boot == boot).map(|record| record.settings);
    let settings = merged(known.unwrap_or_default(), &changes);
    save(record_path, &MachineRecord { version: VERSION, boot: boot.to_owned(), settings })?;
    for change in &changes {
        write(&change.key, &change.becomes)?;
    }
    Ok(changes)
}

/// Puts back what the labs set and nobody has changed since, and forgets it.
///
/// # Errors
/// [`LabError::File`], [`LabError::Record`].
pub(crate) fn restore(record_path: &Path, boot: &str) -> Result<(), LabError> {
    if let Some(record) = load(record_path)? {
        for change in to_restore(&record, boot, read) {
            write(&change.key, &change.was)?;
        }
    }
    match std::fs::remove_file(record_path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::File { action: "remove", path: record_path.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

/// Adds changes to those known: what a setting was before the first lab stays what it was.
fn merged(mut known: Vec<Change>, changes: &[Change]) -> Vec<Change> {
    for change in changes {
        match known.iter_mut().find(|earlier| earlier.key == change.key) {
            Some(earlier) => earlier.becomes.clone_from(&change.becomes),
            None => known.push(change.clone()),
        }
    }
    known
}

fn to_restore<'a>(
    record: &'a MachineRecord,
    boot: &str,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<&'a Change> {
    if record.boot != boot {
        return Vec::new();
    }
    record.settings.iter().filter(|change| read(&change.key).as_ref() == Some(&change.becomes)).collect()
}

/// What cannot be read is no missing record: forgetting it would leave the machine changed for good.
fn load(path: &Path) -> Result<Option<MachineRecord>, LabError> {
    let text = match std::fs::read(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(file_error("read", path))?,
    };
    let broken = |cause| LabError::Record { path: path.to_owned(), line: 1, cause };
    serde_json::from_slice(&text).map(Some).map_err(broken)
}

/// Replaces the record whole: written beside it, synced, renamed over it.
fn save(path: &Path, record: &MachineRecord) -> Result<(), LabError> {
    let beside = path.with_extension("json.new");
    let text = serde_json::to_string_pretty(record).map_err(|cause| LabError::Record {
        path: path.to_owned(),
        line: 0,
        cause,
    })?;
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&beside, path)).map_err(file_error("write", path))?;
    let folder = path.parent().unwrap_or(path);
    File::open(folder).and_then(|open| open.sync_all()).map_err(file_error("sync", folder))
}

fn write(key: &str, value: &str) -> Result<(), LabError> {
    let path = file_of(key);
    std::fs::write(&path, value).map_err(file_error("set", &path))
}

fn file_of(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn machine(values: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        let values: BTreeMap<String, String> =
            values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        move |key| values.get(key).cloned()
    }

    fn change(key: &str, was: &str, becomes: &str) -> Change {
        Change { key: key.to_owned(), was: was.to_owned(), becomes: becomes.to_owned() }
    }

    #[test]
    fn only_what_differs_and_exists_is_changed() {
        let found = differing(machine(&[
            ("net.ipv4.ip_forward", "1"),
            ("kernel.panic", "0"),
            ("fs.inotify.max_user_instances", "8192"),
        ]));
        assert_eq!(found, [change("kernel.panic", "0", "10")]);
    }

    #[test]
    fn what_was_before_the_first_lab_is_what_comes_back() {
        let first = vec![change("kernel.panic", "0", "10")];
        // Somebody set it to 5 between two labs.
        let known =
            merged(first, &[change("kernel.panic", "5", "10"), change("vm.overcommit_memory", "0", "1")]);
        assert_eq!(known, [change("kernel.panic", "0", "10"), change("vm.overcommit_memory", "0", "1")]);
    }

    #[test]
    fn a_setting_that_somebody_else_changed_is_left_alone() {
        let settings = vec![change("kernel.panic", "0", "10"), change("net.ipv4.ip_forward", "0", "1")];
        let record = MachineRecord { version: VERSION, boot: "b1".to_owned(), settings };
        let now = || machine(&[("kernel.panic", "30"), ("net.ipv4.ip_forward", "1")]);
        assert_eq!(to_restore(&record, "b1", now()), [&change("net.ipv4.ip_forward", "0", "1")]);
        assert!(to_restore(&record, "b2", now()).is_empty(), "a reboot has put it back already");
    }

    #[test]
    fn every_setting_has_a_reason() {
        for (key, ..) in WANTED {
            assert!(!change(key, "", "").reason().is_empty());
        }
    }

    #[test]
    fn the_record_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.json");
        let settings = vec![change("kernel.panic", "0", "10")];
        let record = MachineRecord { version: VERSION, boot: "b1".to_owned(), settings };
        save(&path, &record).unwrap();
        assert_eq!(load(&path).unwrap(), Some(record));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap());
    }

    #[test]
    fn a_record_of_a_newer_build_is_neither_used_nor_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.json");
        let newer = r#"{"version": 2, "boot": "b1", "added": 1, "settings": []}"#;
        std::fs::write(&path, newer).unwrap();
        let error = restore(&path, "b1").unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("version 2, this build reads 1"), "{cause}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    }
}
