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
use rackwright_wire::sealed::{SealedSet, SetKind};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// How often the store is looked at for sets that are not loaded.
const PERIOD: Duration = Duration::from_secs(1);
/// A statement that takes longer is given up and tried again.
const STATEMENT: Duration = Duration::from_mins(5);
/// Longest line of a result file: a row is a small object, not a blob.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Columns of the results table; `row` is the job's own JSON object.
const COLUMNS: &str = "set String, team String, project String, job String, task UInt32, attempt UInt32, \
     line UInt32, row String";

/// Loads whatever is sealed, for ever; does nothing on servers without a results table.
pub(crate) async fn run(node: &Node) {
    let (Some(load), Some(access)) = (&node.config.load, &node.config.clickhouse) else {
        return std::future::pending().await;
    };
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = load_waiting(&node.store, load, access).await {
            tracing::warn!("results wait: {}", error.chain());
        }
    }
}

async fn load_waiting(store: &Store, load: &Load, access: &Clickhouse) -> Result<(), Error> {
    let results = SetFilter { kind: Some(SetKind::Results), ..SetFilter::default() };
    let waiting: Vec<_> =
        store.list_sets(&results)?.into_iter().filter(|set| !mark(store, set).exists()).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let loader = Loader::open(load, access)?;
    loader.make_table().await?;
    for set in waiting {
        let outcome = match rows(store, &set) {
            Ok(rows) => {
                loader.load(&set, &rows).await?;
                format!("{} {}\n", rows.count, if rows.count == 1 { "row" } else { "rows" })
            }
            // It will never get better: say so once, keep the set, go on with the others.
            Err(why) => {
                tracing::warn!(set = set.id(), why, "result set refused");
                format!("refused: {why}\n")
            }
        };
        let mark = mark(store, &set);
        durable::make_folder(mark.parent().unwrap_or(&mark))?;
        durable::replace(&mark, outcome.as_bytes())?;
    }
    Ok(())
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

/// Rows of a set in ClickHouse's tab-separated form.
struct Rows {
    tsv: String,
    count: u64,
}

/// Every line of every `*.jsonl` file, checked to be one JSON object.
fn rows(store: &Store, set: &SealedSet) -> Result<Rows, String> {
    if let Some(why) = &set.refused {
        return Err(why.clone());
    }
    let mut rows = Rows { tsv: String::new(), count: 0 };
    let files = set.files.iter().filter(|file| {
        std::path::Path::new(&file.path).extension().is_some_and(|extension| extension == "jsonl")
    });
    for file in files {
        let hash = hash_of(&file.blake3).map_err(|error| error.to_string())?;
        let text = std::fs::read_to_string(store.layout().object(hash))
            .map_err(|cause| format!("{}: {cause}", file.path))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let refused = |why: &str| format!("{} line {}: {why}", file.path, number + 1);
            if line.len() > MAX_LINE_BYTES {
                return Err(refused("longer than 1 MiB"));
            }
            is_object(line).map_err(|cause| refused(&format!("not one JSON object: {cause}")))?;
            let _infallible = writeln!(
                rows.tsv,
                "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
                set.id(),
                set.team,
                set.project,
                set.job,
                set.task,
                set.attempt,
                rows.count,
                escape(line)
            );
            rows.count += 1;
        }
    }
    Ok(rows)
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
    async fn load(&self, set: &SealedSet, rows: &Rows) -> Result<(), Error> {
        let (database, table, id) = (&self.database, &self.table, set.id());
        let stage = format!("`{database}`.`stage_{}`", blake3::hash(id.as_bytes()).to_hex());
        self.run(&format!("DROP TABLE IF EXISTS {stage}")).await?;
        self.run(&format!(
            "CREATE TABLE {stage} ({COLUMNS}) ENGINE = MergeTree PARTITION BY set ORDER BY (set, line)"
        ))
        .await?;
        if rows.count > 0 {
            self.insert(&stage, &rows.tsv).await?;
            let staged = self.count(&stage).await?;
            if staged != rows.count {
                let what = format!("stage set {id} whole: {} rows sent, {staged} there", rows.count);
                return Err(Error::Source { what, source: None });
            }
            self.run(&format!("ALTER TABLE `{database}`.`{table}` REPLACE PARTITION '{id}' FROM {stage}"))
                .await?;
        }
        self.run(&format!("DROP TABLE IF EXISTS {stage}")).await
    }

    async fn insert(&self, stage: &str, tsv: &str) -> Result<(), Error> {
        let sql = format!("INSERT INTO {stage} FORMAT TabSeparated");
        let sending = async {
            let mut insert = self.client.insert_formatted_with(sql);
            insert.send(bytes::Bytes::copy_from_slice(tsv.as_bytes())).await?;
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
        }
    }

    #[test]
    fn lines_become_rows_with_escapes_and_blank_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(0)).unwrap();
        let set = set_of(&store, "a.jsonl", "{\"text\":\"a\\tb\"}\n\n{\"x\":1e999}\n");
        let rows = rows(&store, &set).unwrap();
        assert_eq!(rows.count, 2);
        assert!(rows.tsv.ends_with("{\"x\":1e999}\n"), "numbers stay as they were written");
        let first = "results-j1-3-1-0\tvision\tdefault\tj1\t3\t1\t0\t{\"text\":\"a\\\\tb\"}";
        assert_eq!(rows.tsv.lines().next(), Some(first));
    }

    #[test]
    fn a_line_that_is_no_object_refuses_the_set_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(0)).unwrap();
        let bad = set_of(&store, "a.jsonl", "{\"x\":1}\n[1]\n");
        assert!(rows(&store, &bad).is_err_and(|why| why.contains("a.jsonl line 2")));
        let model = set_of(&store, "model.bin", "not json");
        assert_eq!(rows(&store, &model).unwrap().count, 0);
    }
}
