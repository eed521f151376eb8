//! A head start for what every server waits for.
//!
//! The operator's uplink and processor are shared by all uploads. Files that a state of several servers needs
//! (etcd's and the API server's) go first everywhere; the rest waits for them, but never longer than ten
//! seconds: one slow server must not hold up the others.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The rest waits no longer than this.
const LONGEST: Duration = Duration::from_secs(10);

/// Counts the files that go first, on all servers together.
#[derive(Debug, Clone)]
pub struct HeadStart {
    first: Arc<watch::Sender<usize>>,
    until: Instant,
}

impl Default for HeadStart {
    fn default() -> Self {
        Self::lasting(LONGEST)
    }
}

impl HeadStart {
    fn lasting(longest: Duration) -> Self {
        Self { first: Arc::new(watch::channel(0).0), until: Instant::now() + longest }
    }

    /// So many more files go first.
    pub(crate) fn enter(&self, files: usize) {
        self.first.send_modify(|first| *first += files);
    }

    /// So many of them arrived, or will not.
    pub(crate) fn leave(&self, files: usize) {
        self.first.send_modify(|first| *first = first.saturating_sub(files));
    }

    /// Whether the rest has to wait now.
    pub(crate) fn holds(&self) -> bool {
        *self.first.borrow() > 0 && Instant::now() < self.until
    }

    /// Until the rest may go.
    pub(crate) async fn over(&self) {
        let mut first = self.first.subscribe();
        let arrived = first.wait_for(|first| *first == 0);
        // Late or arrived: both end the wait.
        let _either = tokio::time::timeout_at(self.until, arrived).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rest_goes_when_the_first_arrived_or_the_time_is_over() {
        let start = HeadStart::lasting(Duration::from_mins(10));
        assert!(!start.holds());
        start.enter(2);
        start.leave(1);
        assert!(start.holds());
        start.leave(1);
        start.over().await;
        assert!(!start.holds());
        let late = HeadStart::lasting(Duration::ZERO);
        late.enter(1);
        late.over().await;
        assert!(!late.holds(), "the time is over");
    }
}
