//! Applying a plan: each step as check, apply, check again, in the order of their needs.
//!
//! Independent steps run at the same time. The journal gets a line before anything changes and one after;
//! when it cannot be written, nothing more is started. What the step did is judged by its second check.

use crate::controller::Controller;
use crate::error::{Code, StepError};
use crate::host::Host;
use crate::journal::{History, JournalError, Record};
use crate::order::{Order, OrderError};
use crate::receive;
use crate::step::{self, Expected};
use rackwright_wire::event::What;
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::step::{Difference, Step, StepKind};
use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Steps that work (rather than wait for a network, another step or the controller) at the same time.
const WORKERS: usize = 8;
/// 1 GB at 10 Mbit/s is 800 s.
const ARTIFACT_LIMIT: Duration = Duration::from_mins(15);

/// How an apply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Steps that changed something, in this run or in one that it resumed.
    pub changed: u32,
    /// Steps that failed or could not be tried.
    pub failed: u32,
}

/// An apply that could not go on; it can be started again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The steps cannot be ordered.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// An event could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something that an earlier apply left could not be cleared.
    #[error("clear what an interrupted apply left")]
    Leftover(#[source] StepError),
}

impl ApplyError {
    /// The code of what stopped it, where that has one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Order(_) => None,
            Self::Journal(error) => Some(error.code()),
            Self::Leftover(error) => Some(error.code),
        }
    }
}

/// Applies a plan; `history` is what earlier runs of it did.
///
/// # Errors
/// When the journal cannot be written: whatever was begun is resumed by the next run.
pub fn apply(
    host: &Host,
    plan: &ServerPlan,
    journal: &dyn Record,
    history: &History,
    controller: &dyn Controller,
) -> Result<Outcome, ApplyError> {
    let order = Order::new(plan.steps.iter().map(|step| (step.id.as_str(), step.needs.as_slice())))?;
    journal.write(What::Started { plan: plan.id.clone() })?;
    if host.is_server() {
        step::clear_policy(host).map_err(ApplyError::Leftover)?;
    }
    let site = Site { host, journal, history, controller };
    let mut changed = history.applied.clone();
    let failed = walk(&site, &plan.steps, order, &mut changed)?;
    let outcome = Outcome { changed: u32::try_from(changed.len()).unwrap_or(u32::MAX), failed };
    journal.write(What::Finished { changed: outcome.changed, failed })?;
    Ok(outcome)
}

/// Starts whatever is ready and takes in what ended, until nothing is left. Returns how many did not succeed.
fn walk(
    site: &Site<'_>,
    steps: &[Step],
    mut order: Order,
    changed: &mut BTreeSet<String>,
) -> Result<u32, JournalError> {
    let (sender, ended) = channel();
    let (mut working, mut failed, mut broken) = (0_usize, 0_u32, None);
    thread::scope(|scope| {
        loop {
            let ready: Vec<usize> = if broken.is_none() { order.ready().collect() } else { Vec::new() };
            for at in ready {
                let Some(step) = steps.get(at) else { continue };
                if works(step) && working >= WORKERS {
                    continue;
                }
                working += usize::from(works(step));
                order.start(at);
                let sender = sender.clone();
                // The walk outlives its steps: the channel is open.
                scope.spawn(move || sender.send((at, site.run(step))).is_ok());
            }
            if !order.is_running() {
                break;
            }
            let Ok((at, end)) = ended.recv() else { break };
            let Some(step) = steps.get(at) else { continue };
            working -= usize::from(works(step));
            match end {
                Ok(End::Unchanged) => order.succeeded(at),
                Ok(End::Changed) => {
                    changed.insert(step.id.clone());
                    order.succeeded(at);
                }
                Ok(End::Failed) => match skip(site, steps, order.failed(at)) {
                    Ok(skipped) => failed += 1 + skipped,
                    Err(error) => broken = Some(error),
                },
                Err(error) => {
                    order.failed(at);
                    broken = Some(error);
                }
            }
        }
    });
    broken.map_or(Ok(failed), Err)
}

/// Notes steps that cannot be tried; gives their number.
fn skip(site: &Site<'_>, steps: &[Step], skipped: Vec<(usize, usize)>) -> Result<u32, JournalError> {
    let mut count = 0;
    for (at, cause) in skipped {
        let (Some(step), Some(cause)) = (steps.get(at), steps.get(cause)) else {
            continue;
        };
        site.journal.write(What::Failed {
            step: step.id.clone(),
            code: Code::Skipped.as_str().to_owned(),
            error: format!("try it: it needs {}, which did not succeed", cause.id),
            evidence: String::new(),
        })?;
        count += 1;
    }
    Ok(count)
}

