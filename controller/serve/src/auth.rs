//! Who calls: bearer tokens, looked up by their hash, and what their role allows.
//!
//! A token is 32 random bytes, so one round of SHA-256 is enough to keep it: there is nothing to guess.
//! Owner and team come from the token, never from a body.

use crate::problem::Problem;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rackwright_store::{Role, SqliteStore, Store as _, StoreError, TokenRow};
use rackwright_wire::id::{Owner, Team};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A looked-up token counts for this long: a revocation takes effect within it.
const REMEMBER: Duration = Duration::from_secs(5);
/// Looked-up tokens that are remembered at once.
const REMEMBERED: usize = 4096;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's public id.
    pub token: String,
    /// Whom it stands for.
    pub owner: Owner,
    /// In which team.
    pub team: Team,
    /// What it may do.
    pub role: Role,
}

impl Caller {
    /// Whether the caller may do what `role` may do.
    ///
    /// # Errors
    /// A `forbidden` problem that names both roles.
    pub fn require(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let detail = format!("this needs the role {role}; the token of {} has {}", self.owner, self.role);
        Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
            .hint("ask an operator for a token with that role"))
    }

    /// Whether the caller may see what belongs to `team`: operators see everything.
    pub fn sees(&self, team: &Team) -> bool {
        self.role == Role::Operator || self.team == *team
    }
}

/// The machine has no randomness to give; reads after "failed to".
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("draw random bytes")]
pub struct NoRandomness;

/// A new token: what its owner gets, once, and what is kept.
///
/// # Errors
/// The machine has no randomness to give.
pub fn new_token(
    role: Role,
    owner: Owner,
    team: Team,
    note: String,
    now_ms: u64,
) -> Result<(String, TokenRow), NoRandomness> {
    let random = SystemRandom::new();
    let (mut secret, mut id) = ([0; 32], [0; 5]);
    random.fill(&mut secret).and_then(|()| random.fill(&mut id)).map_err(|_unspecified| NoRandomness)?;
    let token = format!("rw_{}", URL_SAFE_NO_PAD.encode(secret));
    let row = TokenRow {
        id: format!("t{}", hex::encode(id)),
        sha256: hash(&token),
        owner,
        team,
        role,
        note,
        created_at_ms: now_ms,
        expires_at_ms: None,
        revoked_at_ms: None,
    };
    Ok((token, row))
}

fn hash(token: &str) -> String {
    hex::encode(digest(&SHA256, token.as_bytes()))
}

/// Looks up tokens, and remembers them for a moment.
#[derive(Debug)]
pub(crate) struct Tokens {
    store: SqliteStore,
    recent: Mutex<HashMap<String, (Instant, TokenRow)>>,
}

impl Tokens {
    /// Over a store.
    pub(crate) fn new(store: SqliteStore) -> Self {
        Self { store, recent: Mutex::default() }
    }

    /// The caller behind a request's `Authorization` header.
    ///
    /// # Errors
    /// No token, or one that is not good now; the store cannot be asked.
    pub(crate) async fn caller(&self, headers: &HeaderMap, now_ms: u64) -> Result<Caller, Problem> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(bearer).ok_or_else(|| {
            unauthenticated("no bearer token came with the request")
                .hint("send `Authorization: Bearer rw_…`; an operator makes tokens")
        })?;
        let row =
            self.row(hash(token)).await.map_err(|cause| Problem::internal("look up a token", &cause))?;
        match row {
            Some(row) if row.is_valid(now_ms) => {
                Ok(Caller { token: row.id, owner: row.owner, team: row.team, role: row.role })
            }
            _ => Err(unauthenticated("the token is unknown, expired or revoked")
                .hint("ask an operator for a new one")),
        }
    }

    async fn row(&self, sha256: String) -> Result<Option<TokenRow>, StoreError> {
        let now = Instant::now();
        if let Some((at, row)) = self.lock().get(&sha256)
            && now.duration_since(*at) < REMEMBER
        {
            return Ok(Some(row.clone()));
        }
        let found = self.store.token_by_hash(&sha256).await?;
        let mut recent = self.lock();
        if recent.len() >= REMEMBERED {
            recent.clear();
        }
        match &found {
            Some(row) => recent.insert(sha256, (now, row.clone())),
            None => recent.remove(&sha256),
        };
        Ok(found)
    }

    /// Forgets what was looked up, after a change of our own.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, TokenRow)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn unauthenticated(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_and_only_its_hash_is_kept() {
        let make = || {
            new_token(Role::Viewer, Owner::new("a").unwrap(), Team::new("t").unwrap(), String::new(), 1)
                .unwrap()
        };
        let ((first, row), (second, _)) = (make(), make());
        assert_eq!(first.len(), 3 + 43);
        assert_ne!(first, second);
        assert_eq!(row.sha256, hash(&first));
        assert!(!serde_json::to_string(&row).unwrap().contains(&first));
    }

    #[test]
    fn a_role_allows_what_lower_roles_may() {
        let caller = |role| Caller {
            token: "t".into(),
            owner: Owner::new("a").unwrap(),
            team: Team::new("t").unwrap(),
            role,
        };
        assert!(caller(Role::Operator).require(Role::Submitter).is_ok());
        assert_eq!(caller(Role::Viewer).require(Role::Submitter).unwrap_err().code(), "forbidden");
        assert!(!caller(Role::Submitter).sees(&Team::new("other").unwrap()));
    }
}
