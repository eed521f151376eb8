//! The statements that read rows, on connections that cannot write.

use crate::error::StoreError;
use crate::rows::{
    AttemptRow, AuditQuery, AuditRow, DocumentRow, JobQuery, JobRow, Page, Recovered, Seq, TokenRow, UsageRow,
};
use rackwright_core::job::Outcome;
use rackwright_wire::id::{JobId, PodKey, Team};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use serde::de::DeserializeOwned;

/// Rows of a page when the caller does not say, and the most it can ask for.
const PAGE: u32 = 50;
const MOST: u32 = 500;
/// Bytes of log tails in one page of attempts: 500 of 64 KiB each would be 31 MiB.
const TAILS_BYTES: usize = 1 << 20;

pub(super) fn recover(db: &Connection) -> Result<Recovered, StoreError> {
    let snapshot = db
        .query_row("SELECT seq, snapshot FROM snapshots ORDER BY seq DESC LIMIT 1", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })
        .optional()
        .map_err(doing("read the newest snapshot"))?;
    let from = snapshot.as_ref().map_or(0, |(seq, _)| *seq);
    let events = all(db, "SELECT seq, event FROM events WHERE seq > ? ORDER BY seq", params![from], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    let events = events.into_iter().map(|(seq, text)| Ok((Seq(seq.unsigned_abs()), parse("events", &text)?)));
    let snapshot = snapshot.map(|(seq, text)| (Seq(seq.unsigned_abs()), text));
    Ok(Recovered { snapshot, events: events.collect::<Result<_, StoreError>>()? })
}

pub(super) fn job(db: &Connection, id: JobId) -> Result<Option<JobRow>, StoreError> {
    let mut select = db
        .prepare_cached("SELECT record, state FROM jobs WHERE id = ?")
        .map_err(doing("prepare a statement"))?;
    let found = select.query_row(params![signed(id.get())], texts).optional().map_err(doing("read a job"))?;
    found.map(|(record, state)| job_row(&record, &state)).transpose()
}

pub(super) fn jobs(db: &Connection, query: &JobQuery) -> Result<Page<JobRow>, StoreError> {
    let mut sql = String::from("SELECT record, state FROM jobs WHERE 1");
    let mut values: Vec<Value> = Vec::new();
    let mut filter = |column: &str, value: Option<String>| {
        if let Some(value) = value {
            sql.push_str(" AND ");
            sql.push_str(column);
            sql.push_str(" = ?");
            values.push(value.into());
        }
    };
    filter("team", query.team.as_ref().map(|team| team.as_str().to_owned()));
    filter("owner", query.owner.as_ref().map(|owner| owner.as_str().to_owned()));
    filter("project", query.project.as_ref().map(|project| project.as_str().to_owned()));
    filter("phase", query.phase.map(|phase| phase.as_str().to_owned()));
    filter("outcome", query.outcome.map(word).transpose()?);
    if let Some(after) = &query.after {
        let id: JobId = after.parse().map_err(|_not_ours| StoreError::Cursor { cursor: after.clone() })?;
        sql.push_str(" AND id < ?");
        values.push(signed(id.get()).into());
    }
    let limit = limit(query.limit);
    sql.push_str(" ORDER BY id DESC LIMIT ?");
    values.push(i64::from(limit + 1).into());
    let found = all(db, &sql, params_from_iter(values), texts)?;
    let rows = found.iter().map(|(record, state)| job_row(record, state)).collect::<Result<Vec<_>, _>>()?;
    Ok(page(rows, limit, |row| row.record.id.to_string()))
}

