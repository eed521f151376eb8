//! The one thread that writes: many requests, one commit.

use crate::error::StoreError;
use rusqlite::{Connection, ErrorCode};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// Requests in one commit: keeps the wait for the first of them in the milliseconds.
const GROUP: usize = 512;

/// Does its work inside the transaction, or nothing when there is none, and gives back what to answer once
/// that is settled.
type Request = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Reply + Send>;
/// Told whether the commit failed, and why.
type Reply = Box<dyn FnOnce(Option<&rusqlite::Error>, &Path) + Send>;

/// The way to the writer thread. The thread ends when the last handle is gone.
#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Request>,
    waiting: usize,
}

impl Writer {
    pub(super) fn start(db: Connection, path: &Path, waiting: usize) -> Result<Self, StoreError> {
        let (queue, requests) = sync_channel(waiting);
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("job-store".to_owned())
            .spawn({
                let path = path.clone();
                move || write_all(&db, &path, &requests)
            })
            .map_err(|source| StoreError::Io { doing: "start the writer of", path, source })?;
        Ok(Self { queue, waiting })
    }

    /// Runs `work` in a savepoint of the next transaction; answers after its commit.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, answer) = oneshot::channel();
        let request: Request = Box::new(move |db| {
            let outcome = db.and_then(|db| in_savepoint(db, work));
            Box::new(move |commit, path| {
                let answer = match commit {
                    None => outcome,
                    Some(error) => Err(translate(error, path)),
                };
                let _caller_is_gone = sender.send(answer);
            })
        });
        match self.queue.try_send(request) {
            Ok(()) => answer.await.unwrap_or(Err(StoreError::Closed)),
            Err(TrySendError::Full(_)) => Err(StoreError::Busy { waiting: self.waiting }),
            Err(TrySendError::Disconnected(_)) => Err(StoreError::Closed),
        }
    }
}

fn write_all(db: &Connection, path: &Path, requests: &Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        if let Err(error) = db.execute_batch("BEGIN IMMEDIATE") {
            // Outside a transaction a savepoint is one of its own, and durable: nothing may run here.
            for request in std::iter::once(first).chain(requests.try_iter()).take(GROUP) {
                request(Err(translate(&error, path)))(None, path);
            }
            continue;
        }
        let mut replies = vec![first(Ok(db))];
        // SQLite ends the whole transaction by itself when the disk is full: nothing may join it then.
        while replies.len() < GROUP && !db.is_autocommit() {
            let Ok(next) = requests.try_recv() else { break };
            replies.push(next(Ok(db)));
        }
        let failed = commit(db).err();
        for reply in replies {
            reply(failed.as_ref(), path);
        }
    }
}

fn commit(db: &Connection) -> Result<(), rusqlite::Error> {
    if db.is_autocommit() {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
            Some("the transaction was rolled back".to_owned()),
        ));
    }
    db.execute_batch("COMMIT").inspect_err(|_| {
        let _already_over = db.execute_batch("ROLLBACK");
    })
}

/// What fails is undone alone; its neighbours in the transaction stay.
fn in_savepoint<T>(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let doing = |source| StoreError::Sqlite { doing: "write to the job store", source };
    db.execute_batch("SAVEPOINT request").map_err(doing)?;
    let outcome = work(db);
    if db.is_autocommit() {
        return outcome; // the whole transaction is gone; `commit` says so to everybody
    }
    let end = if outcome.is_ok() { "RELEASE request" } else { "ROLLBACK TO request; RELEASE request" };
    db.execute_batch(end).map_err(doing)?;
    outcome
}

fn translate(error: &rusqlite::Error, path: &Path) -> StoreError {
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return StoreError::DiskFull { path: path.to_owned() };
    }
    // The error goes to everybody in the group, and it cannot be cloned: its code and text can.
    let code = error.sqlite_error().copied();
    let code = code.unwrap_or_else(|| rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR));
    let source = rusqlite::Error::SqliteFailure(code, Some(error.to_string()));
    StoreError::Sqlite { doing: "commit to the job store", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(db: &Connection) -> Result<usize, StoreError> {
        let failed = |source| StoreError::Sqlite { doing: "insert", source };
        db.execute("INSERT INTO rows VALUES (1)", []).map_err(failed)
    }

    #[tokio::test]
    async fn what_was_answered_with_an_error_is_not_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE rows (number INTEGER)").unwrap();
        let stored = || {
            let reader = Connection::open(&path).unwrap();
            reader.query_row("SELECT count(*) FROM rows", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let db = Connection::open(&path).unwrap();
        db.busy_timeout(std::time::Duration::from_millis(500)).unwrap();
        let writer = Writer::start(db, &path, 8).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        // The lock is let go just after it kept the transaction from beginning.
        let refused = writer.run(move |db| {
            other.execute_batch("ROLLBACK").unwrap();
            insert(db)
        });
        assert!(refused.await.is_err());
        assert_eq!(stored(), 0);
        writer.run(insert).await.unwrap();
        assert_eq!(stored(), 1);
    }
}
