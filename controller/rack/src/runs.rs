//! What is known about all servers' runs together, for those who wait for their outcome.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared between the servers' runs and whoever waits for the cluster that they make.
#[derive(Debug)]
pub struct Runs {
    patience: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    given_up: BTreeSet<String>,
    ended: Option<Instant>,
}

impl Runs {
    /// Nothing has ended. `patience` counts from the end of the last run: packages and artifacts of
    /// a first apply may take any time before it.
    pub fn new(patience: Duration) -> Self {
        Self { patience, known: Mutex::default() }
    }

    /// A server will not become a node now.
    pub fn give_up(&self, server: &str) {
        self.locked(|known| {
            known.given_up.insert(server.to_owned());
        });
    }

    /// Whether a server will not become a node now.
    pub fn is_given_up(&self, server: &str) -> bool {
        self.locked(|known| known.given_up.contains(server))
    }

    /// The last run ended at this instant.
    pub fn all_ended(&self, at: Instant) {
        self.locked(|known| known.ended = known.ended.or(Some(at)));
    }

    /// The seconds that were waited, once that is longer than the patience.
    pub fn overdue(&self) -> Option<u64> {
        let ended = self.locked(|known| known.ended)?;
        (ended.elapsed() >= self.patience).then_some(self.patience.as_secs())
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_from_the_end_of_the_last_run() {
        let runs = Runs::new(Duration::from_mins(1));
        assert_eq!(runs.overdue(), None);
        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(61)) else { return };
        runs.all_ended(long_ago);
        runs.all_ended(Instant::now());
        assert_eq!(runs.overdue(), Some(60), "the first word counts");
    }
}
