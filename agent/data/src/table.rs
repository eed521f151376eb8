//! A ClickHouse table as a source: fingerprint, and one export as rows of fixed width.
//!
//! Works with servers from 18.16 on, so: HTTP, `RowBinary`, `JSONCompact`, and `wait_end_of_query`,
//! which makes the status honest. Nothing marks the end of `RowBinary`, so the rows are counted
//! against the table's parts and against `count()`.

use crate::config::{Clickhouse, read_secret};
use crate::error::Error;
use crate::export::{BlockWriter, Content};
use crate::store::Store;
use clickhouse::{Client, Compression};
use rackwright_wire::manifest::{Column, Source};
use rackwright_wire::source::{SOURCE_VERSION, SourceFacts, SourceRequest, SourceSpec};
use std::sync::Arc;
use std::time::Duration;

/// The name of the row file in a version.
const ROWS_FILE: &str = "rows.bin";
/// Sorting may take long before the first byte; between bytes a server is never this slow.
const FIRST_BYTE: Duration = Duration::from_mins(30);
const NEXT_BYTE: Duration = Duration::from_mins(1);
/// Sorts above this many bytes go to the server's disk instead of its memory: 256 MiB.
const SORT_IN_MEMORY: &str = "268435456";

/// One table with its access.
#[derive(Debug)]
pub(crate) struct TableSource {
    client: ClientDebug,
    dataset: String,
    spec: SourceSpec,
    database: String,
    table: String,
    columns: Vec<String>,
    order_by: Vec<String>,
}

/// `Client` shows its password in `Debug`; this does not.
struct ClientDebug(Client);

impl std::fmt::Debug for ClientDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// What the server says about the table's shape.
struct Shape {
    columns: Vec<Column>,
    left_out: Vec<String>,
    sorting_key: String,
    create: String,
    engine: String,
}

impl TableSource {
    pub(crate) fn new(access: &Clickhouse, request: &SourceRequest) -> Result<Self, Error> {
        let SourceSpec::Clickhouse { table, columns, order_by } = &request.spec else {
            return Err(Error::refused(request.spec.name(), "not a table"));
        };
        let Some((database, name)) = table.split_once('.') else {
            return Err(Error::refused(format!("table {table:?}"), "write it as database.table"));
        };
        let mut client = Client::default()
            .with_url(&access.url)
            .with_user(&access.user)
            .with_compression(Compression::None)
            .with_setting("wait_end_of_query", "1");
        if let Some(path) = &access.password_file {
            client = client.with_password(read_secret(path)?);
        }
        Ok(Self {
            client: ClientDebug(client),
            dataset: request.dataset.clone(),
            spec: request.spec.clone(),
            database: database.to_owned(),
            table: name.to_owned(),
            columns: columns.clone(),
            order_by: order_by.clone(),
        })
    }

    /// What identifies the table's state: its definition and its parts, or for engines without parts
    /// an order-free hash of all rows.
    pub(crate) async fn facts(&self) -> Result<SourceFacts, Error> {
        let shape = self.shape().await?;
        let (state, rows, parts) = self.state(&shape).await?;
        let spec = serde_json::to_string(&self.spec).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        for part in [&spec, &shape.create, &state] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let software =
            self.select("SELECT version()").await?.into_iter().flatten().next().unwrap_or_default();
        Ok(SourceFacts {
            version: SOURCE_VERSION,
            dataset: self.dataset.clone(),
            source: Source {
                kind: "clickhouse".to_owned(),
                name: self.spec.name(),
                fingerprint: hasher.finalize().to_hex().to_string(),
            },
            rows: Some(rows),
            bytes: rows.saturating_mul(row_width(&shape.columns)),
            parts,
            software: format!("ClickHouse {software}"),
            left_out: shape.left_out,
        })
    }

    /// One export: every row once, in one order. Of a table that is written to meanwhile, the rows of one moment.
    pub(crate) async fn read(&self, store: &Arc<Store>, facts: &SourceFacts) -> Result<Content, Error> {
        let shape = self.shape().await?;
        let names: Vec<String> = shape.columns.iter().map(|column| quote_name(&column.name)).collect();
        let mut order: Vec<String> = self.order_by.iter().map(|name| quote_name(name)).collect();
        if order.is_empty() && !shape.sorting_key.is_empty() {
            order.push(shape.sorting_key.clone());
        }
        order.extend(names.iter().cloned());
        let sql = format!("SELECT {} FROM {} ORDER BY {}", names.join(", "), self.quoted(), order.join(", "));
        let mut cursor = self
            .client
            .0
            .clone()
            .with_setting("max_bytes_before_external_sort", SORT_IN_MEMORY)
            .query_raw(&sql)
            .fetch_bytes("RowBinary")
            .map_err(|cause| self.failed(cause))?;
        let mut writer = BlockWriter::begin(store).await?;
        let (mut read_bytes, mut patience) = (0u64, FIRST_BYTE);
        loop {
            let next = tokio::time::timeout(patience, cursor.next()).await;
            let next =
                next.map_err(|late| Error::source_cause(format!("export {}", self.spec.name()), late))?;
            let Some(bytes) = next.map_err(|cause| self.failed(cause))? else { break };
            read_bytes += bytes.len() as u64;
            writer.write(&bytes).await?;
            patience = NEXT_BYTE;
        }
        let rows = self.check_rows(read_bytes, row_width(&shape.columns), facts).await?;
        let file = writer.commit(ROWS_FILE, None).await?;
        // A view may read several tables one after the other.
        let is_one_state = shape.engine.ends_with("MergeTree");
        Ok(Content { files: vec![file], columns: shape.columns, rows: Some(rows), read_bytes, is_one_state })
    }

