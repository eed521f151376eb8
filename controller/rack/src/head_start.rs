//! A head start for what others wait for.
//!
//! The operator's uplink and processor are shared by all uploads, and in a lab by the servers too. What a
//! state of several servers needs (etcd's and the API server's files) goes first everywhere; then what
//! joins a server to it; the rest (images of jobs, databases) when nobody waits for a state any more.
//! Neither ever waits long: one slow server must not hold up the others.

use crate::urgency::Tier;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Joining files wait no longer than this for shared ones.
const LONGEST_JOINING: Duration = Duration::from_secs(10);
/// The rest waits no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(20);

/// What others wait for, on all servers together.
#[derive(Debug, Clone)]
pub struct HeadStart {
    awaited: Arc<watch::Sender<Awaited>>,
    joining_at: Instant,
    rest_at: Instant,
}

/// How much of each tier is on its way.
#[derive(Debug, Clone, Copy, Default)]
struct Awaited {
    shared: usize,
    joining: usize,
}

/// One thing that others wait for; they stop waiting when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    tier: Tier,
    awaited: Arc<watch::Sender<Awaited>>,
}

impl Default for HeadStart {
    fn default() -> Self {
        Self::lasting(LONGEST_JOINING, LONGEST_REST)
    }
}

impl HeadStart {
    fn lasting(joining: Duration, rest: Duration) -> Self {
        let now = Instant::now();
        let awaited = Arc::new(watch::channel(Awaited::default()).0);
        Self { awaited, joining_at: now + joining, rest_at: now + rest }
    }

    /// Others wait for this from now on.
    pub(crate) fn hold(&self, tier: Tier) -> Held {
        self.awaited.send_modify(|awaited| awaited.change(tier, |count| count.saturating_add(1)));
        Held { tier, awaited: Arc::clone(&self.awaited) }
    }

    /// Whether a file of this tier has to wait now.
    pub(crate) fn holds(&self, tier: Tier) -> bool {
        self.awaited.borrow().stops(tier) && Instant::now() < self.deadline(tier)
    }

    /// Until a file of this tier may go.
    pub(crate) async fn over(&self, tier: Tier) {
        let mut awaited = self.awaited.subscribe();
        let free = awaited.wait_for(|awaited| !awaited.stops(tier));
        // Late or free: both end the wait.
        let _either = tokio::time::timeout_at(self.deadline(tier), free).await;
    }

    fn deadline(&self, tier: Tier) -> Instant {
        if tier == Tier::Rest { self.rest_at } else { self.joining_at }
    }
}

impl Awaited {
    fn stops(self, tier: Tier) -> bool {
        match tier {
            Tier::Shared => false,
            Tier::Joining => self.shared > 0,
            Tier::Rest => self.shared > 0 || self.joining > 0,
        }
    }

    fn change(&mut self, tier: Tier, by: impl Fn(usize) -> usize) {
        match tier {
            Tier::Shared => self.shared = by(self.shared),
            Tier::Joining => self.joining = by(self.joining),
            Tier::Rest => {}
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.awaited.send_modify(|awaited| awaited.change(self.tier, |count| count.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_tier_waits_for_those_before_it() {
        let start = HeadStart::lasting(Duration::from_mins(10), Duration::from_mins(10));
        let etcd = start.hold(Tier::Shared);
        let kubelet = start.hold(Tier::Joining);
        assert_eq!(
            [Tier::Shared, Tier::Joining, Tier::Rest].map(|tier| start.holds(tier)),
            [false, true, true]
        );
        drop(etcd);
        start.over(Tier::Joining).await;
        assert!(start.holds(Tier::Rest));
        drop(kubelet);
        start.over(Tier::Rest).await;
        assert!(!start.holds(Tier::Rest));
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_limit() {
        let late = HeadStart::lasting(Duration::ZERO, Duration::ZERO);
        let _slow = late.hold(Tier::Shared);
        late.over(Tier::Rest).await;
        assert!(!late.holds(Tier::Joining) && !late.holds(Tier::Rest));
    }
}
