//! The statements that change rows; each runs inside the writer's savepoint.

use super::read;
use crate::error::StoreError;
use crate::rows::{
    AttemptRow, AuditRow, Batch, DocumentRow, IdempotencyKey, JobUpdate, Seq, Submit, Submitted, TokenRow,
};
use rackwright_core::job::{Event, JOB_VERSION, JobPhase, JobRecord, Outcome, TaskCounts, What};
use rackwright_wire::id::JobId;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;

pub(super) fn submit(db: &Connection, submit: Submit) -> Result<Submitted, StoreError> {
    if let Some((key, digest)) = &submit.idempotency
        && let Some(first) = used_before(db, &submit, key, digest)?
    {
        return Ok(first);
    }
    if let Some(deadline_s) = submit.spec.deadline_s.filter(|at_s| at_s.saturating_mul(1000) <= submit.at_ms)
    {
        return Err(StoreError::DeadlinePast { deadline_s });
    }
    let dependencies_met = dependencies(db, &submit)?;
    let record = JobRecord {
        version: JOB_VERSION,
        id: next_id(db, submit.at_ms)?,
        owner: submit.owner,
        team: submit.team,
        submitted_at_ms: submit.at_ms,
        spec: submit.spec,
        datasets: submit.datasets,
        dependencies_met,
    };
    insert_job(db, &record)?;
    let event = Event::new(submit.at_ms, What::Submitted { job: Box::new(record.clone()) });
    let seq = append_event(db, &event)?;
    insert_audit(
        db,
        &AuditRow {
            at_ms: record.submitted_at_ms,
            owner: record.owner.clone(),
            team: record.team.clone(),
            action: "job.submit".to_owned(),
            subject: record.id.to_string(),
            result: "ok".to_owned(),
        },
    )?;
    if let Some((key, digest)) = &submit.idempotency {
        let mut insert = statement(db, "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)")?;
        let (team, owner) = (record.team.as_str(), record.owner.as_str());
        run(&mut insert, params![team, owner, key.as_str(), digest, id(record.id), signed(seq.0)])?;
    }
    Ok(Submitted { record, seq, replayed: false })
}

