//! Stage 4: a table and two buckets on the data server become verified versions on every ml node; one
//! flipped byte is found and mended; a predecessor dies in the middle of a gigabyte.

use super::findings::Version;
use super::{Demo, DemoError, must, state_folders, unexpected};
use crate::field::{number, text};
use crate::http::wait_until;
use crate::shell;
use crate::stage;
use crate::table::Table;
use crate::{apt, csv};
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TABLE: &str = "apt.packages";
const BULK_BYTES: u64 = 1_000_000_000;
const LINK: &str = "200mbit";
const LONG: Duration = Duration::from_mins(5);

impl Demo {
    /// Stage 4.
    pub(super) fn replicate(&mut self) -> Result<(), DemoError> {
        let secrets = state_folders().map(|folder| folder.join("secrets")).find(|folder| folder.is_dir());
        self.site.open_data(&secrets.unwrap_or_default())?;
        let files = apt_lists()?;
        self.load_table(&files)?;
        self.load_bucket("apt-indexes", &files)?;
        for dataset in ["packages", "indexes"] {
            let text = self.rackwright(&["data", "sync", dataset])?;
            text.lines().for_each(stage::note);
        }
        self.scrub()?;
        self.bulk()?;
        self.note_versions()
    }

    /// The column that the sweep predicts.
    pub(super) fn target(&self) -> &str {
        self.options.target.as_deref().unwrap_or("installed_kib")
    }

    /// A copy of the table's version outside the rack, read from the data server's store.
    pub(super) fn export_copy(&self) -> Result<PathBuf, DemoError> {
        let held = self.held("data1")?;
        let Some(version) = held.pointer("/datasets/packages").and_then(newest) else {
            return Err(unexpected("a version of packages on data1", &held, Path::new("/v1/data")));
        };
        let from = format!("/data/rackwright/versions/packages/{}", text(&version, "digest"));
        let folder = self.folder.join("packages");
        let failed = |cause| DemoError::File { path: folder.clone(), cause };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        for file in ["manifest.json", "rows.bin"] {
            let encoded = self.site.on("data1", &format!("base64 -w0 {from}/{file}"))?;
            let target = folder.join(file).to_string_lossy().into_owned();
            shell::capture_with("sh", &["-c", "base64 -d > \"$1\"", "sh", &target], encoded.as_bytes())?;
        }
        Ok(folder)
    }

    fn load_table(&self, files: &[PathBuf]) -> Result<(), DemoError> {
        let table = match &self.options.data {
            Some(path) => user_table(path)?,
            None => apt::read(files)?,
        };
        self.has_fit(&table)?;
        let data = self.site.clickhouse("data1");
        data.run("CREATE DATABASE IF NOT EXISTS apt", b"")?;
        data.run(&format!("DROP TABLE IF EXISTS {TABLE}"), b"")?;
        data.run(&table.create(TABLE), b"")?;
        data.run(&format!("INSERT INTO {TABLE} FORMAT TabSeparated"), table.tsv.as_bytes())?;
        stage::note(format_args!("{TABLE}: {} rows, {}", table.rows, column_names(&table)));
        Ok(())
    }

    /// Refuses a file of the user's that will not do, before anything is touched.
    pub(super) fn check_data(&self) -> Result<(), DemoError> {
        self.options.data.as_deref().map_or(Ok(()), |path| self.has_fit(&user_table(path)?))
    }

    fn has_fit(&self, table: &Table) -> Result<(), DemoError> {
        let expected = format!("a table in which {:?} can be predicted (TARGET=COLUMN)", self.target());
        table.unfit(self.target()).map_or(Ok(()), |why| must(false, &expected, why))
    }

    fn load_bucket(&self, bucket: &str, files: &[PathBuf]) -> Result<(), DemoError> {
        self.site.put_s3(bucket, None)?;
        for file in files {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            self.site.put_s3(&format!("{bucket}/{name}"), Some(file))?;
        }
        stage::note(format_args!("bucket {bucket}: {} objects", files.len()));
        Ok(())
    }

    /// Flips one byte on ml1's disk, behind everybody's back.
    fn scrub(&mut self) -> Result<(), DemoError> {
        let before = self.held("ml1")?;
        let flip = "f=$(find /data/rackwright/versions/packages -name rows.bin | head -1); \
                    b=$(dd if=$f bs=1 skip=4321 count=1 2>/dev/null | od -An -tu1 | tr -d ' '); \
                    printf \"\\\\$(printf %03o $(( (b + 1) % 256 )))\" | dd of=$f bs=1 seek=4321 conv=notrunc 2>/dev/null";
        self.site.on("ml1", flip)?;
        let text = self.rackwright(&["data", "scrub", "ml1"])?;
        text.lines().for_each(stage::note);
        let after = self.held("ml1")?;
        let grew = |key: &str| number(&after, key).saturating_sub(number(&before, key));
        (self.findings.scrub_found, self.findings.scrub_repaired) =
            (grew("scrub_found"), grew("scrub_repaired"));
        must(
            self.findings.scrub_found == 1 && self.findings.scrub_repaired == 1,
            "one found, one repaired",
            &after,
        )
    }

