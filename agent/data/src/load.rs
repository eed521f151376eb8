//! Sealed result sets into the results server's own ClickHouse, each exactly once.
//!
//! A set is one partition of the table. Its rows are put into a staging table of the same shape, counted,
//! and then take the partition's place in one step (`REPLACE PARTITION`); only then is the set marked as
//! loaded. Killed anywhere, the loader does the set again and ends with the same rows: servers from 18.16
//! on can do this, while insert tokens are younger.

use crate::config::{Clickhouse, Load, read_secret};
use crate::durable;
use crate::error::Error;
use crate::layout::hash_of;
use crate::node::Node;
use crate::sets::SetFilter;
use crate::store::Store;
use clickhouse::{Client, Compression};
use rackwright_wire::manifest::File;
use rackwright_wire::sealed::{SealedSet, SetKind};
use rackwright_wire::words::counted;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the store is looked at for sets that are not loaded.
const PERIOD: Duration = Duration::from_secs(1);
/// A statement that takes longer is given up and tried again.
const STATEMENT: Duration = Duration::from_mins(5);
/// Longest line of a result file: a row is a small object, not a blob.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Rows that are inserted at once: little memory, and far fewer parts than ClickHouse minds (300).
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// A set that cannot be loaded is tried again after a pause that doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Columns of the results table; `row` is the job's own JSON object.
const COLUMNS: &str = "set String, team String, project String, job String, task UInt32, attempt UInt32, \
     line UInt32, row String";

/// Loads whatever is sealed, for ever; does nothing on servers without a results table.
pub(crate) async fn run(node: &Node) {
    let (Some(load), Some(access)) = (&node.config.load, &node.config.clickhouse) else {
        return std::future::pending().await;
    };
    let mut later = Later::default();
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = load_waiting(&node.store, load, access, &mut later).await {
            tracing::warn!("results wait: {}", error.chain());
        }
    }
}

/// Sets that could not be loaded, and when each is tried again: one that ClickHouse does not take keeps nobody
/// else's waiting.
#[derive(Debug, Default)]
struct Later(HashMap<String, (Instant, Duration)>);

impl Later {
    fn is_due(&self, id: &str) -> bool {
        self.0.get(id).is_none_or(|(at, _)| *at <= Instant::now())
    }

    fn failed(&mut self, id: String) {
        let pause = self.0.get(&id).map_or(PERIOD, |(_, pause)| (*pause * 2).min(LONGEST_PAUSE));
        self.0.insert(id, (Instant::now() + pause, pause));
    }
}

async fn load_waiting(
    store: &Store,
    load: &Load,
    access: &Clickhouse,
    later: &mut Later,
) -> Result<(), Error> {
    let results = SetFilter { kind: Some(SetKind::Results), ..SetFilter::default() };
    let mut waiting = store.list_sets(&results)?;
    waiting.retain(|set| later.is_due(&set.id()) && !mark(store, set).exists());
    if waiting.is_empty() {
        return Ok(());
    }
    let loader = Loader::open(load, access)?;
    loader.make_table().await?;
    for set in waiting {
        match load_one(store, &loader, &set).await {
            Ok(()) => drop(later.0.remove(&set.id())),
            Err(error) => {
                tracing::warn!(set = set.id(), "a result set waits: {}", error.chain());
                later.failed(set.id());
            }
        }
    }
    Ok(())
}

async fn load_one(store: &Store, loader: &Loader, set: &SealedSet) -> Result<(), Error> {
    let outcome = match checked(store, set) {
        Ok(count) => {
            loader.load(store, set, count).await?;
            format!("{}{}\n", counted(count, "row"), set.but())
        }
        // It will never get better: say so once, keep the set, go on with the others.
        Err(Unread::Content(why)) => {
            tracing::warn!(set = set.id(), why, "result set refused");
            format!("refused: {why}\n")
        }
        Err(Unread::Disk(error)) => return Err(error),
    };
    let mark = mark(store, set);
    durable::make_folder(mark.parent().unwrap_or(&mark))?;
    durable::replace(&mark, outcome.as_bytes())
}

