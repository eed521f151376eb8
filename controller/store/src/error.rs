//! What can go wrong with the store; texts read after "failed to".

use rackwright_wire::id::JobId;
use std::path::PathBuf;

/// Why the store did not do what it was asked; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The idempotency key stands for another body.
    #[error("use the idempotency key for another body than that of {first}")]
    KeyReused {
        /// The job that the key made.
        first: JobId,
    },
    /// Something that is created once exists with other content.
    #[error("create {what}: it exists with other content")]
    Exists {
        /// What, with its name.
        what: String,
    },
    /// There is no such row.
    #[error("find {what}")]
    Unknown {
        /// What, with its name.
        what: String,
    },
    /// A job depends on one that did not succeed, that was never accepted, or that is another team's.
    #[error("depend on {job}: it {why}")]
    Dependency {
        /// The dependency.
        job: JobId,
        /// `is not known` or `has ended as failed`.
        why: String,
    },
    /// The job's deadline is not in the future.
    #[error("accept a job whose deadline {deadline_s} is past")]
    DeadlinePast {
        /// Seconds since the epoch.
        deadline_s: u64,
    },
    /// A cursor that no listing gave out.
    #[error("use the cursor {cursor:?}: this listing did not give it out")]
    Cursor {
        /// What was given.
        cursor: String,
    },
    /// More requests wait than the queue holds; try again.
    #[error("queue one more request: {waiting} wait for the disk already")]
    Busy {
        /// The queue's length.
        waiting: usize,
    },
    /// The disk is full.
    #[error("write {path}: no space is left")]
    DiskFull {
        /// The database file.
        path: PathBuf,
    },
    /// The file was written by a newer build.
    #[error("open {path}: it has schema {found}, this build knows up to {known}")]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest that this build knows.
        known: u32,
    },
    /// The file is damaged.
    #[error("open {path}: it is damaged: {finding}")]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// The first finding of the integrity check.
        finding: String,
    },
    /// A stored row cannot be read.
    #[error("read a row of {table}")]
    Row {
        /// The table.
        table: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another controller serves from this store.
    #[error("{path} is in use by another controller")]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("{doing}")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The store's thread has ended.
    #[error("reach the store: it is closed")]
    Closed,
    /// The store's folder or lock could not be used.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
