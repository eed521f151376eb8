//! The file as it is written: its schema, a row of every table that is written with the JSON in it, and what becomes of a
//! text that a newer build wrote.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use rackwright_core::job::{
    CheckpointRef, Event, JobPhase, JobSpec, Limits, Outcome, Resources, TaskCounts, What,
};
use rackwright_store::{
    AttemptRow, Batch, DocumentRow, IdempotencyKey, JobUpdate, Role, Seq, SqliteOptions, SqliteStore,
    Store as _, Submit, TokenRow,
};
use rackwright_wire::id::{AttemptNo, JobId, NodeName, Owner, PodKey, PodUid, TaskIndex, Team};
use rusqlite::Connection;
use rusqlite::types::Value;
use std::path::{Path, PathBuf};

const NOW: u64 = 1_790_000_000_000;

fn submit() -> Submit {
    let body = br#"{"name": "fit", "image": "busybox", "command": ["true"]}"#;
    Submit {
        owner: Owner::new("ada").unwrap(),
        team: Team::new("vision").unwrap(),
        spec: JobSpec::from_json(body, &Limits::default()).unwrap(),
        datasets: Vec::new(),
        at_ms: NOW,
        idempotency: Some((IdempotencyKey::new("k1").unwrap(), "digest".to_owned())),
    }
}

fn attempt(pod: PodKey) -> AttemptRow {
    AttemptRow {
        pod,
        uid: Some(PodUid::new("6f1c3a52-0000-4000-8000-000000000001").unwrap()),
        node: NodeName::new("ml1").unwrap(),
        outcome: Outcome::Failed,
        exit_code: Some(137),
        reason: "OOMKilled".to_owned(),
        placed_at_ms: NOW,
        started_at_ms: Some(NOW + 1),
        finished_at_ms: NOW + 2,
        resources: Resources::default(),
        resumed: Some(CheckpointRef { task: pod.task, step: 7, set: "checkpoint-1".to_owned() }),
        checkpoints: vec![CheckpointRef { task: pod.task, step: 8, set: "checkpoint-2".to_owned() }],
        log_tail: "line\n".to_owned(),
    }
}

fn ended(id: JobId) -> JobUpdate {
    JobUpdate {
        id,
        phase: JobPhase::Finished,
        counts: TaskCounts { failed: 1, ..TaskCounts::default() },
        outcome: Some(Outcome::Failed),
        started_at_ms: Some(NOW + 1),
        finished_at_ms: Some(NOW + 2),
    }
}

fn token() -> TokenRow {
    TokenRow {
        id: "t1".to_owned(),
        sha256: "ab".repeat(32),
        owner: Owner::new("ada").unwrap(),
        team: Team::new("vision").unwrap(),
        role: Role::Submitter,
        note: "laptop".to_owned(),
        created_at_ms: NOW,
        expires_at_ms: Some(NOW + 100),
        revoked_at_ms: Some(NOW + 5),
    }
}

/// A store with a row in every table that this build writes.
async fn filled(folder: &Path) -> (SqliteStore, PathBuf) {
    let path = folder.join("jobs.db");
    let store = SqliteStore::open(SqliteOptions::at(&path)).unwrap();
    let id = store.submit(submit()).await.unwrap().record.id;
    let pod = PodKey { job: id, task: TaskIndex(0), attempt: AttemptNo(1) };
    let batch = Batch {
        events: vec![Event::new(NOW + 2, What::Archived { pod })],
        jobs: vec![ended(id)],
        attempts: vec![attempt(pod)],
        ..Batch::default()
    };
    store.append(batch).await.unwrap();
    let document = DocumentRow {
        kind: "manifest".to_owned(),
        name: "packages".to_owned(),
        generation: 3,
        at_ms: NOW,
        json: "{\"as\": \"given\"}".to_owned(),
    };
    store.put_document(document).await.unwrap();
    store.create_token(token()).await.unwrap();
    store.save_snapshot(Seq(1), "{\"as\": \"given\"}".to_owned()).await.unwrap();
    (store, path)
}

/// What `sqlite3 jobs.db .dump` shows, a row a line.
fn dump(path: &Path) -> String {
    let db = Connection::open(path).unwrap();
    let version: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    let mut lines = vec![format!("user_version {version}")];
    let texts = |sql: &str| -> Vec<String> {
        let mut select = db.prepare(sql).unwrap();
        select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    lines.extend(texts("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"));
    for table in texts("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name") {
        let mut select = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = select.column_count();
        let mut rows = select.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|at| match row.get::<_, Value>(at).unwrap() {
                Value::Null => "null".to_owned(),
                Value::Integer(number) => number.to_string(),
                Value::Text(text) => text,
                other @ (Value::Real(_) | Value::Blob(_)) => format!("{other:?}"),
            });
            lines.push(format!("{table}: {}", values.collect::<Vec<_>>().join(" | ")));
        }
    }
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_is_written_as_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = filled(folder.path()).await;
    insta::assert_snapshot!(dump(&path));
    drop(store);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_jobs_of_a_newer_build_are_refused_with_their_version() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = filled(folder.path()).await;
    let job = store.jobs(rackwright_store::JobQuery::default()).await.unwrap().rows.remove(0).record.id;
    let db = Connection::open(&path).unwrap();
    for (table, column) in [("events", "event"), ("jobs", "record")] {
        let newer = format!(
            "UPDATE {table} SET {column} = replace({column}, '{{\"version\":1,', '{{\"version\":2,\"added\":1,')"
        );
        assert!(db.execute(&newer, []).unwrap() > 0);
    }
    let refusals =
        [store.recover().await.map(drop).unwrap_err(), store.job(job).await.map(drop).unwrap_err()];
    for refused in refusals {
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert!(cause.starts_with("version 2, this build reads 1"), "{refused}: {cause}");
    }
}
