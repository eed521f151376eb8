//! The job store: a trait, and embedded SQLite behind it.
//!
//! The store is the only memory that survives: the scheduler is rebuilt from its log, history and bill
//! are queries on its rows. Its promise is one sentence: **what was answered is durable**. A reply
//! leaves after the commit that holds the change has been synced to disk, and everything that belongs
//! together (an event, the job's row, the attempt's history) is in one transaction.
//!
//! Modules in the order in which data flows: the rows ([`rows`]), the trait ([`contract`]), what can go
//! wrong ([`error`]) and the embedded store ([`sqlite`]). Jobs are never kept in the cluster's etcd.

pub mod contract;
pub mod error;
pub mod rows;
pub mod sqlite;

pub use contract::Store;
pub use error::StoreError;
pub use rows::{
    AttemptRow, AuditQuery, AuditRow, Batch, DocumentRow, IdempotencyKey, JobQuery, JobRow, JobUpdate, Page,
    Recovered, Role, Seq, Submit, Submitted, TokenRow, UsageRow,
};
pub use sqlite::{SqliteOptions, SqliteStore};
