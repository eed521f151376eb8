//! Plans that this server accepted: which may run, which is running, which was cut off.
//!
//! A plan is refused before anything is touched: when it was altered, is for another machine, is older
//! than one that was accepted before (a fence against a second operator), or while another one runs.

use crate::durable;
use crate::host::Host;
use crate::journal;
use crate::order::{Order, OrderError};
use rackwright_wire::plan::ServerPlan;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The version of [`Accepted`] that this build writes.
const ACCEPTED_VERSION: u32 = 1;

/// The newest plan that was accepted (`plans/accepted.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, ACCEPTED_VERSION>")]
    version: u32,
    /// Its generation; older ones are refused.
    pub generation: u64,
    /// Its id.
    pub plan: String,
}

/// Why a plan is not run; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The id does not belong to the content.
    #[error("verify the plan: its id does not belong to its content")]
    Corrupt,
    /// The steps cannot be ordered.
    #[error("verify the plan")]
    Order(#[from] OrderError),
    /// Made for another machine.
    #[error("accept a plan for machine {wanted}: this is {is}")]
    WrongMachine {
        /// The plan's machine id.
        wanted: String,
        /// This machine's.
        is: String,
    },
    /// A newer or other plan of this generation was accepted already.
    #[error("accept generation {generation}: plan {plan} of generation {accepted} was accepted already")]
    Stale {
        /// The plan's generation.
        generation: u64,
        /// The newest accepted generation.
        accepted: u64,
        /// The newest accepted plan.
        plan: String,
    },
    /// Another plan is being applied.
    #[error("accept the plan: plan {0} is being applied")]
    Busy(String),
    /// There is no such plan here.
    #[error("find plan {0}")]
    Unknown(String),
    /// Input or output.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl PlanError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Corrupt | Self::Order(_) => "plan-corrupt",
            Self::WrongMachine { .. } => "wrong-machine",
            Self::Stale { .. } => "stale-plan",
            Self::Busy(_) => "busy",
            Self::Unknown(_) => "plan-unknown",
            Self::Io { source, .. } => crate::error::Code::of_io(source).as_str(),
        }
    }

    /// Whether the plan was refused with nothing touched (rather than that an operation failed).
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }

    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

/// Verifies and stores a plan. Accepting the same plan again is fine.
///
/// # Errors
/// Refusals, see [`PlanError::is_refusal`]; or input and output.
pub fn accept(host: &Host, plan: &ServerPlan) -> Result<(), PlanError> {
    if plan.compute_id() != plan.id {
        return Err(PlanError::Corrupt);
    }
    Order::new(plan.steps.iter().map(|step| (step.id.as_str(), step.needs.as_slice())))?;
    let machine = host.path("/etc/machine-id");
    let is = fs::read_to_string(&machine).map_err(|error| PlanError::io("read", &machine, error))?;
    if is.trim() != plan.machine_id {
        return Err(PlanError::WrongMachine { wanted: plan.machine_id.clone(), is: is.trim().to_owned() });
    }
    if let Some(running) = running(host)
        && running != plan.id
    {
        return Err(PlanError::Busy(running));
    }
    if let Some(accepted) = accepted(host)?
        && accepted.plan != plan.id
        && accepted.generation >= plan.generation
    {
        let Accepted { generation: accepted, plan: newest, .. } = accepted;
        return Err(PlanError::Stale { generation: plan.generation, accepted, plan: newest });
    }
    store(host, plan)
}

