//! What others may know about the loop without asking it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How the loop is.
#[derive(Debug, Default)]
pub(crate) struct Health {
    store_failing: AtomicBool,
    stopped: AtomicBool,
    synced_ms: AtomicU64,
}

impl Health {
    /// The store answered, or not.
    pub(crate) fn store(&self, works: bool) {
        self.store_failing.store(!works, Ordering::Relaxed);
    }

    /// The loop has ended.
    pub(crate) fn stopped(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The cluster was listed completely.
    pub(crate) fn synced(&self, now_ms: u64) {
        self.synced_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Whether the cluster was listed completely since the start.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced_ms() > 0
    }

    /// When that was last, milliseconds since the epoch; 0 for never.
    pub(crate) fn synced_ms(&self) -> u64 {
        self.synced_ms.load(Ordering::Relaxed)
    }

    /// Why submits are not accepted now.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        if self.stopped.load(Ordering::Relaxed) {
            Some("the loop has stopped")
        } else if self.store_failing.load(Ordering::Relaxed) {
            Some("the job store cannot write")
        } else {
            None
        }
    }
}
