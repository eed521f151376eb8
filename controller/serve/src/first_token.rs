//! The first operator's token: made once, on a store that has none, in a file that only its owner reads.

use crate::auth::{NoRandomness, new_token};
use crate::brain::now_ms;
use rackwright_store::{Role, SqliteStore, Store as _, StoreError};
use rackwright_wire::id::{IdError, Owner, Team};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The file's name, beside the store.
const FILE: &str = "operator.token";

/// Why the first token could not be made; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum FirstTokenError {
    /// The store failed.
    #[error("ask the store for its tokens")]
    Store(#[source] StoreError),
    /// The machine has no randomness to give.
    #[error("draw a token")]
    Random(#[source] NoRandomness),
    /// The owner's name is of no use.
    #[error("name its owner")]
    Name(#[source] IdError),
    /// The file cannot be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes the token, unless there is any. The file is durable before the store knows the token: a crash
/// in between leaves a file whose token is no good, which the next start replaces.
///
/// # Errors
/// The store or the file system fails.
pub(crate) async fn ensure(store: &SqliteStore, store_file: &Path) -> Result<(), FirstTokenError> {
    if !store.tokens().await.map_err(FirstTokenError::Store)?.is_empty() {
        return Ok(());
    }
    let owner = Owner::new("operator").map_err(FirstTokenError::Name)?;
    let team = Team::new("ops").map_err(FirstTokenError::Name)?;
    let note = "made at the first start".to_owned();
    let made = new_token(Role::Operator, owner, team, note, now_ms());
    let (token, row) = made.map_err(FirstTokenError::Random)?;
    let path = store_file.with_file_name(FILE);
    write(&path, &token).map_err(|source| FirstTokenError::Write { path: path.clone(), source })?;
    store.create_token(row).await.map_err(FirstTokenError::Store)?;
    tracing::info!(path = %path.display(), "made the first operator's token");
    Ok(())
}

fn write(path: &Path, token: &str) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let _from_a_crash = std::fs::remove_file(&part);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(token.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