/// What became of a set: `20 rows` or `refused: why`; `None` while it waits.
pub(crate) fn outcome(store: &Store, set: &SealedSet) -> Option<String> {
    let text = std::fs::read_to_string(mark(store, set)).ok()?;
    Some(text.trim_end().to_owned())
}

/// Says that a set is in the table (or refused): `loaded/<set id>`.
fn mark(store: &Store, set: &SealedSet) -> PathBuf {
    store.layout().root().join("loaded").join(set.id())
}

/// Why rows cannot be read.
#[derive(Debug)]
enum Unread {
    /// They are no rows, and never will be.
    Content(String),
    /// The file system refuses now, or a scrub has taken a damaged object away: later it may do.
    Disk(Error),
}

/// How many rows a set has, each one a JSON object; or why it cannot be loaded.
fn checked(store: &Store, set: &SealedSet) -> Result<u64, Unread> {
    if let Some(why) = &set.refused {
        return Err(Unread::Content(why.clone()));
    }
    let mut lines = Lines::of(store, set);
    let mut count = 0;
    while let Some(line) = lines.next()? {
        is_object(line.text).map_err(|cause| {
            Unread::Content(format!("{} line {}: not one JSON object: {cause}", line.file, line.number))
        })?;
        count += 1;
    }
    Ok(count)
}

/// The lines of a set's `*.jsonl` files, one at a time: a set may be larger than the memory.
struct Lines<'a> {
    store: &'a Store,
    files: std::vec::IntoIter<&'a File>,
    open: Option<(&'a File, BufReader<std::fs::File>)>,
    number: u64,
    buffer: String,
}

/// One line that is not blank.
struct Line<'a> {
    file: &'a str,
    /// Counted from 1.
    number: u64,
    text: &'a str,
}

impl<'a> Lines<'a> {
    fn of(store: &'a Store, set: &'a SealedSet) -> Self {
        let is_rows = |file: &&File| Path::new(&file.path).extension().is_some_and(|of| of == "jsonl");
        let files: Vec<&File> = set.files.iter().filter(is_rows).collect();
        Self { store, files: files.into_iter(), open: None, number: 0, buffer: String::new() }
    }

    fn next(&mut self) -> Result<Option<Line<'_>>, Unread> {
        loop {
            let Some((file, reader)) = &mut self.open else {
                let Some(file) = self.files.next() else { return Ok(None) };
                let hash = hash_of(&file.blake3).map_err(|error| Unread::Content(error.to_string()))?;
                let path = self.store.layout().object(hash);
                let object = std::fs::File::open(&path)
                    .map_err(|cause| Unread::Disk(Error::io("open", path)(cause)))?;
                (self.open, self.number) = (Some((file, BufReader::new(object))), 0);
                continue;
            };
            self.buffer.clear();
            self.number += 1;
            let most = MAX_LINE_BYTES as u64 + 2;
            let read = reader.by_ref().take(most).read_line(&mut self.buffer);
            let refused = |why: &dyn std::fmt::Display| {
                Unread::Content(format!("{} line {}: {why}", file.path, self.number))
            };
            let unread = |cause: std::io::Error| {
                let is_no_text = cause.kind() == std::io::ErrorKind::InvalidData;
                if is_no_text { refused(&cause) } else { Unread::Disk(Error::io("read", &file.path)(cause)) }
            };
            if read.map_err(unread)? == 0 {
                self.open = None;
                continue;
            }
            if self.buffer.trim_end().len() > MAX_LINE_BYTES {
                return Err(refused(&"longer than 1 MiB"));
            }
            if !self.buffer.trim().is_empty() {
                break;
            }
        }
        let file = self.open.as_ref().map(|(file, _)| file.path.as_str()).unwrap_or_default();
        let text = self.buffer.trim_end_matches(['\n', '\r']);
        Ok(Some(Line { file, number: self.number, text }))
    }
}

