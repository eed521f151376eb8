//! The record of everything made, written and synced before the thing is made.
//!
//! One JSON object a line, only ever appended. A line that a crash cut short is the last one and names nothing
//! made, because making waits for the sync. Taking the lab down needs this record and nothing else; a thing
//! that was never made, or that a reboot took, is simply not there to be removed. The first line carries the
//! version; nothing is removed by a record of another one.

use crate::error::{LabError, file_error};
use crate::spec::{LabSpec, Rate};
use rackwright_wire::format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The record's format.
const VERSION: u32 = 1;

/// Something on the machine that the lab made or was about to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Thing {
    /// A control group in every hierarchy, with everything in it.
    Group {
        /// Its path below each hierarchy's root.
        name: String,
    },
    /// The host's end of a server's link.
    Link {
        /// The interface.
        name: String,
    },
    /// A mount.
    Mount {
        /// Where.
        path: PathBuf,
    },
    /// A loop device.
    Loop {
        /// The file behind it; the device's number is whatever the kernel gave.
        file: PathBuf,
    },
    /// An nft table of the family `ip`.
    Table {
        /// Its name.
        name: String,
    },
    /// A bridge.
    Bridge {
        /// The interface.
        name: String,
    },
    /// A folder with everything in it.
    Folder {
        /// Where.
        path: PathBuf,
    },
}

/// A process, told apart from a later one with the same id by when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The id.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub start_ticks: u64,
    /// Which boot of the machine.
    pub boot: String,
}

/// What was done to a server's link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// Whether it is cut.
    pub cut: bool,
    /// The rate in both directions; the bridge's own where absent.
    pub rate: Option<Rate>,
}

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum Entry {
    /// The first line.
    Opened {
        /// The format.
        #[serde(deserialize_with = "format::version::<_, VERSION>")]
        version: u32,
        /// Which boot of the machine.
        boot: String,
        /// What is wanted.
        spec: LabSpec,
        /// The base image below the servers' overlays, which another version of this program would name otherwise.
        base: PathBuf,
    },
    /// These things are about to be made.
    Making {
        /// In the order of making.
        things: Vec<Thing>,
    },
    /// A process waits for its word to go on.
    Process {
        /// The server that it will be; none for the base image's builder.
        server: Option<String>,
        /// Which process.
        #[serde(flatten)]
        id: ProcessId,
    },
    /// A server's link is about to be changed.
    Link {
        /// The server.
        server: String,
        /// To what.
        #[serde(flatten)]
        state: LinkState,
    },
    /// Every server answered once.
    Complete,
}

/// What the lines add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// What is wanted; absent where a crash left an empty record, before anything was made.
    pub spec: Option<LabSpec>,
    /// The base image below the servers' overlays.
    pub base: PathBuf,
    /// Which boot of the machine.
    pub boot: String,
    /// Everything made, in the order of making.
    pub things: Vec<Thing>,
    /// Every process ever started.
    pub processes: Vec<(Option<String>, ProcessId)>,
    /// What was last done to each link.
    pub links: BTreeMap<String, LinkState>,
    /// Whether `lab up` came to its end.
    pub complete: bool,
}

impl Record {
    /// Adds up a record's lines.
    ///
    /// # Errors
    /// [`LabError::RecordVersion`]; [`LabError::Record`] for a broken line that is not the last.
    pub fn replay(path: &Path, text: &str) -> Result<Self, LabError> {
        if let Some(other) = text.lines().next().and_then(|first| format::other(first, VERSION)) {
            return Err(LabError::RecordVersion { path: path.to_owned(), other });
        }
        let mut record = Self::default();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            match serde_json::from_str(line) {
                Ok(entry) => record.add(entry),
                Err(_) if lines.peek().is_none() && !text.ends_with('\n') => break,
                Err(cause) => {
                    return Err(LabError::Record { path: path.to_owned(), line: index + 1, cause });
                }
            }
        }
        Ok(record)
    }

    /// The last process that a server was.
    pub fn process(&self, server: &str) -> Option<&ProcessId> {
        self.processes.iter().rev().find(|(of, _)| of.as_deref() == Some(server)).map(|(_, id)| id)
    }

    /// Everything made, in the order of removal: control groups with their processes first, because they hold
    /// the rest; then links, mounts and loop devices, last made first; then what they stood on.
    pub fn undo_order(&self) -> Vec<&Thing> {
        let mut things: Vec<&Thing> = self.things.iter().rev().collect();
        things.sort_by_key(|thing| match thing {
            Thing::Group { .. } => 0,
            Thing::Link { .. } => 1,
            Thing::Mount { .. } => 2,
            Thing::Loop { .. } => 3,
            Thing::Table { .. } => 4,
            Thing::Bridge { .. } => 5,
            Thing::Folder { .. } => 6,
        });
        things
    }

    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Opened { boot, spec, base, .. } => {
                self.boot = boot;
                self.base = base;
                self.spec = Some(spec);
            }
            Entry::Making { things } => self.things.extend(things),
            Entry::Process { server, id } => self.processes.push((server, id)),
            Entry::Link { server, state } => {
                self.links.insert(server, state);
            }
            Entry::Complete => self.complete = true,
        }
    }
}

