//! The scheduler's state after a restart, from what the store holds.

use rackwright_core::sched::{Config, Sched};
use rackwright_store::{Seq, SqliteStore, Store as _, StoreError};

/// What is left of a state after a restart: the newest snapshot and the events after it, with the log's
/// last position and the number of those events.
///
/// # Errors
/// The store cannot be read.
pub(crate) async fn recover(
    store: &SqliteStore,
    config: Config,
) -> Result<(Sched, Seq, usize), RecoverError> {
    let recovered = store.recover().await.map_err(RecoverError::Store)?;
    let mut last = Seq::default();
    let mut sched = match recovered.snapshot {
        Some((at, text)) => {
            last = at;
            let snapshot = serde_json::from_str(&text).map_err(RecoverError::Snapshot)?;
            Sched::restore(config, snapshot)
        }
        None => Sched::new(config),
    };
    for (at, event) in &recovered.events {
        last = *at;
        sched.apply(event);
    }
    sched.sight(None);
    Ok((sched, last, recovered.events.len()))
}

/// Why the state could not be rebuilt; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store cannot be read.
    #[error("read the event log")]
    Store(#[source] StoreError),
    /// The snapshot cannot be read.
    #[error("understand the newest snapshot")]
    Snapshot(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_core::job::{Event, What};
    use rackwright_store::{Batch, SqliteOptions};
    use rackwright_wire::id::NodeName;

    #[tokio::test]
    async fn what_a_restart_replays_counts_towards_the_next_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::at(folder.path().join("jobs.db"))).unwrap();
        let gone = |name| Event::new(1, What::NodeGone { node: NodeName::new(name).unwrap() });
        store.append(Batch::of(vec![gone("ml1"), gone("ml2")])).await.unwrap();
        let (sched, last, replayed) = recover(&store, Config::default()).await.unwrap();
        assert_eq!(replayed, 2);
        store.save_snapshot(last, serde_json::to_string(&sched.snapshot()).unwrap()).await.unwrap();
        assert_eq!(recover(&store, Config::default()).await.unwrap().2, 0);
    }
}
