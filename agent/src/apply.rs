//! `apply`: the transient unit's own work. Started by `run` or `follow`, and by systemd again after a kill.

use crate::failure::Failure;
use rackwright_steps::apply;
use rackwright_steps::controller::{self, Inbox};
use rackwright_steps::host::Host;
use rackwright_steps::journal::Journal;
use rackwright_steps::plans::{self, ApplyLock};

pub(crate) fn run(host: &Host, plan: &str) -> Result<(), Failure> {
    let _one_at_a_time = ApplyLock::take(host, plan)?;
    let plan = plans::load(host, plan)?;
    let journal =
        Journal::open(host, &plan.id).map_err(|error| Failure::new(error.code().as_str(), &error))?;
    let history = journal.history().clone();
    if history.finished {
        return Ok(());
    }
    let inbox = Inbox::new(host, &plan.id, &journal);
    let outcome = apply::apply(host, &plan, &journal, &history, &inbox)?;
    controller::forget(host, &plan.id);
    tracing::info!(plan = plan.id, changed = outcome.changed, failed = outcome.failed, "finished");
    Ok(())
}