    async fn check_rows(&self, bytes: u64, width: u64, facts: &SourceFacts) -> Result<u64, Error> {
        let counted = self.select(&format!("SELECT count() FROM {}", self.quoted())).await?;
        let counted = number(counted.first().and_then(|row| row.first()))?;
        let rows = bytes / width.max(1);
        let parts = facts.rows.unwrap_or_default();
        // One SELECT sees one state, of a table that is written to one between these two.
        let possible = parts.min(counted)..=parts.max(counted);
        if !bytes.is_multiple_of(width.max(1)) || !possible.contains(&rows) {
            let name = self.spec.name();
            let what = format!(
                "export {name} whole: {bytes} bytes are {rows} rows of {width}, its parts had {parts}, count() is {counted} now"
            );
            return Err(Error::source_text(what));
        }
        Ok(rows)
    }

    async fn shape(&self) -> Result<Shape, Error> {
        let filter = format!("database = {} AND", quote_text(&self.database));
        let name = quote_text(&self.table);
        let tables = format!(
            "SELECT create_table_query, engine, sorting_key FROM system.tables WHERE {filter} name = {name}"
        );
        let found = self.select(&tables).await?.into_iter().next();
        let Some([create, engine, sorting_key]) = found.and_then(|row| <[String; 3]>::try_from(row).ok())
        else {
            return Err(Error::Missing(format!("table {}", self.spec.name())));
        };
        let columns = format!("SELECT name, type FROM system.columns WHERE {filter} table = {name}");
        let all = self.select(&columns).await?;
        let all: Vec<(String, String)> = all
            .into_iter()
            .filter_map(|row| <[String; 2]>::try_from(row).ok())
            .map(|[n, t]| (n, t))
            .collect();
        let (columns, left_out) = self.choose(&all)?;
        Ok(Shape { columns, left_out, sorting_key, create, engine })
    }

    /// The columns to export, and what has no fixed width. A column that was asked for by name and
    /// has none is an error, not an omission.
    fn choose(&self, all: &[(String, String)]) -> Result<(Vec<Column>, Vec<String>), Error> {
        let (mut columns, mut left_out) = (Vec::new(), Vec::new());
        let asked: Vec<&String> = if self.columns.is_empty() {
            all.iter().map(|(name, _)| name).collect()
        } else {
            self.columns.iter().collect()
        };
        for name in asked {
            let kind = all.iter().find(|(known, _)| known == name).map(|(_, kind)| kind.as_str());
            let kind =
                kind.ok_or_else(|| Error::Missing(format!("column {name:?} of {}", self.spec.name())))?;
            match fixed_width(kind) {
                Some((dtype, width)) => columns.push(Column {
                    name: name.clone(),
                    clickhouse_type: kind.to_owned(),
                    dtype,
                    width,
                }),
                None if self.columns.is_empty() => left_out.push(format!("{name} {kind}")),
                None => {
                    return Err(Error::refused(
                        format!("column {name:?}"),
                        format!("{kind} has no fixed width"),
                    ));
                }
            }
        }
        if columns.is_empty() {
            return Err(Error::refused(format!("table {}", self.spec.name()), "no column has a fixed width"));
        }
        Ok((columns, left_out))
    }