/// The record's file, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens a new record; the folder is made for it.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn create(path: &Path, boot: &str, spec: &LabSpec, base: &Path) -> Result<Self, LabError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(file_error("make", folder))?;
        }
        let mut journal = Self::open(path)?;
        let (boot, spec, base) = (boot.to_owned(), spec.clone(), base.to_owned());
        journal.write(&Entry::Opened { version: VERSION, boot, spec, base })?;
        for folder in path.ancestors().skip(1).take(2) {
            File::open(folder).and_then(|open| open.sync_all()).map_err(file_error("sync", folder))?;
        }
        Ok(journal)
    }

    /// Opens a record to append to it. The half line of a write that was cut off goes: the next one would be
    /// glued to it.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn open(path: &Path) -> Result<Self, LabError> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .map_err(file_error("open", path))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(file_error("read", path))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(file_error("cut", path))?;
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends one entry; when it returns, the entry is on the disk.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn write(&mut self, entry: &Entry) -> Result<(), LabError> {
        let mut line = serde_json::to_vec(entry).map_err(|cause| LabError::Record {
            path: self.path.clone(),
            line: 0,
            cause,
        })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(file_error("write", &self.path))
    }
}

/// Reads a lab's record, if there is one.
///
/// # Errors
/// [`LabError::File`], [`LabError::Record`], [`LabError::RecordVersion`].
pub fn read(path: &Path) -> Result<Option<Record>, LabError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Record::replay(path, &text).map(Some),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(LabError::File { action: "read", path: path.to_owned(), cause }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::{lab, server};

    fn entries() -> Vec<Entry> {
        vec![
            Entry::Opened {
                version: VERSION,
                boot: "b1".to_owned(),
                spec: lab(vec![server("ml1", 11)]),
                base: "/c/base-1".into(),
            },
            Entry::Making {
                things: vec![
                    Thing::Folder { path: "/run/x".into() },
                    Thing::Bridge { name: "rw-dev".to_owned() },
                    Thing::Table { name: "rw-dev".to_owned() },
                    Thing::Group { name: "rw-dev".to_owned() },
                    Thing::Group { name: "rw-dev/ml1".to_owned() },
                    Thing::Loop { file: "/l/data.img".into() },
                    Thing::Mount { path: "/l/data".into() },
                    Thing::Mount { path: "/l/root".into() },
                    Thing::Link { name: "vb-dev-ml1".to_owned() },
                ],
            },
            Entry::Process {
                server: Some("ml1".to_owned()),
                id: ProcessId { pid: 7, start_ticks: 9, boot: "b1".to_owned() },
            },
            Entry::Link {
                server: "ml1".to_owned(),
                state: LinkState { cut: true, rate: "200mbit".parse().ok() },
            },
            Entry::Complete,
        ]
    }

    fn text(entries: &[Entry]) -> String {
        entries.iter().map(|entry| serde_json::to_string(entry).unwrap() + "\n").collect()
    }

    fn replay(text: &str) -> Result<Record, LabError> {
        Record::replay(Path::new("record.jsonl"), text)
    }

    #[test]
    fn the_format_on_disk_is_this() {
        insta::assert_snapshot!(text(&entries()));
    }

    #[test]
    fn holders_are_removed_before_what_they_hold() {
        let record = replay(&text(&entries())).unwrap();
        let order: Vec<String> = record.undo_order().into_iter().map(|thing| format!("{thing:?}")).collect();
        insta::assert_snapshot!(order.join("\n"), @r#"
        Group { name: "rw-dev/ml1" }
        Group { name: "rw-dev" }
        Link { name: "vb-dev-ml1" }
        Mount { path: "/l/root" }
        Mount { path: "/l/data" }
        Loop { file: "/l/data.img" }
        Table { name: "rw-dev" }
        Bridge { name: "rw-dev" }
        Folder { path: "/run/x" }
        "#);
    }

    #[test]
    fn what_is_written_after_a_torn_line_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.jsonl");
        let all = text(&entries());
        std::fs::write(&path, format!("{all}{{\"making\":{{\"thi")).unwrap();
        Journal::open(&path).unwrap().write(&Entry::Complete).unwrap();
        let expected = replay(&(all + &text(&[Entry::Complete]))).unwrap();
        assert!(read(&path).unwrap() == Some(expected));
    }

    #[test]
    fn a_crash_at_any_byte_loses_at_most_the_entry_being_written() {
        let all = text(&entries());
        for cut in 0..=all.len() {
            let start = all.get(..cut).unwrap();
            let whole = start.matches('\n').count();
            let record = replay(start).unwrap();
            let known = replay(&text(&entries()[..whole])).unwrap();
            // A line whose closing line break alone is missing counts as written.
            let next = replay(&text(&entries()[..(whole + 1).min(entries().len())])).unwrap();
            assert!(record == known || record == next, "cut at byte {cut}");
        }
    }

    #[test]
    fn a_broken_line_inside_is_an_error_that_names_it() {
        let broken = text(&entries()).replacen("\"making\"", "\"baking\"", 1);
        let error = replay(&broken).unwrap_err();
        assert_eq!(error.to_string(), "read line 2 of the record record.jsonl");
    }

    #[test]
    fn a_record_of_a_newer_build_is_refused_with_its_version() {
        let newer = text(&entries()).replacen("\"version\":1", "\"version\":2,\"added\":1", 1);
        let error = replay(&newer).unwrap_err();
        assert_eq!(error.to_string(), "read the record record.jsonl");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "version 2, this build reads 1");
    }

    #[test]
    fn the_last_process_of_a_server_counts() {
        let mut all = entries();
        let later = ProcessId { pid: 8, start_ticks: 30, boot: "b1".to_owned() };
        all.push(Entry::Process { server: Some("ml1".to_owned()), id: later.clone() });
        all.push(Entry::Process { server: None, id: ProcessId { pid: 9, ..later.clone() } });
        assert_eq!(replay(&text(&all)).unwrap().process("ml1"), Some(&later));
    }
}