fn store(host: &Host, plan: &ServerPlan) -> Result<(), PlanError> {
    let folder = host.state("plans");
    durable::make_dir(&folder, 0o700).map_err(|error| PlanError::io("make", &folder, error))?;
    let (file, newest) = (plan_file(host, &plan.id), folder.join("accepted.json"));
    let text = serde_json::to_vec(plan).map_err(|error| PlanError::io("write", &file, error.into()))?;
    durable::write(&file, &text, 0o600, None).map_err(|error| PlanError::io("write", &file, error))?;
    // After the plan itself: whatever is accepted can be read.
    let accepted = Accepted { version: ACCEPTED_VERSION, generation: plan.generation, plan: plan.id.clone() };
    let text =
        serde_json::to_vec(&accepted).map_err(|error| PlanError::io("write", &newest, error.into()))?;
    durable::write(&newest, &text, 0o600, None).map_err(|error| PlanError::io("write", &newest, error))?;
    forget_others(&folder, &file);
    Ok(())
}

/// Older plans hold file contents, secrets among them, and are of no use; their journals stay.
fn forget_others(folder: &Path, keep: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != keep && !path.ends_with("accepted.json") {
            // One that cannot be removed is tried again with the next plan.
            let _removed = fs::remove_file(path);
        }
    }
}

/// Reads a stored plan.
///
/// # Errors
/// When it is not there, not whole, or cannot be read.
pub fn load(host: &Host, id: &str) -> Result<ServerPlan, PlanError> {
    let file = plan_file(host, id);
    let text = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PlanError::Unknown(id.to_owned()));
        }
        read => read.map_err(|error| PlanError::io("read", &file, error))?,
    };
    let plan: ServerPlan = serde_json::from_slice(&text).map_err(|error| {
        if error.is_data() { PlanError::io("read", &file, error.into()) } else { PlanError::Corrupt }
    })?;
    if plan.compute_id() == id { Ok(plan) } else { Err(PlanError::Corrupt) }
}

/// The newest accepted plan; `None` when there never was one.
///
/// # Errors
/// The note cannot be read, or is of another version: without it an old plan could not be told.
pub fn accepted(host: &Host) -> Result<Option<Accepted>, PlanError> {
    let file = host.state("plans/accepted.json");
    let text = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| PlanError::io("read", &file, error))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| PlanError::io("read", &file, error.into()))
}

/// The newest accepted plan, if its journal does not say that it is finished.
///
/// # Errors
/// As [`accepted`].
pub fn unfinished(host: &Host) -> Result<Option<String>, PlanError> {
    let accepted = accepted(host)?.map(|accepted| accepted.plan);
    Ok(accepted.filter(|plan| !is_finished(host, plan)))
}

/// Whether the last event of a plan's journal is `Finished`.
pub fn is_finished(host: &Host, plan: &str) -> bool {
    use rackwright_wire::event::What;
    let text = fs::read_to_string(journal::path(host, plan)).unwrap_or_default();
    // A journal of another version is not known to be finished; whoever goes on with it is told why not.
    let events = journal::whole_lines(&text).map(|(events, _)| events).unwrap_or_default();
    events.last().is_some_and(|event| matches!(event.what, What::Finished { .. }))
}

/// The right to apply, held by one process at a time and given back when it ends, however it ends.
#[derive(Debug)]
pub struct ApplyLock {
    _file: File,
}

impl ApplyLock {
    /// Takes it for a plan.
    ///
    /// # Errors
    /// [`PlanError::Busy`] when another process applies.
    pub fn take(host: &Host, plan: &str) -> Result<Self, PlanError> {
        let path = lock_path(host);
        let fail = |what, error| PlanError::io(what, &path, error);
        if let Some(folder) = path.parent() {
            durable::make_dir(folder, 0o700).map_err(|error| fail("make", error))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| fail("open", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlanError::Busy(running(host).unwrap_or_default())),
            Err(TryLockError::Error(error)) => return Err(fail("lock", error)),
        }
        file.set_len(0)
            .and_then(|()| file.write_all(plan.as_bytes()))
            .map_err(|error| fail("write", error))?;
        Ok(Self { _file: file })
    }
}

/// The plan that is being applied now, if any.
pub fn running(host: &Host) -> Option<String> {
    let mut file = File::open(lock_path(host)).ok()?;
    // Shared, so that two who look do not take each other for an apply.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut plan = String::new();
            file.read_to_string(&mut plan).ok()?;
            Some(plan)
        }
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn lock_path(host: &Host) -> PathBuf {
    host.state("journal/apply.lock")
}