    /// A gigabyte through shaped links; ml1, from which ml2 fetches, is killed midway.
    fn bulk(&mut self) -> Result<(), DemoError> {
        let noise = self.folder.join("noise");
        let failed = |cause| DemoError::File { path: noise.clone(), cause };
        let mut from = std::fs::File::open("/dev/urandom").map_err(failed)?.take(BULK_BYTES);
        let mut to = std::fs::File::create(&noise).map_err(failed)?;
        std::io::copy(&mut from, &mut to).map_err(failed)?;
        self.site.put_s3("bulk", None)?;
        self.site.put_s3("bulk/noise", Some(&noise))?;
        std::fs::remove_file(&noise).map_err(failed)?;
        for server in ["data1", "ml1", "ml2"] {
            self.rackwright(&["lab", "shape", "--inventory", &self.inventory, server, LINK])?;
        }
        let outcome = self.bulk_with_a_death();
        for server in ["data1", "ml1", "ml2"] {
            self.rackwright(&["lab", "shape", "--inventory", &self.inventory, server, "off"])?;
        }
        outcome?;
        let text = self.rackwright(&["data", "sync", "bulk"])?;
        text.lines().for_each(stage::note);
        Ok(())
    }

    fn bulk_with_a_death(&mut self) -> Result<(), DemoError> {
        stage::command("curl -X POST …/v1/data/sync --json '{\"datasets\": [\"bulk\"]}'");
        let wanted = serde_json::json!({"datasets": ["bulk"]});
        self.site.api("operator").expect("POST", "/v1/data/sync", Some(&wanted), &[])?;
        let part = |demo: &Self, server: &str| -> Result<u64, shell::ShellError> {
            Ok(bulk_version(&demo.held(server)?).map_or(0, |version| number(&version, "bytes")))
        };
        let midway = wait_until("ml2 has a third of the gigabyte", LONG, || {
            let bytes = part(self, "ml2")?;
            Ok((bytes > BULK_BYTES / 3).then_some(bytes))
        })?;
        must(midway < BULK_BYTES, "ml1 is killed midway", midway)?;
        self.rackwright(&["lab", "kill", "--inventory", &self.inventory, "ml1"])?;
        let held = wait_until("ml2 finishes from the source", LONG, || {
            let version = bulk_version(&self.held("ml2")?);
            Ok(version.filter(|version| version.get("complete") == Some(&Value::Bool(true))))
        })?;
        let fetched = held.get("fetched").and_then(Value::as_object).cloned().unwrap_or_default();
        let total: u64 = fetched.values().filter_map(Value::as_u64).sum();
        let by =
            fetched.iter().map(|(peer, bytes)| format!("{bytes} from {peer}")).collect::<Vec<_>>().join(", ");
        stage::note(format_args!("ml1 killed at {midway} bytes; ml2 fetched {by}"));
        must(total == BULK_BYTES, "no byte fetched twice", &by)?;
        self.rackwright(&["lab", "start", "--inventory", &self.inventory, "ml1"])?;
        Ok(())
    }

    /// What one agent says that it holds.
    fn held(&self, server: &str) -> Result<Value, shell::ShellError> {
        let data = self.site.api("operator").get("/v1/data")?;
        let found = data.get("nodes").and_then(|nodes| nodes.get(server)?.get("held").cloned());
        Ok(found.unwrap_or_default())
    }

    fn note_versions(&mut self) -> Result<(), DemoError> {
        for server in ["ml1", "ml2"] {
            let held = wait_until(&format!("{server} holds every dataset"), LONG, || {
                let held = self.held(server)?;
                let sets = held.get("datasets").and_then(Value::as_object).cloned().unwrap_or_default();
                let complete = sets.len() >= 3 && sets.values().all(|versions| newest(versions).is_some());
                Ok(complete.then_some(sets))
            })?;
            let versions = held.iter().filter_map(|(name, versions)| {
                let newest = newest(versions)?;
                let version = Version {
                    generation: number(&newest, "generation"),
                    bytes: number(&newest, "total_bytes"),
                    digest: text(&newest, "digest"),
                };
                Some((name.clone(), version))
            });
            self.findings.versions.insert(server.to_owned(), versions.collect());
        }
        Ok(())
    }
}

/// The newest complete version.
fn newest(versions: &Value) -> Option<Value> {
    let complete = versions.as_array()?.iter().filter(|one| one.get("complete") == Some(&Value::Bool(true)));
    complete.max_by_key(|one| number(one, "generation")).cloned()
}

fn bulk_version(held: &Value) -> Option<Value> {
    held.pointer("/datasets/bulk")?.as_array()?.last().cloned()
}

fn apt_lists() -> Result<Vec<PathBuf>, DemoError> {
    let lists = Path::new("/var/lib/apt/lists");
    let files = apt::index_files(lists).map_err(|cause| DemoError::File { path: lists.to_owned(), cause })?;
    if files.is_empty() {
        return Err(unexpected("package indexes (run `apt-get update`)", "none", lists));
    }
    Ok(files)
}

fn user_table(path: &Path) -> Result<Table, DemoError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| DemoError::File { path: path.to_owned(), cause })?;
    csv::read(&text).map_err(|cause| DemoError::Csv { path: path.to_owned(), cause })
}

fn column_names(table: &Table) -> String {
    table.columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
}