fn used_before(
    db: &Connection,
    submit: &Submit,
    key: &IdempotencyKey,
    digest: &str,
) -> Result<Option<Submitted>, StoreError> {
    let sql = "SELECT digest, job, seq FROM idempotency WHERE team = ? AND owner = ? AND key = ?";
    let mut select = statement(db, sql)?;
    let found = select
        .query_row(params![submit.team.as_str(), submit.owner.as_str(), key.as_str()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
        .optional()
        .map_err(doing("look up an idempotency key"))?;
    let Some((before, job, seq)) = found else { return Ok(None) };
    let first = read::job_id(job)?;
    if before != digest {
        return Err(StoreError::KeyReused { first });
    }
    let row = read::job(db, first)?.ok_or_else(|| StoreError::Unknown { what: format!("job {first}") })?;
    Ok(Some(Submitted { record: row.record, seq: Seq(seq.unsigned_abs()), replayed: true }))
}

/// Dependencies that have succeeded already; an error for one that never will. Another team's job is as
/// unknown as one that was never accepted.
fn dependencies(db: &Connection, submit: &Submit) -> Result<Vec<JobId>, StoreError> {
    let mut met = Vec::new();
    for job in &submit.spec.depends_on {
        let refuse = |why: String| StoreError::Dependency { job: *job, why };
        let row = read::job(db, *job)?.filter(|row| row.record.team == submit.team);
        let row = row.ok_or_else(|| refuse("is not known".to_owned()))?;
        match (row.state.phase, row.state.outcome) {
            (JobPhase::Finished, Some(Outcome::Succeeded)) => met.push(*job),
            (JobPhase::Finished, outcome) => {
                let ended = outcome.map(word).transpose()?.unwrap_or_default();
                return Err(refuse(format!("has ended as {ended}")));
            }
            (JobPhase::Pending | JobPhase::Starting | JobPhase::Running, _) => {}
        }
    }
    Ok(met)
}

/// Rising, and never below the clock: ids of a store restored from a backup do not meet later ones.
fn next_id(db: &Connection, now_ms: u64) -> Result<JobId, StoreError> {
    let mut select = statement(db, "SELECT coalesce(max(id), 0) FROM jobs")?;
    let last: i64 = select.query_row([], |row| row.get(0)).map_err(doing("find the newest job"))?;
    let next = (last.unsigned_abs() + 1).max(now_ms);
    JobId::new(next).map_err(|source| StoreError::Row { table: "jobs", source: Box::new(source) })
}

fn insert_job(db: &Connection, record: &JobRecord) -> Result<(), StoreError> {
    let counts = TaskCounts { pending: record.spec.tasks(), ..TaskCounts::default() };
    let state = JobUpdate {
        id: record.id,
        phase: JobPhase::Pending,
        counts,
        outcome: None,
        started_at_ms: None,
        finished_at_ms: None,
    };
    let mut insert = statement(
        db,
        "INSERT INTO jobs (id, owner, team, project, phase, submitted_at_ms, record, state) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    run(
        &mut insert,
        params![
            id(record.id),
            record.owner.as_str(),
            record.team.as_str(),
            record.spec.project.as_str(),
            state.phase.as_str(),
            signed(record.submitted_at_ms),
            json("jobs", record)?,
            json("jobs", &state)?
        ],
    )
}

pub(super) fn append(db: &Connection, batch: &Batch) -> Result<Seq, StoreError> {
    for event in &batch.events {
        append_event(db, event)?;
    }
    for job in &batch.jobs {
        update_job(db, job)?;
    }
    for attempt in &batch.attempts {
        insert_attempt(db, attempt)?;
    }
    for row in &batch.audit {
        insert_audit(db, row)?;
    }
    last_seq(db)
}

fn insert_audit(db: &Connection, row: &AuditRow) -> Result<(), StoreError> {
    let mut insert = statement(db, "INSERT INTO audit (row) VALUES (?)")?;
    run(&mut insert, params![json("audit", row)?])
}

fn append_event(db: &Connection, event: &Event) -> Result<Seq, StoreError> {
    let mut insert = statement(db, "INSERT INTO events (event) VALUES (?)")?;
    run(&mut insert, params![json("events", event)?])?;
    Ok(Seq(db.last_insert_rowid().unsigned_abs()))
}

/// Also right when every event was dropped after a snapshot.
fn last_seq(db: &Connection) -> Result<Seq, StoreError> {
    let mut select = statement(db, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")
        .or_else(|_| statement(db, "SELECT coalesce(max(seq), 0) FROM events"))?;
    let last: i64 = select.query_row([], |row| row.get(0)).map_err(doing("find the log's end"))?;
    Ok(Seq(last.unsigned_abs()))
}

fn update_job(db: &Connection, job: &JobUpdate) -> Result<(), StoreError> {
    let mut update = statement(db, "UPDATE jobs SET phase = ?, outcome = ?, state = ? WHERE id = ?")?;
    let outcome = job.outcome.map(word).transpose()?;
    let changed = update
        .execute(params![job.phase.as_str(), outcome, json("jobs", job)?, id(job.id)])
        .map_err(doing("update a job"))?;
    if changed == 1 { Ok(()) } else { Err(StoreError::Unknown { what: format!("job {}", job.id) }) }
}

fn insert_attempt(db: &Connection, attempt: &AttemptRow) -> Result<(), StoreError> {
    let mut insert = statement(db, "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
    run(
        &mut insert,
        params![
            id(attempt.pod.job),
            attempt.pod.task.0,
            attempt.pod.attempt.0,
            attempt.node.as_str(),
            word(attempt.outcome)?,
            signed(attempt.placed_at_ms),
            signed(attempt.finished_at_ms),
            json("attempts", attempt)?
        ],
    )
}

pub(super) fn save_snapshot(db: &Connection, at: Seq, snapshot: &str) -> Result<(), StoreError> {
    let mut select = statement(db, "SELECT max(seq) FROM snapshots")?;
    let before: Option<i64> =
        select.query_row([], |row| row.get(0)).map_err(doing("find the snapshot before"))?;
    let mut insert = statement(db, "INSERT OR REPLACE INTO snapshots VALUES (?, ?)")?;
    run(&mut insert, params![signed(at.0), snapshot])?;
    let Some(before) = before else { return Ok(()) };
    let mut delete = statement(db, "DELETE FROM events WHERE seq <= ?")?;
    run(&mut delete, params![before])?;
    let mut delete = statement(db, "DELETE FROM snapshots WHERE seq < ?")?;
    run(&mut delete, params![before])
}

pub(super) fn put_document(db: &Connection, document: &DocumentRow) -> Result<(), StoreError> {
    let what = || format!("{} {} generation {}", document.kind, document.name, document.generation);
    if let Some(found) = read::document(db, &document.kind, &document.name, Some(document.generation))? {
        return if found.json == document.json { Ok(()) } else { Err(StoreError::Exists { what: what() }) };
    }
    let mut insert = statement(db, "INSERT INTO documents VALUES (?, ?, ?, ?, ?)")?;
    let DocumentRow { kind, name, generation, at_ms, json } = document;
    run(&mut insert, params![kind, name, signed(*generation), signed(*at_ms), json])
}

pub(super) fn create_token(db: &Connection, token: &TokenRow) -> Result<(), StoreError> {
    let mut insert = statement(db, "INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?)")?;
    let row = json("tokens", token)?;
    let added = insert
        .execute(params![token.id, token.sha256, signed(token.created_at_ms), row])
        .map_err(doing("keep a token"))?;
    if added == 1 { Ok(()) } else { Err(StoreError::Exists { what: format!("token {}", token.id) }) }
}

pub(super) fn revoke_token(db: &Connection, token: &str, at_ms: u64) -> Result<(), StoreError> {
    let sql = "UPDATE tokens SET row = json_set(row, '$.revoked_at_ms', \
               coalesce(json_extract(row, '$.revoked_at_ms'), ?2)) WHERE id = ?1";
    changed_one(db, sql, params![token, signed(at_ms)], || format!("token {token}"))
}

fn changed_one(
    db: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    what: impl FnOnce() -> String,
) -> Result<(), StoreError> {
    let changed = statement(db, sql)?.execute(params).map_err(doing("update a row"))?;
    if changed == 1 { Ok(()) } else { Err(StoreError::Unknown { what: what() }) }
}

fn statement<'db>(db: &'db Connection, sql: &str) -> Result<rusqlite::CachedStatement<'db>, StoreError> {
    db.prepare_cached(sql).map_err(doing("prepare a statement"))
}

fn run(
    statement: &mut rusqlite::CachedStatement<'_>,
    params: impl rusqlite::Params,
) -> Result<(), StoreError> {
    statement.execute(params).map_err(doing("write a row"))?;
    Ok(())
}

fn doing(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sqlite { doing, source }
}

fn json(table: &'static str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Row { table, source: Box::new(source) })
}

/// The serde word of an enum without fields.
fn word(value: Outcome) -> Result<String, StoreError> {
    Ok(json("jobs", &value)?.trim_matches('"').to_owned())
}

fn id(job: JobId) -> i64 {
    signed(job.get())
}

/// Times and positions fit into 63 bits for the next 292 million years.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