/// Ids come from outside: whatever is no plain name is no plan of ours.
fn plan_file(host: &Host, id: &str) -> PathBuf {
    let name: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    host.state("plans").join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::plan::PLAN_VERSION;

    const MACHINE: &str = "0123456789abcdef0123456789abcdef";

    fn server() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/machine-id"), format!("{MACHINE}\n")).unwrap();
        let host = Host::new(dir.path(), 0);
        (dir, host)
    }

    fn plan(generation: u64, machine_id: &str) -> ServerPlan {
        let mut plan = ServerPlan {
            version: PLAN_VERSION,
            id: String::new(),
            server: "ml1".to_owned(),
            machine_id: machine_id.to_owned(),
            generation,
            facts_digest: String::new(),
            steps: vec![],
            differences: vec![],
        };
        plan.id = plan.compute_id();
        plan
    }

    #[test]
    fn what_must_not_run_is_refused_with_its_code_and_nothing_touched() {
        let (_dir, host) = server();
        let altered = ServerPlan { generation: 9, ..plan(1, MACHINE) };
        for (plan, code) in [(altered, "plan-corrupt"), (plan(1, "other"), "wrong-machine")] {
            let error = accept(&host, &plan).unwrap_err();
            assert_eq!((error.code(), error.is_refusal()), (code, true));
            assert!(!host.state("").exists());
        }
    }

    #[test]
    fn an_older_generation_is_refused_and_the_same_plan_is_not() {
        let (_dir, host) = server();
        accept(&host, &plan(5, MACHINE)).unwrap();
        accept(&host, &plan(5, MACHINE)).unwrap();
        let other = ServerPlan { server: "x".to_owned(), ..plan(5, MACHINE) };
        let other = ServerPlan { id: other.compute_id(), ..other };
        for refused in [plan(4, MACHINE), other] {
            assert_eq!(accept(&host, &refused).unwrap_err().code(), "stale-plan");
        }
        accept(&host, &plan(6, MACHINE)).unwrap();
        assert_eq!(accepted(&host).unwrap().unwrap().generation, 6);
        assert_eq!(unfinished(&host).unwrap(), Some(plan(6, MACHINE).id));
        assert_eq!(load(&host, &plan(6, MACHINE).id).unwrap(), plan(6, MACHINE));
        assert_eq!(load(&host, &plan(5, MACHINE).id).unwrap_err().code(), "plan-unknown");
    }

    #[test]
    fn the_note_reads_like_this() {
        let note = Accepted { version: ACCEPTED_VERSION, generation: 5, plan: "ab".repeat(32) };
        insta::assert_snapshot!(serde_json::to_string(&note).unwrap());
    }

    #[test]
    fn the_note_of_a_newer_agent_is_no_missing_note() {
        let (_dir, host) = server();
        accept(&host, &plan(5, MACHINE)).unwrap();
        let note = host.state("plans/accepted.json");
        let text = fs::read_to_string(&note).unwrap();
        fs::write(&note, text.replace("\"version\":1", "\"version\":2,\"new\":1")).unwrap();
        let error = accept(&host, &plan(4, MACHINE)).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("version 2, this build reads 1"), "{cause}");
        assert!(accepted(&host).is_err() && unfinished(&host).is_err());
    }

    #[test]
    fn one_apply_at_a_time() {
        let (_dir, host) = server();
        let lock = ApplyLock::take(&host, "p1").unwrap();
        assert_eq!(running(&host).as_deref(), Some("p1"));
        assert_eq!(accept(&host, &plan(1, MACHINE)).unwrap_err().code(), "busy");
        drop(lock);
        assert_eq!(running(&host), None);
        accept(&host, &plan(1, MACHINE)).unwrap();
    }
}
