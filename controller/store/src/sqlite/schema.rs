//! The file: settings, schema versions and the check at start.
//!
//! Rows are JSON beside the columns that queries need, so an operator can ask with plain SQL:
//! `SELECT id, json_extract(record, '$.spec.name'), phase FROM jobs`.

use crate::error::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// Schema steps; the file's `user_version` says how many it has seen. Never edited, only added to.
const MIGRATIONS: &[&str] = &[TABLES, KEYS_BY_TEAM];

const TABLES: &str = "CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        owner TEXT NOT NULL, team TEXT NOT NULL, project TEXT NOT NULL,
        phase TEXT NOT NULL, outcome TEXT,
        submitted_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL, state TEXT NOT NULL
    ) STRICT;
    CREATE INDEX jobs_by_team ON jobs (team, id);
    CREATE INDEX jobs_by_phase ON jobs (phase, id);
    CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL) STRICT;
    CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, snapshot TEXT NOT NULL) STRICT;
    CREATE TABLE idempotency (
        owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
        job INTEGER NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (owner, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE attempts (
        job INTEGER NOT NULL, task INTEGER NOT NULL, attempt INTEGER NOT NULL,
        node TEXT NOT NULL, outcome TEXT NOT NULL,
        placed_at_ms INTEGER NOT NULL, finished_at_ms INTEGER NOT NULL,
        history TEXT NOT NULL,
        PRIMARY KEY (job, task, attempt)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX attempts_by_end ON attempts (finished_at_ms);
    CREATE TABLE documents (
        kind TEXT NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, json TEXT NOT NULL,
        PRIMARY KEY (kind, name, generation)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE sealed (
        id TEXT PRIMARY KEY, digest TEXT NOT NULL, kind TEXT NOT NULL, job INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, loaded_at_ms INTEGER, row TEXT NOT NULL
    ) STRICT;
    CREATE INDEX sealed_by_job ON sealed (job);
    CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, row TEXT NOT NULL) STRICT;
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, created_at_ms INTEGER NOT NULL, row TEXT NOT NULL
    ) STRICT;";

/// An owner may submit for several teams; each has keys of its own.
const KEYS_BY_TEAM: &str = "ALTER TABLE idempotency RENAME TO keys_by_owner;
    CREATE TABLE idempotency (
        team TEXT NOT NULL, owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
        job INTEGER NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (team, owner, key)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO idempotency
        SELECT jobs.team, keys_by_owner.owner, key, digest, job, seq
        FROM keys_by_owner JOIN jobs ON jobs.id = keys_by_owner.job;
    DROP TABLE keys_by_owner;";

/// How long a second process (a token made by hand while serve runs) waits for the write lock.
const BUSY: Duration = Duration::from_secs(10);

/// Opens the file for the writer: settings, schema, check.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |doing| move |source| StoreError::Sqlite { doing, source };
    let mut db = Connection::open(path).map_err(failed("open the job store"))?;
    db.busy_timeout(BUSY).map_err(failed("set up the job store"))?;
    db.pragma_update(None, "journal_mode", "WAL").map_err(failed("set up the job store"))?;
    db.pragma_update(None, "synchronous", "FULL").map_err(failed("set up the job store"))?;
    check(&db, path)?;
    migrate(&mut db, path)?;
    Ok(db)
}

/// Opens a connection that can only read.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Sqlite { doing: "open the job store for reading", source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    db.busy_timeout(BUSY).map_err(failed)?;
    Ok(db)
}

fn check(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let finding = db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    let finding = finding.unwrap_or_else(|error| error.to_string());
    if finding == "ok" { Ok(()) } else { Err(StoreError::Damaged { path: path.to_owned(), finding }) }
}

fn migrate(db: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Sqlite { doing: "bring the job store's schema up to date", source };
    let transaction =
        db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    let found: u32 =
        transaction.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    for step in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(step).map_err(failed)?;
    }
    transaction.pragma_update(None, "user_version", known).map_err(failed)?;
    transaction.commit().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_newer_build_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let db = open(&path).unwrap();
        db.pragma_update(None, "user_version", 99).unwrap();
        drop(db);
        assert!(matches!(open(&path), Err(StoreError::Newer { found: 99, .. })));
        let left: u32 = Connection::open(&path)
            .unwrap()
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(left, 99);
    }

    #[test]
    fn keys_of_the_first_schema_belong_to_the_team_of_their_job() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(TABLES).unwrap();
        db.execute_batch(
            "INSERT INTO jobs (id, owner, team, project, phase, submitted_at_ms, record, state)
                VALUES (7, 'ada', 'vision', 'default', 'pending', 1, '{}', '{}');
             INSERT INTO idempotency VALUES ('ada', 'k1', 'digest', 7, 3);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(db);
        let db = open(&path).unwrap();
        let sql = "SELECT team || owner || key || digest || job || seq FROM idempotency";
        let key: String = db.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(key, "visionadak1digest73");
    }

    #[test]
    fn a_file_that_is_no_database_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        std::fs::write(&path, vec![7_u8; 8192]).unwrap();
        assert!(open(&path).is_err());
    }
}
