//! The trait that serve is written against. SQLite is behind it now; PostgreSQL can follow with the
//! same contract tests (`tests/contract.rs`).

use crate::error::StoreError;
use crate::rows::{
    AttemptRow, AuditQuery, AuditRow, Batch, DocumentRow, JobQuery, JobRow, Page, Recovered, Seq, Submit,
    Submitted, TokenRow, UsageRow,
};
use rackwright_wire::id::{JobId, PodKey, Team};
use std::future::Future;

/// A store of jobs, their log and their history. Handles are cheap to clone.
///
/// Every method that changes something answers after the change is durable; when it answers with an
/// error, nothing was changed (except [`StoreError::Closed`], which leaves it unknown).
pub trait Store: Clone + Send + Sync + 'static {
    /// Accepts a job: id, row, `Submitted` event, idempotency key and audit row in one transaction.
    /// Dependencies that have already succeeded are noted in the record; one that ended otherwise, was never
    /// accepted or is another team's is refused, and so is a deadline that is past. A key that was used before
    /// answers its job whatever has become of all that.
    fn submit(&self, submit: Submit) -> impl Future<Output = Result<Submitted, StoreError>> + Send;

    /// Appends a batch; answers with the log's last position.
    fn append(&self, batch: Batch) -> impl Future<Output = Result<Seq, StoreError>> + Send;

    /// What the scheduler is rebuilt from: the newest snapshot and the events after it.
    fn recover(&self) -> impl Future<Output = Result<Recovered, StoreError>> + Send;

    /// Keeps a snapshot that contains everything up to `at`, and drops events that the snapshot before
    /// it already contained (so the newest snapshot can be damaged and the log still suffices).
    fn save_snapshot(&self, at: Seq, snapshot: String)
    -> impl Future<Output = Result<(), StoreError>> + Send;

    /// One job.
    fn job(&self, id: JobId) -> impl Future<Output = Result<Option<JobRow>, StoreError>> + Send;

    /// Jobs, newest first.
    fn jobs(&self, query: JobQuery) -> impl Future<Output = Result<Page<JobRow>, StoreError>> + Send;

    /// A job's ended attempts in order of task and attempt; `after` is the cursor of the page before. Of their log
    /// tails, a page holds the newest, 1 MiB together; [`Store::attempt`] has each.
    fn attempts(
        &self,
        job: JobId,
        limit: u32,
        after: Option<String>,
    ) -> impl Future<Output = Result<Page<AttemptRow>, StoreError>> + Send;

    /// One ended attempt.
    fn attempt(&self, pod: PodKey) -> impl Future<Output = Result<Option<AttemptRow>, StoreError>> + Send;

    /// Ended attempts that held room at any time in `from_ms..until_ms`, of one team or of all.
    fn usage(
        &self,
        from_ms: u64,
        until_ms: u64,
        team: Option<Team>,
    ) -> impl Future<Output = Result<Vec<UsageRow>, StoreError>> + Send;

    /// Stores a document once; the same content again is fine, other content under the same kind, name
    /// and generation is refused.
    fn put_document(&self, document: DocumentRow) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The newest document of a kind and name, or that of one generation.
    fn document(
        &self,
        kind: &str,
        name: &str,
        generation: Option<u64>,
    ) -> impl Future<Output = Result<Option<DocumentRow>, StoreError>> + Send;

    /// The newest document of each name of a kind, by name.
    fn documents(&self, kind: &str) -> impl Future<Output = Result<Vec<DocumentRow>, StoreError>> + Send;

    /// Audit rows, oldest first.
    fn audit(&self, query: AuditQuery) -> impl Future<Output = Result<Page<AuditRow>, StoreError>> + Send;

    /// Keeps a new token.
    fn create_token(&self, token: TokenRow) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The token with this SHA-256 (hex), revoked and expired ones too.
    fn token_by_hash(
        &self,
        sha256: &str,
    ) -> impl Future<Output = Result<Option<TokenRow>, StoreError>> + Send;

    /// All tokens, oldest first.
    fn tokens(&self) -> impl Future<Output = Result<Vec<TokenRow>, StoreError>> + Send;

    /// Revokes a token; revoking it again changes nothing.
    fn revoke_token(&self, id: &str, at_ms: u64) -> impl Future<Output = Result<(), StoreError>> + Send;
}
