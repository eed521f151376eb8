//! The embedded store: one SQLite file, WAL, synchronous FULL, one writer thread.
//!
//! Requests from many callers meet in a bounded queue; the writer takes what is there, gives each a
//! savepoint of its own inside one transaction, commits (one `fsync` for all of them) and answers. So
//! the price of durability is shared, and one bad request does not spoil its neighbours'. Readers have
//! connections of their own and never wait for the writer.

mod read;
mod schema;
mod write;
mod writer;

use crate::contract::Store;
use crate::error::StoreError;
use crate::rows::{
    AttemptRow, AuditQuery, AuditRow, Batch, DocumentRow, JobQuery, JobRow, Page, Recovered, Seq, Submit,
    Submitted, TokenRow, UsageRow,
};
use rackwright_wire::id::{JobId, PodKey, Team};
use rusqlite::Connection;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use writer::Writer;

/// Requests that may wait for the disk: at 500 submits a second, eight seconds' worth.
const QUEUE: usize = 4096;

/// How to open the store.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The database file; made when missing, its folder must exist.
    pub path: PathBuf,
    /// Requests that may wait for the disk; more are answered with [`StoreError::Busy`].
    pub queue: usize,
}

impl SqliteOptions {
    /// The usual settings for a file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), queue: QUEUE }
    }
}

/// A handle to the store; clones share the writer.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Held by the one controller, by nobody else who opens the file.
    _alone: Option<File>,
    writer: Writer,
    /// Idle read connections; more are opened when all are in use.
    readers: Mutex<Vec<Connection>>,
}

impl SqliteStore {
    /// Opens the file, brings its schema up to date and checks it.
    ///
    /// # Errors
    /// It cannot be opened, was written by a newer build, or is damaged.
    pub fn open(options: SqliteOptions) -> Result<Self, StoreError> {
        Self::start(options, None)
    }

    /// As [`SqliteStore::open`], for the controller, which keeps its state in memory: a second one on the
    /// same file would decide everything a second time. The lock is the kernel's: it lasts as long as any
    /// handle of this store, and ends with the process however that ends.
    ///
    /// # Errors
    /// As [`SqliteStore::open`]; [`StoreError::InUse`] when another controller has the lock.
    pub fn open_alone(options: SqliteOptions) -> Result<Self, StoreError> {
        let alone = lock(&options.path)?;
        Self::start(options, Some(alone))
    }

    fn start(options: SqliteOptions, alone: Option<File>) -> Result<Self, StoreError> {
        let connection = schema::open(&options.path)?;
        let writer = Writer::start(connection, &options.path, options.queue)?;
        let inner = Inner { path: options.path, _alone: alone, writer, readers: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.run(work).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        let reading = tokio::task::spawn_blocking(move || {
            let idle = inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => schema::open_reader(&inner.path)?,
            };
            let answer = work(&connection);
            inner.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            answer
        });
        reading.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Beside the database, because SQLite has locks of its own on that file.
fn lock(database: &Path) -> Result<File, StoreError> {
    let path = database.with_extension("lock");
    let failed = |source| StoreError::Io { doing: "lock", path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: database.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

impl Store for SqliteStore {
    async fn submit(&self, submit: Submit) -> Result<Submitted, StoreError> {
        self.write(move |db| write::submit(db, submit)).await
    }

    async fn append(&self, batch: Batch) -> Result<Seq, StoreError> {
        self.write(move |db| write::append(db, &batch)).await
    }

    async fn recover(&self) -> Result<Recovered, StoreError> {
        self.read(read::recover).await
    }

    async fn save_snapshot(&self, at: Seq, snapshot: String) -> Result<(), StoreError> {
        self.write(move |db| write::save_snapshot(db, at, &snapshot)).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRow>, StoreError> {
        self.read(move |db| read::job(db, id)).await
    }

    async fn jobs(&self, query: JobQuery) -> Result<Page<JobRow>, StoreError> {
        self.read(move |db| read::jobs(db, &query)).await
    }

    async fn attempts(
        &self,
        job: JobId,
        limit: u32,
        after: Option<String>,
    ) -> Result<Page<AttemptRow>, StoreError> {
        self.read(move |db| read::attempts(db, job, limit, after.as_deref())).await
    }

    async fn attempt(&self, pod: PodKey) -> Result<Option<AttemptRow>, StoreError> {
        self.read(move |db| read::attempt(db, &pod)).await
    }

    async fn usage(
        &self,
        from_ms: u64,
        until_ms: u64,
        team: Option<Team>,
    ) -> Result<Vec<UsageRow>, StoreError> {
        self.read(move |db| read::usage(db, from_ms, until_ms, team.as_ref())).await
    }

    async fn put_document(&self, document: DocumentRow) -> Result<(), StoreError> {
        self.write(move |db| write::put_document(db, &document)).await
    }

    async fn document(
        &self,
        kind: &str,
        name: &str,
        generation: Option<u64>,
    ) -> Result<Option<DocumentRow>, StoreError> {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        self.read(move |db| read::document(db, &kind, &name, generation)).await
    }

    async fn documents(&self, kind: &str) -> Result<Vec<DocumentRow>, StoreError> {
        let kind = kind.to_owned();
        self.read(move |db| read::documents(db, &kind)).await
    }

    async fn audit(&self, query: AuditQuery) -> Result<Page<AuditRow>, StoreError> {
        self.read(move |db| read::audit(db, &query)).await
    }

    async fn create_token(&self, token: TokenRow) -> Result<(), StoreError> {
        self.write(move |db| write::create_token(db, &token)).await
    }

    async fn token_by_hash(&self, sha256: &str) -> Result<Option<TokenRow>, StoreError> {
        let sha256 = sha256.to_owned();
        self.read(move |db| read::token_by_hash(db, &sha256)).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.read(read::tokens).await
    }

    async fn revoke_token(&self, id: &str, at_ms: u64) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write(move |db| write::revoke_token(db, &id, at_ms)).await
    }
}