/// Looks at the form only: a number that no f64 holds is kept as the job wrote it.
#[expect(clippy::zero_sized_map_values, reason = "serde's word for an object whose content does not matter")]
fn is_object(line: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<BTreeMap<String, IgnoredAny>>(line).map(|_| ())
}

/// ClickHouse's `TabSeparated` escapes.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

struct Loader {
    client: Client,
    database: String,
    table: String,
}

impl Loader {
    fn open(load: &Load, access: &Clickhouse) -> Result<Self, Error> {
        let mut client = Client::default()
            .with_url(&access.url)
            .with_user(&access.user)
            .with_compression(Compression::None)
            .with_setting("wait_end_of_query", "1");
        if let Some(path) = &access.password_file {
            client = client.with_password(read_secret(path)?);
        }
        let (database, table) = load.table.split_once('.').unwrap_or(("results", &load.table));
        Ok(Self { client, database: database.to_owned(), table: table.to_owned() })
    }

    async fn make_table(&self) -> Result<(), Error> {
        let (database, table) = (&self.database, &self.table);
        self.run(&format!("CREATE DATABASE IF NOT EXISTS `{database}`")).await?;
        self.run(&format!(
            "CREATE TABLE IF NOT EXISTS `{database}`.`{table}` ({COLUMNS}) ENGINE = MergeTree \
             PARTITION BY set ORDER BY (set, line)"
        ))
        .await
    }

    /// Puts the set's rows into its partition, whatever was there before.
    async fn load(&self, store: &Store, set: &SealedSet, count: u64) -> Result<(), Error> {
        let (database, table, id) = (&self.database, &self.table, set.id());
        let stage = format!("`{database}`.`stage_{}`", blake3::hash(id.as_bytes()).to_hex());
        self.run(&format!("DROP TABLE IF EXISTS {stage}")).await?;
        self.run(&format!(
            "CREATE TABLE {stage} ({COLUMNS}) ENGINE = MergeTree PARTITION BY set ORDER BY (set, line)"
        ))
        .await?;
        if count > 0 {
            self.stage(&stage, store, set).await?;
            let staged = self.count(&stage).await?;
            if staged != count {
                let what = format!("stage set {id} whole: {count} rows sent, {staged} there");
                return Err(Error::Source { what, source: None });
            }
            self.run(&format!("ALTER TABLE `{database}`.`{table}` REPLACE PARTITION '{id}' FROM {stage}"))
                .await?;
        }
        self.run(&format!("DROP TABLE IF EXISTS {stage}")).await
    }

