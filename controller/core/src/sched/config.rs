//! What the scheduler is told once: policy, never state.

use crate::job::Limits;
use std::collections::{BTreeMap, BTreeSet};

/// Policy of a cluster. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Priority classes by name; larger goes first.
    pub priorities: BTreeMap<String, i32>,
    /// The node label that holds the role.
    pub role_label: String,
    /// Roles whose nodes run jobs.
    pub job_roles: BTreeSet<String>,
    /// Keys of taints that job pods tolerate.
    pub tolerated_taints: BTreeSet<String>,
    /// A node that cannot reach the controller stops its job pods after so long.
    pub lease_ms: u64,
    /// How much longer until what it ran is declared lost: clock rates and stopping take time.
    pub lease_grace_ms: u64,
    /// An attempt that has not started so long after its pod was made is ended: its image may be nowhere.
    pub start_limit_ms: u64,
    /// Wait before the first retry; doubles with each one.
    pub backoff_ms: u64,
    /// The longest wait before a retry.
    pub backoff_max_ms: u64,
    /// How often an attempt may be lost before its task counts as failed: a job that takes its nodes
    /// down must end.
    pub lost_limit: u32,
    /// How long a finished pod stays after its end, for people who look.
    pub prune_grace_ms: u64,
    /// How many failed pods of an owner stay longer, the newest ones.
    pub kept_failed_per_owner: usize,
    /// How long those stay.
    pub kept_failed_ms: u64,
    /// Launches pause while so many finished pods wait to be archived or pruned, so that records of
    /// pods stay bounded even when the history cannot be written.
    pub max_backlog: usize,
    /// Launches pause while the creation of so many pods is not answered: one decision must not be larger
    /// than what the API server takes within seconds.
    pub max_reserved: usize,
    /// A job that has waited so long for room has nodes held for it, so that smaller ones behind it in
    /// the order cannot starve it.
    pub hold_after_ms: u64,
    /// How many outcomes of finished jobs are remembered for jobs that depend on them.
    pub remembered_outcomes: usize,
}

impl Default for Config {
    fn default() -> Self {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            priorities: Limits::default().priorities,
            role_label: "rackwright.dev/role".to_owned(),
            job_roles: set(&["ml"]),
            tolerated_taints: set(&[
                "rackwright.dev/jobs",
                "node.kubernetes.io/not-ready",
                "node.kubernetes.io/unreachable",
            ]),
            lease_ms: 40_000,
            lease_grace_ms: 10_000,
            start_limit_ms: 10 * 60_000,
            backoff_ms: 1_000,
            backoff_max_ms: 5 * 60_000,
            lost_limit: 8,
            prune_grace_ms: 10_000,
            kept_failed_per_owner: 3,
            kept_failed_ms: 3_600_000,
            max_backlog: 2_000,
            max_reserved: 2_000,
            hold_after_ms: 10 * 60_000,
            remembered_outcomes: 100_000,
        }
    }
}

impl Config {
    /// A priority class's value; classes that the cluster no longer has count as 0.
    pub(super) fn priority(&self, class: &str) -> i32 {
        self.priorities.get(class).copied().unwrap_or_default()
    }

    /// The wait before try number `tries` (from 1) is repeated.
    pub(super) fn backoff(&self, tries: u32) -> u64 {
        let doublings = tries.saturating_sub(1).min(32);
        self.backoff_ms.saturating_mul(1 << doublings).min(self.backoff_max_ms)
    }
}