    /// State text, rows, and number of parts.
    async fn state(&self, shape: &Shape) -> Result<(String, u64, u64), Error> {
        if !shape.engine.ends_with("MergeTree") {
            let names: Vec<_> = shape.columns.iter().map(|column| quote_name(&column.name)).collect();
            let hash = format!("cityHash64({})", names.join(", "));
            let sql = format!("SELECT count(), sum({hash}), groupBitXor({hash}) FROM {}", self.quoted());
            let row = self.select(&sql).await?.into_iter().next().unwrap_or_default();
            return Ok((row.join("\t"), number(row.first())?, 1));
        }
        // Newer servers hash a part's files; older ones have only the folder's modification time.
        let has_hash = "SELECT count() FROM system.columns WHERE database = 'system' AND table = 'parts' \
                        AND name = 'hash_of_all_files'";
        let has_hash = number(self.select(has_hash).await?.first().and_then(|row| row.first()))? > 0;
        let identity = if has_hash { "hash_of_all_files" } else { "toString(toUInt32(modification_time))" };
        let sql = format!(
            "SELECT name, rows, bytes_on_disk, {identity} FROM system.parts \
             WHERE active AND database = {} AND table = {} ORDER BY name",
            quote_text(&self.database),
            quote_text(&self.table)
        );
        let parts = self.select(&sql).await?;
        let rows = parts.iter().map(|part| number(part.get(1))).sum::<Result<u64, Error>>()?;
        let lines: Vec<String> = parts.iter().map(|part| part.join("\t")).collect();
        Ok((lines.join("\n"), rows, parts.len() as u64))
    }

    /// A small result as text, in order.
    async fn select(&self, sql: &str) -> Result<Vec<Vec<String>>, Error> {
        #[derive(serde::Deserialize)]
        struct Compact {
            data: Vec<Vec<serde_json::Value>>,
        }
        let mut cursor =
            self.client.0.query_raw(sql).fetch_bytes("JSONCompact").map_err(|cause| self.failed(cause))?;
        let answer = tokio::time::timeout(NEXT_BYTE, cursor.collect()).await;
        let answer = answer.map_err(|late| Error::source_cause("ask ClickHouse", late))?;
        let answer = answer.map_err(|cause| self.failed(cause))?;
        let parsed: Compact = serde_json::from_slice(&answer)
            .map_err(|cause| Error::source_cause("read ClickHouse's answer", cause))?;
        let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(parsed.data.into_iter().map(|row| row.into_iter().map(text).collect()).collect())
    }

    fn quoted(&self) -> String {
        format!("{}.{}", quote_name(&self.database), quote_name(&self.table))
    }

    fn failed(&self, cause: clickhouse::error::Error) -> Error {
        Error::source_cause(format!("read table {}", self.spec.name()), cause)
    }
}

fn row_width(columns: &[Column]) -> u64 {
    columns.iter().map(|column| u64::from(column.width)).sum()
}

fn number(text: Option<&String>) -> Result<u64, Error> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::source_text("read a number in ClickHouse's answer"))
}

/// numpy dtype and width in bytes of a type that `RowBinary` writes with fixed width.
fn fixed_width(kind: &str) -> Option<(String, u32)> {
    let inner = kind.strip_prefix("LowCardinality(").and_then(|rest| rest.strip_suffix(')'));
    if let Some(inner) = inner {
        return fixed_width(inner);
    }
    if let Some(length) = kind.strip_prefix("FixedString(").and_then(|rest| rest.strip_suffix(')')) {
        let length: u32 = length.trim().parse().ok().filter(|length| *length > 0)?;
        return Some((format!("|S{length}"), length));
    }
    let name = kind.split('(').next().unwrap_or(kind);
    let (dtype, width) = match name {
        "UInt8" => ("|u1", 1),
        "Int8" | "Enum8" => ("|i1", 1),
        "Bool" => ("|b1", 1),
        "UInt16" | "Date" => ("<u2", 2),
        "Int16" | "Enum16" => ("<i2", 2),
        "UInt32" | "DateTime" | "IPv4" => ("<u4", 4),
        "Int32" | "Date32" => ("<i4", 4),
        "UInt64" => ("<u8", 8),
        "Int64" | "DateTime64" => ("<i8", 8),
        "Float32" => ("<f4", 4),
        "Float64" => ("<f8", 8),
        "UUID" | "IPv6" | "UInt128" | "Int128" => ("|V16", 16),
        _ => return None,
    };
    Some((dtype.to_owned(), width))
}

fn quote_name(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_of_fixed_width_have_a_dtype() {
        assert_eq!(fixed_width("FixedString(24)"), Some(("|S24".to_owned(), 24)));
        assert_eq!(fixed_width("DateTime('UTC')"), Some(("<u4".to_owned(), 4)));
        assert_eq!(fixed_width("LowCardinality(FixedString(3))"), Some(("|S3".to_owned(), 3)));
        assert_eq!(fixed_width("Enum8('a' = 1)"), Some(("|i1".to_owned(), 1)));
        for kind in [
            "String",
            "Nullable(UInt8)",
            "Array(UInt8)",
            "LowCardinality(String)",
            "FixedString(0)",
            "Tuple(UInt8)",
        ] {
            assert_eq!(fixed_width(kind), None, "{kind}");
        }
    }

    #[test]
    fn names_and_texts_cannot_leave_their_quotes() {
        assert_eq!(quote_name("a`b\\"), "`a\\`b\\\\`");
        assert_eq!(quote_text("a'b\\"), "'a\\'b\\\\'");
    }
}
