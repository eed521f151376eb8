//! A controller is killed while it writes: everything that it answered is there afterwards, and the
//! file needs no repair.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]
#![expect(clippy::wildcard_enum_match_arm, reason = "tests ask for one kind of event and pass over the rest")]

use rackwright_core::job::{JobSpec, Limits, What};
use rackwright_store::{IdempotencyKey, SqliteOptions, SqliteStore, Store as _, StoreError, Submit};
use rackwright_wire::id::{JobId, Owner, Team};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tells the child, which is this same test binary, where to write.
const FOLDER: &str = "RACKWRIGHT_TEST_STORE";
const CLIENTS: u64 = 16;

fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions::at(folder.join("jobs.db"))).unwrap()
}

fn submit(key: Option<String>) -> Submit {
    let body = br#"{"name": "fit", "image": "busybox", "array": {"count": 20}}"#;
    Submit {
        owner: Owner::new("ada").unwrap(),
        team: Team::new("vision").unwrap(),
        spec: JobSpec::from_json(body, &Limits::default()).unwrap(),
        datasets: Vec::new(),
        at_ms: 1_790_000_000_000,
        idempotency: key.map(|key| (IdempotencyKey::new(&key).unwrap(), "digest".to_owned())),
    }
}

/// Not a test of its own: what the killed process does. Without the variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_submits_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let store = open(&folder);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(submit_for_ever(store.clone()));
    }
    clients.join_all().await;
}

async fn submit_for_ever(store: SqliteStore) {
    while let Ok(accepted) = store.submit(submit(None)).await {
        let mut out = std::io::stdout().lock();
        writeln!(out, "accepted {}", accepted.record.id).unwrap();
        out.flush().unwrap();
    }
}

/// Starts the child, lets it answer `answers` submits, kills it; returns every id that it answered.
fn submit_and_kill(folder: &Path, answers: usize) -> Vec<JobId> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_submits_until_it_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ids = Vec::new();
    let mut killed = false;
    while let Some(Ok(line)) = lines.next() {
        // The test harness writes its own words into the first line.
        ids.extend(line.split("accepted ").nth(1).and_then(|id| id.parse::<JobId>().ok()));
        if ids.len() >= answers && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    assert!(killed, "the child ended by itself after {} answers", ids.len());
    child.wait().unwrap();
    ids
}

#[tokio::test]
async fn whatever_was_answered_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut answered = Vec::new();
    for round in 1..=3 {
        answered.extend(submit_and_kill(folder.path(), round * 40));
    }
    let store = open(folder.path());
    let recovered = store.recover().await.unwrap();
    let logged: std::collections::BTreeSet<JobId> = recovered
        .events
        .iter()
        .filter_map(|(_, event)| match &event.what {
            What::Submitted { job } => Some(job.id),
            _ => None,
        })
        .collect();
    assert_eq!(logged.len(), recovered.events.len(), "no job is in the log twice");
    for id in &answered {
        assert!(logged.contains(id), "{id} was answered and is not in the log");
        assert!(store.job(*id).await.unwrap().is_some(), "{id} was answered and has no row");
    }
    assert!(answered.len() >= 240);
}

#[tokio::test]
async fn a_key_that_was_answered_still_answers_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).submit(submit(Some("k".to_owned()))).await.unwrap();
    let again = open(folder.path()).submit(submit(Some("k".to_owned()))).await.unwrap();
    assert_eq!((again.record, again.replayed), (first.record, true));
}

#[tokio::test]
async fn a_second_controller_is_kept_out_until_the_first_has_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let alone = || SqliteStore::open_alone(SqliteOptions::at(folder.path().join("jobs.db")));
    let first = alone().unwrap();
    let handle = first.clone();
    assert!(matches!(alone(), Err(StoreError::InUse { .. })), "a second controller opened the store");
    // A token made by hand goes into the same file while the controller serves.
    drop(open(folder.path()));
    drop(first);
    assert!(matches!(alone(), Err(StoreError::InUse { .. })), "a handle is left, and it can write");
    drop(handle);
    alone().unwrap();
}

#[tokio::test]
async fn more_than_the_queue_holds_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(SqliteOptions { path: folder.path().join("jobs.db"), queue: 2 }).unwrap();
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let store = store.clone();
        flood.spawn(async move { store.submit(submit(None)).await });
    }
    let answers = flood.join_all().await;
    let busy = answers.iter().filter(|answer| matches!(answer, Err(StoreError::Busy { waiting: 2 }))).count();
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(busy > 0 && accepted > 0, "{accepted} accepted, {busy} refused");
    assert_eq!(busy + accepted, 500);
    assert_eq!(store.recover().await.unwrap().events.len(), accepted, "what was refused left nothing");
}

#[tokio::test]
async fn a_damaged_file_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    {
        let store = open(folder.path());
        for _ in 0..200 {
            store.submit(submit(None)).await.unwrap();
        }
    }
    // A checkpoint brings all pages from the log into the file.
    rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    let refused = SqliteStore::open(SqliteOptions::at(&path));
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}