    /// Inserts the rows in batches, so that neither we nor ClickHouse hold a large set in memory.
    async fn stage(&self, stage: &str, store: &Store, set: &SealedSet) -> Result<(), Error> {
        let mut lines = Lines::of(store, set);
        let (mut batch, mut line) = (String::new(), 0_u64);
        let unread = |why| match why {
            Unread::Content(why) => {
                Error::Source { what: format!("read set {}: {why}", set.id()), source: None }
            }
            Unread::Disk(error) => error,
        };
        while let Some(row) = lines.next().map_err(unread)? {
            let SealedSet { team, project, job, task, attempt, .. } = set;
            let text = escape(row.text);
            let _infallible =
                writeln!(batch, "{}\t{team}\t{project}\t{job}\t{task}\t{attempt}\t{line}\t{text}", set.id());
            line += 1;
            if batch.len() >= BATCH_BYTES {
                self.insert(stage, std::mem::take(&mut batch)).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.insert(stage, batch).await }
    }

    async fn insert(&self, stage: &str, tsv: String) -> Result<(), Error> {
        let sql = format!("INSERT INTO {stage} FORMAT TabSeparated");
        let sending = async {
            let mut insert = self.client.insert_formatted_with(sql);
            insert.send(bytes::Bytes::from(tsv)).await?;
            insert.end().await
        };
        self.within("stage a result set", sending).await
    }

    async fn count(&self, table: &str) -> Result<u64, Error> {
        let asking = async {
            let sql = format!("SELECT count() FROM {table}");
            self.client.query_raw(&sql).fetch_bytes("TabSeparated")?.collect().await
        };
        let answer = self.within("count a staged set", asking).await?;
        let text = String::from_utf8_lossy(&answer);
        text.trim().parse().map_err(|cause| Error::source_cause("read a count", cause))
    }

    async fn run(&self, sql: &str) -> Result<(), Error> {
        self.within("prepare the results table", self.client.query_raw(sql).execute()).await
    }

    async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, clickhouse::error::Error>>,
    ) -> Result<T, Error> {
        let outcome = tokio::time::timeout(STATEMENT, work).await;
        outcome
            .map_err(|late| Error::source_cause(what, late))?
            .map_err(|cause| Error::source_cause(what, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::sealed::SEALED_VERSION;

    fn set_of(store: &Store, name: &str, content: &str) -> SealedSet {
        let mut incoming = store.begin().unwrap();
        incoming.write(content.as_bytes()).unwrap();
        let file = incoming.commit(name, None).unwrap();
        SealedSet {
            version: SEALED_VERSION,
            kind: SetKind::Results,
            team: "vision".into(),
            project: "default".into(),
            job: "j1".into(),
            task: 3,
            attempt: 1,
            step: 0,
            node: "ml1".into(),
            files: vec![file],
            refused: None,
            left_out: 0,
        }
    }

    fn texts(store: &Store, set: &SealedSet) -> Vec<String> {
        let mut lines = Lines::of(store, set);
        let mut texts = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            texts.push(format!("{}:{} {}", line.file, line.number, line.text));
        }
        texts
    }

    #[test]
    fn lines_are_read_one_by_one_without_blank_ones_and_numbers_stay_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(0)).unwrap();
        let mut set = set_of(&store, "a.jsonl", "{\"text\":\"a\\tb\"}\r\n\n{\"x\":1e999}");
        set.files.extend(set_of(&store, "b.jsonl", "{}\n").files);
        assert_eq!(checked(&store, &set).unwrap(), 3);
        let expected = ["a.jsonl:1 {\"text\":\"a\\tb\"}", "a.jsonl:3 {\"x\":1e999}", "b.jsonl:1 {}"];
        assert_eq!(texts(&store, &set), expected);
        assert_eq!(escape("a\\tb"), "a\\\\tb");
    }

    #[test]
    fn a_line_that_is_no_object_or_too_long_refuses_the_set_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(0)).unwrap();
        let bad = set_of(&store, "a.jsonl", "{\"x\":1}\n[1]\n");
        assert!(refusal(&store, &bad).contains("a.jsonl line 2: not one JSON object"));
        let long = set_of(&store, "a.jsonl", &format!("{{\"x\":\"{}\"}}\n", "y".repeat(MAX_LINE_BYTES)));
        assert!(refusal(&store, &long).contains("line 1: longer than 1 MiB"));
        let model = set_of(&store, "model.bin", "not json");
        assert_eq!(checked(&store, &model).unwrap(), 0);
        let gone = set_of(&store, "a.jsonl", "{}\n");
        durable::remove(&store.layout().object(hash_of(&gone.files[0].blake3).unwrap())).unwrap();
        let unread = checked(&store, &gone).unwrap_err();
        assert!(matches!(unread, Unread::Disk(_)), "what a scrub took away may come back: {unread:?}");
    }

    fn refusal(store: &Store, set: &SealedSet) -> String {
        match checked(store, set) {
            Err(Unread::Content(why)) => why,
            other => panic!("{other:?} is no refusal"),
        }
    }

    #[test]
    fn a_set_that_fails_is_put_off_longer_each_time_and_no_other_with_it() {
        let mut later = Later::default();
        later.failed("a".to_owned());
        assert!(!later.is_due("a") && later.is_due("b"));
        for _ in 0..20 {
            later.failed("a".to_owned());
        }
        assert_eq!(later.0["a"].1, LONGEST_PAUSE);
    }
}
