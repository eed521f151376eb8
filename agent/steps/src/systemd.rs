//! What systemd says about units, asked for many at once, and reloads that are shared.

use crate::error::{Code, StepError};
use crate::exec;
use crate::host::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A query is answered in milliseconds or not at all.
const QUERY_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at a job that has not begun.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A start waits for the unit itself, whose own limit is 90 s by default.
const JOB_LIMIT: Duration = Duration::from_mins(5);

/// A unit's state as far as steps care.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnitState {
    /// `LoadState`: `loaded`, `not-found`, …
    pub(crate) load: String,
    /// `ActiveState`: `active`, `activating`, `inactive`, `failed`, …
    pub(crate) active: String,
    /// `SubState`: `running`, `auto-restart`, …
    pub(crate) sub: String,
    /// `FragmentPath`: its unit file.
    pub(crate) fragment: String,
    /// `NeedDaemonReload`: its files are newer than what systemd knows.
    pub(crate) is_outdated: bool,
}

/// Known states and pending reloads.
#[derive(Debug, Default)]
pub(crate) struct Units {
    known: Mutex<BTreeMap<String, UnitState>>,
    written: AtomicU64,
    reloaded: Mutex<u64>,
}

impl Units {
    /// Asks for all of these at once, so that each check finds its answer.
    pub(crate) fn prefetch<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), StepError> {
        let names: Vec<&str> = names.collect();
        if names.is_empty() {
            return Ok(());
        }
        let states = show(&names)?;
        lock(&self.known).extend(names.iter().map(|name| (*name).to_owned()).zip(states));
        Ok(())
    }

    /// A unit's state, remembered until [`Self::forget`].
    pub(crate) fn state(&self, name: &str) -> Result<UnitState, StepError> {
        if let Some(state) = lock(&self.known).get(name) {
            return Ok(state.clone());
        }
        let state = show(&[name])?.into_iter().next().unwrap_or_default();
        lock(&self.known).insert(name.to_owned(), state.clone());
        Ok(state)
    }

    pub(crate) fn forget(&self, name: &str) {
        lock(&self.known).remove(name);
    }

    /// Notes that a file of an already loaded unit changed.
    pub(crate) fn note_written(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    /// Reloads once for all units that were written before this call.
    pub(crate) fn reload(&self) -> Result<(), StepError> {
        let wanted = self.written.load(Ordering::SeqCst);
        let mut reloaded = lock(&self.reloaded);
        if *reloaded >= wanted {
            return Ok(());
        }
        let covers = self.written.load(Ordering::SeqCst);
        systemctl(&["daemon-reload"], "daemon")?;
        *reloaded = covers;
        Ok(())
    }
}

/// Waits until systemd has begun a job that it was only handed: until then the unit looks as if nobody had asked.
pub(crate) fn wait_begun(unit: &str) -> Result<(), StepError> {
    let deadline = Instant::now() + QUERY_LIMIT;
    while Instant::now() < deadline {
        if show(&[unit])?.first().is_some_and(|state| state.active != "inactive") {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    // The step's second check says what became of it.
    Ok(())
}

/// Runs a systemctl job on `unit`; a failure carries the end of the unit's log.
pub(crate) fn systemctl(args: &[&str], unit: &str) -> Result<(), StepError> {
    let done = exec::run("systemctl", args, JOB_LIMIT)?;
    if done.success() {
        return Ok(());
    }
    let what = args.iter().filter(|arg| !arg.starts_with('-')).copied().collect::<Vec<_>>().join(" ");
    let evidence = format!("{}\n{}", done.output(), log_tail(unit));
    Err(StepError::new(Code::UnitFailed, what).with_evidence(&evidence))
}

/// The last 30 lines of a unit's journal.
pub fn log_tail(unit: &str) -> String {
    exec::run("journalctl", &["--unit", unit, "--lines=30", "--no-pager", "--output=short-iso"], QUERY_LIMIT)
        .map(|done| done.stdout)
        .unwrap_or_default()
}

fn show(names: &[&str]) -> Result<Vec<UnitState>, StepError> {
    let mut args =
        vec!["show", "--property=LoadState,ActiveState,SubState,FragmentPath,NeedDaemonReload", "--"];
    args.extend(names);
    let done = exec::run("systemctl", &args, QUERY_LIMIT)?;
    if !done.success() {
        return Err(StepError::new(Code::UnitFailed, "ask systemd for the state of units")
            .with_evidence(&done.output()));
    }
    Ok(parse(&done.stdout))
}

/// Blocks of `key=value` lines, one a unit in the order of the question, with empty lines between.
fn parse(output: &str) -> Vec<UnitState> {
    output.trim_end().split("\n\n").map(parse_one).collect()
}

fn parse_one(block: &str) -> UnitState {
    let field = |key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    };
    UnitState {
        load: field("LoadState"),
        active: field("ActiveState"),
        sub: field("SubState"),
        fragment: field("FragmentPath"),
        is_outdated: field("NeedDaemonReload") == "yes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_come_back_in_the_order_of_the_question() {
        let output = "LoadState=loaded\nActiveState=active\nSubState=running\nFragmentPath=/lib/x\nNeedDaemonReload=yes\n\n\
                      LoadState=not-found\nActiveState=inactive\nSubState=dead\nFragmentPath=\n";
        let states = parse(output);
        assert_eq!(states.len(), 2);
        assert_eq!(states[0].sub, "running");
        assert!(states[0].is_outdated && !states[1].is_outdated);
        assert_eq!(states[1].load, "not-found");
    }
}