pub(super) fn attempts(
    db: &Connection,
    job: JobId,
    wanted: u32,
    after: Option<&str>,
) -> Result<Page<AttemptRow>, StoreError> {
    let cursor = |text: &str| {
        text.parse::<PodKey>().map_err(|_not_ours| StoreError::Cursor { cursor: text.to_owned() })
    };
    let (task, attempt) = match after.map(cursor).transpose()? {
        Some(pod) => (i64::from(pod.task.0), i64::from(pod.attempt.0)),
        None => (-1, -1),
    };
    let limit = limit(wanted);
    let sql = "SELECT history FROM attempts WHERE job = ? AND (task, attempt) > (?, ?) \
               ORDER BY task, attempt LIMIT ?";
    let mut select = db.prepare_cached(sql).map_err(doing("prepare a statement"))?;
    let params = params![signed(job.get()), task, attempt, limit + 1];
    let found = select.query_map(params, one_text).map_err(doing("read rows"))?;
    let mut rows = Vec::new();
    for text in found {
        rows.push(parse("attempts", &text.map_err(doing("read rows"))?)?);
        drop_oldest_tails(&mut rows);
    }
    Ok(page(rows, limit, |row: &AttemptRow| row.pod.to_string()))
}

/// Keeps the tails of the newest ends, as many as a page may hold.
fn drop_oldest_tails(rows: &mut [AttemptRow]) {
    let mut held: usize = rows.iter().map(|row| row.log_tail.len()).sum();
    while held > TAILS_BYTES
        && let Some(oldest) =
            rows.iter_mut().filter(|row| !row.log_tail.is_empty()).min_by_key(|row| row.finished_at_ms)
    {
        held -= std::mem::take(&mut oldest.log_tail).len();
    }
}

pub(super) fn attempt(db: &Connection, pod: &PodKey) -> Result<Option<AttemptRow>, StoreError> {
    let sql = "SELECT history FROM attempts WHERE job = ? AND task = ? AND attempt = ?";
    let found = db
        .query_row(sql, params![signed(pod.job.get()), pod.task.0, pod.attempt.0], one_text)
        .optional()
        .map_err(doing("read an attempt"))?;
    found.map(|text| parse("attempts", &text)).transpose()
}

/// A row of the bill as JSON, without what else a history or a job's record holds.
const USAGE: &str = "SELECT json_object(
        'pod', json_extract(history, '$.pod'), 'owner', owner, 'team', team, 'project', project,
        'model', json_extract(record, '$.spec.model'),
        'datasets', json((SELECT json_group_array(json_extract(value, '$.name'))
                          FROM json_each(record, '$.datasets'))),
        'class', json_extract(record, '$.spec.class'), 'node', node,
        'from_ms', placed_at_ms, 'until_ms', finished_at_ms,
        'resources', json_extract(history, '$.resources'), 'outcome', attempts.outcome)
    FROM attempts JOIN jobs ON jobs.id = attempts.job
    WHERE finished_at_ms > ? AND placed_at_ms < ? AND team = coalesce(?, team)
    ORDER BY placed_at_ms, job, task, attempt";

pub(super) fn usage(
    db: &Connection,
    from_ms: u64,
    until_ms: u64,
    team: Option<&Team>,
) -> Result<Vec<UsageRow>, StoreError> {
    let mut select = db.prepare_cached(USAGE).map_err(doing("prepare a statement"))?;
    let params = params![signed(from_ms), signed(until_ms), team.map(Team::as_str)];
    let rows = select.query_map(params, one_text).map_err(doing("read rows"))?;
    rows.map(|text| parse("attempts", &text.map_err(doing("read rows"))?)).collect()
}

const DOCUMENT: &str = "SELECT kind, name, generation, at_ms, json FROM documents WHERE kind = ?";

pub(super) fn document(
    db: &Connection,
    kind: &str,
    name: &str,
    generation: Option<u64>,
) -> Result<Option<DocumentRow>, StoreError> {
    let sql = format!(
        "{DOCUMENT} AND name = ? AND generation = coalesce(?, generation) ORDER BY generation DESC LIMIT 1"
    );
    let generation = generation.map(signed);
    db.query_row(&sql, params![kind, name, generation], document_row)
        .optional()
        .map_err(doing("read a document"))
}

