//! The journal of a plan: one JSON line per event, on disk before anything changes.
//!
//! A line that was cut off by a crash is dropped at the next start; the step it belongs to is checked
//! again, so nothing is lost by that. Readers see only whole lines. A line of another version is nothing
//! torn: such a journal is left as it is, and nobody writes to it.

use crate::durable;
use crate::error::Code;
use crate::host::{Host, lock};
use rackwright_wire::event::{EVENT_VERSION, Event, What};
use rackwright_wire::format::{self, Other};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// Each run of an apply numbers its events from a multiple of this: a follower may have seen lines that a loss
/// of power took, and must not take new ones for those.
const RUN: u64 = 1_000_000;

/// The journal could not be written or read; nothing may be changed without it.
#[derive(Debug, thiserror::Error)]
#[error("{what} the journal {}", path.display())]
pub struct JournalError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl JournalError {
    /// An error while doing `what` to the journal at `path`.
    pub fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self { what, path: path.to_owned(), source }
    }

    /// Stable code.
    pub fn code(&self) -> Code {
        Code::of_io(&self.source)
    }
}

/// Something that keeps events.
pub trait Record: Sync {
    /// Keeps one event; when this returns, whatever the event announces may be done.
    ///
    /// # Errors
    /// When it is not kept: then nothing may be changed.
    fn write(&self, what: What) -> Result<(), JournalError>;
}

/// A plan's journal on disk.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The number of the next event; none after a write that failed, which may have left half a line.
    next: Mutex<Option<u64>>,
    /// The last event that is on disk for certain.
    synced: Mutex<u64>,
    history: History,
}

/// What earlier runs of the same plan did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct History {
    /// Steps that were applied and checked.
    pub applied: BTreeSet<String>,
    /// Steps whose apply began and whose end is not known.
    pub begun: BTreeSet<String>,
    /// Whether the last event is `Finished`.
    pub finished: bool,
}

impl History {
    fn add(&mut self, what: &What) {
        self.finished = matches!(what, What::Finished { .. });
        if let What::Applying { step, .. } = what {
            self.begun.insert(step.clone());
        } else if let What::Applied { step, .. } = what {
            self.begun.remove(step);
            self.applied.insert(step.clone());
        } else if let What::Failed { step, .. } = what {
            self.begun.remove(step);
        }
    }
}

impl Journal {
    /// Opens a plan's journal for writing, makes it when it is missing, drops a line that was cut off.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(host: &Host, plan: &str) -> Result<Self, JournalError> {
        let path = path(host, plan);
        let fail = |what, source| JournalError::new(what, &path, source);
        if let Some(folder) = path.parent() {
            durable::make_dir(folder, 0o700).map_err(|error| fail("make", error))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| fail("open", error))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| fail("read", error))?;
        let (events, length) =
            whole_lines(&text).map_err(|other| fail("go on with", io::Error::other(other)))?;
        file.set_len(length)
            .and_then(|()| file.seek(SeekFrom::Start(length)))
            .and_then(|_| file.sync_all())
            .and_then(|()| durable::sync_parent(&path))
            .map_err(|error| fail("recover", error))?;
        let mut history = History::default();
        for event in &events {
            history.add(&event.what);
        }
        let next = events.last().map_or(1, |event| (event.seq / RUN + 1) * RUN + 1);
        Ok(Self {
            path,
            file,
            next: Mutex::new(Some(next)),
            synced: Mutex::new(next.saturating_sub(1)),
            history,
        })
    }

    /// What earlier runs of this plan did, as of [`Self::open`].
    pub fn history(&self) -> &History {
        &self.history
    }
}

impl Journal {
    /// Appends one line; gives its number.
    fn append(&self, what: What) -> io::Result<u64> {
        let mut next = lock(&self.next);
        let seq = next.take().ok_or_else(|| io::Error::other("an earlier write to it failed"))?;
        let mut line = serde_json::to_string(&Event { version: EVENT_VERSION, seq, at_ms: now_ms(), what })
            .map_err(io::Error::other)?;
        line.push('\n');
        (&self.file).write_all(line.as_bytes())?;
        *next = Some(seq + 1);
        Ok(seq)
    }