/// Whether a step takes the server's own time; the others mostly wait, and must not hold those up.
fn works(step: &Step) -> bool {
    match step.kind {
        StepKind::Wait { .. }
        | StepKind::Artifact { .. }
        | StepKind::Image { .. }
        | StepKind::Certificate(_)
        | StepKind::Package { .. } => false,
        StepKind::File { .. }
        | StepKind::Directory { .. }
        | StepKind::Unit { .. }
        | StepKind::Sysctl { .. }
        | StepKind::Module { .. }
        | StepKind::Mount { .. }
        | StepKind::KeyPair { .. }
        | StepKind::User { .. }
        | StepKind::Slice { .. }
        | StepKind::Command { .. } => true,
    }
}

enum End {
    Unchanged,
    Changed,
    Failed,
}

enum Stop {
    Step(StepError),
    Journal(JournalError),
}

impl From<StepError> for Stop {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<JournalError> for Stop {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

/// Where steps run.
#[derive(Clone, Copy)]
struct Site<'a> {
    host: &'a Host,
    journal: &'a dyn Record,
    history: &'a History,
    controller: &'a dyn Controller,
}

impl Site<'_> {
    /// Runs one step to its end and keeps how it ended.
    fn run(&self, step: &Step) -> Result<End, JournalError> {
        match self.attempt(step) {
            Ok(end) => Ok(end),
            Err(Stop::Journal(error)) => Err(error),
            Err(Stop::Step(error)) => {
                self.journal.write(What::Failed {
                    step: step.id.clone(),
                    code: error.code.as_str().to_owned(),
                    error: error.chain(),
                    evidence: error.evidence,
                })?;
                Ok(End::Failed)
            }
        }
    }

    fn attempt(&self, step: &Step) -> Result<End, Stop> {
        let started = Instant::now();
        if let StepKind::Wait { .. } = step.kind {
            // Waiting changes nothing: there is nothing to announce, and nothing to undo.
            let difference =
                Difference { step: step.id.clone(), summary: String::new(), detail: String::new() };
            step::apply(self.host, step, &difference, self.controller)?;
            return self.unchanged(step);
        }
        let Some(difference) = self.check(step)? else {
            // Its apply was cut off after the last change: this run is what makes it known.
            if self.history.begun.contains(&step.id) {
                return self.changed(step, started);
            }
            return self.unchanged(step);
        };
        self.fetch(step)?;
        let before = step::before(self.host, step)?;
        let summary = difference.summary.clone();
        self.journal.write(What::Applying { step: step.id.clone(), summary, before })?;
        step::apply(self.host, step, &difference, self.controller)?;
        match self.check(step)? {
            None => self.changed(step, started),
            Some(left) => Err(still_differs(step, &left).into()),
        }
    }

    fn unchanged(&self, step: &Step) -> Result<End, Stop> {
        self.journal.write(What::Unchanged { step: step.id.clone() })?;
        Ok(End::Unchanged)
    }

    fn changed(&self, step: &Step, started: Instant) -> Result<End, Stop> {
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.journal.write(What::Applied { step: step.id.clone(), took_ms })?;
        Ok(End::Changed)
    }

    /// Looks anew: other steps may have changed what was known.
    fn check(&self, step: &Step) -> Result<Option<Difference>, StepError> {
        step::forget(self.host, step);
        step::check(self.host, step, &Expected::default())
    }

    /// Has the controller send the file that the step needs, unless it is here.
    fn fetch(&self, step: &Step) -> Result<(), StepError> {
        let Some(sha256) = step::staged_need(step) else {
            return Ok(());
        };
        let folder = self.host.state("artifacts");
        if receive::source(self.host, sha256)
            .map_err(|error| StepError::io("read", &folder, error))?
            .is_some()
        {
            return Ok(());
        }
        step::ask_state(&step.id, &format!("artifact:{sha256}"), ARTIFACT_LIMIT, self.controller).map_err(
            |error| {
                // What this server's own disk said stays what it is.
                let code = if error.code == Code::WaitTimeout {
                    Code::ControllerAbsent
                } else if error.code == Code::WaitRefused {
                    Code::ArtifactRefused
                } else {
                    error.code
                };
                StepError::new(code, format!("get the artifact {sha256}")).because(error)
            },
        )
    }
}

fn still_differs(step: &Step, left: &Difference) -> StepError {
    let what = format!("end without a difference: {}", left.summary);
    if let StepKind::Unit { name, .. } = &step.kind {
        return StepError::new(Code::UnitFailed, what).with_evidence(&crate::systemd::log_tail(name));
    }
    StepError::new(Code::StillDiffers, what).with_evidence(&left.detail)
}

#[cfg(test)]
mod tests;