pub(super) fn documents(db: &Connection, kind: &str) -> Result<Vec<DocumentRow>, StoreError> {
    let newest = "generation = (SELECT max(generation) FROM documents AS other \
                  WHERE other.kind = documents.kind AND other.name = documents.name)";
    all(db, &format!("{DOCUMENT} AND {newest} ORDER BY name"), params![kind], document_row)
}

pub(super) fn audit(db: &Connection, query: &AuditQuery) -> Result<Page<AuditRow>, StoreError> {
    let cursor =
        |text: &String| text.parse::<i64>().map_err(|_not_ours| StoreError::Cursor { cursor: text.clone() });
    let after = query.after.as_ref().map(cursor).transpose()?.unwrap_or(0);
    let limit = limit(query.limit);
    let sql = "SELECT id, row FROM audit WHERE id > ? ORDER BY id LIMIT ?";
    let found =
        all(db, sql, params![after, limit + 1], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
    let rows = found.into_iter().map(|(id, text)| Ok((id, parse::<AuditRow>("audit", &text)?)));
    let Page { rows, next } =
        page(rows.collect::<Result<Vec<_>, StoreError>>()?, limit, |(id, _)| id.to_string());
    Ok(Page { rows: rows.into_iter().map(|(_, row)| row).collect(), next })
}

pub(super) fn token_by_hash(db: &Connection, sha256: &str) -> Result<Option<TokenRow>, StoreError> {
    let mut select =
        db.prepare_cached("SELECT row FROM tokens WHERE sha256 = ?").map_err(doing("prepare a statement"))?;
    let found = select.query_row([sha256], one_text).optional().map_err(doing("read a token"))?;
    found.map(|text| parse("tokens", &text)).transpose()
}

pub(super) fn tokens(db: &Connection) -> Result<Vec<TokenRow>, StoreError> {
    parse_all("tokens", &all(db, "SELECT row FROM tokens ORDER BY created_at_ms, id", [], one_text)?)
}

pub(super) fn job_id(number: i64) -> Result<JobId, StoreError> {
    JobId::new(number.unsigned_abs())
        .map_err(|source| StoreError::Row { table: "jobs", source: Box::new(source) })
}

fn job_row(record: &str, state: &str) -> Result<JobRow, StoreError> {
    Ok(JobRow { record: parse("jobs", record)?, state: parse("jobs", state)? })
}

fn document_row(row: &Row<'_>) -> rusqlite::Result<DocumentRow> {
    Ok(DocumentRow {
        kind: row.get(0)?,
        name: row.get(1)?,
        generation: row.get::<_, i64>(2)?.unsigned_abs(),
        at_ms: row.get::<_, i64>(3)?.unsigned_abs(),
        json: row.get(4)?,
    })
}

fn one_text(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}

fn texts(row: &Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn all<T>(
    db: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut select = db.prepare_cached(sql).map_err(doing("prepare a statement"))?;
    let rows = select.query_map(params, row).map_err(doing("read rows"))?;
    rows.collect::<Result<_, _>>().map_err(doing("read rows"))
}

/// One row more than asked for was read, to know whether another page follows.
fn page<T>(mut rows: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Page<T> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = if more { rows.last().map(cursor) } else { None };
    Page { rows, next }
}

fn limit(asked: u32) -> u32 {
    if asked == 0 { PAGE } else { asked.min(MOST) }
}

fn parse<T: DeserializeOwned>(table: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Row { table, source: Box::new(source) })
}

fn parse_all<T: DeserializeOwned>(table: &'static str, texts: &[String]) -> Result<Vec<T>, StoreError> {
    texts.iter().map(|text| parse(table, text)).collect()
}

fn doing(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sqlite { doing, source }
}

/// The serde word of an outcome.
fn word(outcome: Outcome) -> Result<String, StoreError> {
    let text = serde_json::to_string(&outcome);
    let text = text.map_err(|source| StoreError::Row { table: "jobs", source: Box::new(source) })?;
    Ok(text.trim_matches('"').to_owned())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
