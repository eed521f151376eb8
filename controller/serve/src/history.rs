//! The history row of an ended attempt, from what the scheduler knows of it.

use rackwright_core::job::Outcome;
use rackwright_core::sched::Sched;
use rackwright_store::AttemptRow;
use rackwright_wire::id::PodKey;

/// The row, with the end of the attempt's log; `None` when the scheduler has forgotten the attempt.
pub(crate) fn row(sched: &Sched, pod: PodKey, log_tail: String) -> Option<AttemptRow> {
    let view = sched.attempt(pod)?;
    let finished_at_ms = view.finished_at_ms.unwrap_or(view.placed_at_ms);
    Some(AttemptRow {
        pod,
        uid: view.uid,
        node: view.node,
        outcome: view.outcome.unwrap_or(Outcome::Lost),
        exit_code: view.exit_code,
        reason: view.reason,
        placed_at_ms: view.placed_at_ms,
        started_at_ms: view.started_at_ms,
        finished_at_ms,
        resources: view.resources,
        resumed: view.resumed,
        checkpoints: view.checkpoints,
        log_tail,
    })
}