    /// Has everything up to `seq` on disk. Steps that wait here at the same time share one flush.
    fn sync(&self, seq: u64) -> io::Result<()> {
        let mut synced = lock(&self.synced);
        if *synced >= seq {
            return Ok(());
        }
        let written = lock(&self.next).map_or(seq, |next| next.saturating_sub(1));
        self.file.sync_data()?;
        *synced = written;
        Ok(())
    }
}

impl Record for Journal {
    fn write(&self, what: What) -> Result<(), JournalError> {
        // Only what announces a change, or the end of all, must be on disk before anything else happens; a step
        // whose end is lost is checked again and found done.
        let must_last = matches!(what, What::Started { .. } | What::Applying { .. } | What::Finished { .. });
        self.append(what)
            .and_then(|seq| if must_last { self.sync(seq) } else { Ok(()) })
            .map_err(|error| JournalError::new("write", &self.path, error))
    }
}

/// Where a plan's journal lies.
pub fn path(host: &Host, plan: &str) -> PathBuf {
    host.state("journal").join(format!("{plan}.jsonl"))
}

/// The events of the whole lines, and how many bytes those are.
///
/// # Errors
/// A line is of another version.
pub fn whole_lines(text: &str) -> Result<(Vec<Event>, u64), Other> {
    let mut events = Vec::new();
    let mut length = 0;
    for line in text.split_inclusive('\n') {
        let Some(event) = line.strip_suffix('\n').and_then(|line| serde_json::from_str(line).ok()) else {
            match format::other(line, EVENT_VERSION) {
                Some(other) => return Err(other),
                None => break,
            }
        };
        events.push(event);
        length += line.len() as u64;
    }
    Ok((events, length))
}

/// Milliseconds since the epoch, for people.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(step: &str) -> What {
        What::Applied { step: step.to_owned(), took_ms: 1 }
    }

    #[test]
    fn a_torn_line_is_dropped_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let journal = Journal::open(&host, "p").unwrap();
        journal.write(applied("a")).unwrap();
        journal.write(applied("b")).unwrap();
        drop(journal);
        let path = path(&host, "p");
        let whole = std::fs::read_to_string(&path).unwrap();
        for torn in 1..whole.len() {
            std::fs::write(&path, &whole.as_bytes()[..torn]).unwrap();
            let journal = Journal::open(&host, "p").unwrap();
            journal.write(applied("c")).unwrap();
            let (events, length) = whole_lines(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(length, std::fs::metadata(&path).unwrap().len(), "no rubbish is left in between");
            let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
            assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
            assert_eq!(
                seqs.last(),
                Some(&if seqs.len() == 1 { 1 } else { RUN + 1 }),
                "a new run, a new range"
            );
        }
    }

    #[test]
    fn a_journal_of_a_newer_agent_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        Journal::open(&host, "p").unwrap().write(applied("a")).unwrap();
        let path = path(&host, "p");
        let newer = std::fs::read_to_string(&path).unwrap()
            + "{\"version\":2,\"seq\":2,\"at_ms\":0,\"what\":{\"what\":\"undone\"}}\n";
        std::fs::write(&path, &newer).unwrap();
        let error = Journal::open(&host, "p").unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "version 2, this build reads 1");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    }

    #[test]
    fn history_knows_what_was_begun_and_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let journal = Journal::open(&host, "p").unwrap();
        for step in ["a", "b"] {
            journal
                .write(What::Applying { step: step.to_owned(), summary: String::new(), before: None })
                .unwrap();
        }
        journal.write(applied("a")).unwrap();
        let history = Journal::open(&host, "p").unwrap().history().clone();
        assert_eq!(history.applied, BTreeSet::from(["a".to_owned()]));
        assert_eq!(history.begun, BTreeSet::from(["b".to_owned()]));
        assert!(!history.finished);
    }
}
