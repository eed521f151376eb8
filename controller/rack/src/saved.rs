//! Plans on disk: `plans/<generation>.json`, and beside it what came of it. A plan without an outcome is
//! pending: `apply` takes it, and takes it again after a kill.

use crate::follow::Failure;
use crate::state::{StateDir, StateError};
use rackwright_core::plan::{Outcome, Plan};
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::step::Difference;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Saved`] that this build writes.
pub const SAVED_VERSION: u32 = 1;
/// The version of [`Concluded`] that this build writes.
const OUTCOME_VERSION: u32 = 1;

/// A plan as it is saved: the servers' part and the cluster objects'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// [`SAVED_VERSION`] of the writer.
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, SAVED_VERSION>")]
    pub version: u32,
    /// What servers must do.
    pub plan: Plan,
    /// What differs in the cluster's own objects.
    pub objects: Vec<Difference>,
    /// [`Wanted::digest`](crate::survey::Wanted::digest) of what it was made from; empty in plans of older builds.
    #[serde(default)]
    pub inputs: String,
}

impl Saved {
    /// Whether applying would change nothing.
    pub fn is_empty(&self) -> bool {
        self.plan.is_empty() && self.objects.is_empty()
    }

    /// How many differences there are.
    pub fn changes(&self) -> usize {
        self.plan.changes() + self.objects.len()
    }
}

/// What came of a plan. That it is there ends the plan; what it says is for people.
#[derive(Debug, Serialize)]
struct Concluded<'a> {
    version: u32,
    servers: &'a BTreeMap<String, ServerOutcome>,
}

/// How one server came out of an apply.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ServerOutcome {
    /// Nothing differed.
    Unchanged,
    /// Everything is as planned now.
    Done {
        /// Steps that changed something.
        changed: u32,
    },
    /// Steps failed.
    Failed {
        /// Steps that changed something.
        changed: u32,
        /// The failures.
        failures: Vec<Failure>,
    },
    /// It did not answer, or stopped answering.
    Absent {
        /// Why.
        reason: String,
    },
    /// A host key stopped us before login.
    Untrusted {
        /// Why.
        reason: String,
    },
    /// The plan does not fit the server any more; nothing was touched.
    Refused {
        /// Why.
        reason: String,
    },
}

impl ServerOutcome {
    /// For the rule "N of M".
    pub fn judged(&self) -> Outcome {
        match self {
            Self::Unchanged | Self::Done { .. } => Outcome::Done,
            Self::Failed { .. } | Self::Refused { .. } => Outcome::Failed,
            Self::Absent { .. } | Self::Untrusted { .. } => Outcome::Absent,
        }
    }

    /// Steps that changed something.
    pub fn changed(&self) -> u32 {
        match self {
            Self::Done { changed } | Self::Failed { changed, .. } => *changed,
            Self::Unchanged | Self::Absent { .. } | Self::Untrusted { .. } | Self::Refused { .. } => 0,
        }
    }
}

/// A saved plan could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file is no plan of this build.
    #[error("read the saved plan {file}")]
    Syntax {
        /// Of the file, in the state folder.
        file: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The generation of the newest plan that was ever saved; 0 for none.
pub fn newest_generation(state: &StateDir) -> Result<u64, SavedError> {
    Ok(generations(state)?.keys().next_back().copied().unwrap_or(0))
}

/// Saves a plan. It becomes the pending one.
pub fn save(state: &StateDir, saved: &Saved) -> Result<(), SavedError> {
    let text = serde_json::to_string_pretty(saved).unwrap_or_default();
    Ok(state.write(&plan_file(saved.plan.generation), &text)?)
}

/// The newest plan, if no outcome of it is recorded.
pub fn pending(state: &StateDir) -> Result<Option<Saved>, SavedError> {
    let generations = generations(state)?;
    let Some((generation, false)) = generations.last_key_value().map(|(at, over)| (*at, *over)) else {
        return Ok(None);
    };
    let file = plan_file(generation);
    let Some(text) = state.read(&file)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|source| SavedError::Syntax { file, source })
}

/// Ends the pending plan, if there is one, without applying it: a newer look at the rack found it needless.
pub fn retire(state: &StateDir) -> Result<(), SavedError> {
    match generations(state)?.last_key_value() {
        Some((generation, false)) => conclude(state, *generation, &BTreeMap::new()),
        Some((_, true)) | None => Ok(()),
    }
}

/// One server's part of any plan that was ever saved, newest first: a server may still hold one that was
/// interrupted there.
pub fn server_plan(state: &StateDir, id: &str) -> Result<Option<ServerPlan>, SavedError> {
    for generation in generations(state)?.into_keys().rev() {
        let file = plan_file(generation);
        let Some(text) = state.read(&file)? else { continue };
        let saved: Saved =
            serde_json::from_str(&text).map_err(|source| SavedError::Syntax { file, source })?;
        if let Some(found) = saved.plan.servers.into_iter().find(|plan| plan.id == id) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Records what came of a plan: it is not pending any more.
pub fn conclude(
    state: &StateDir,
    generation: u64,
    outcomes: &BTreeMap<String, ServerOutcome>,
) -> Result<(), SavedError> {
    let concluded = Concluded { version: OUTCOME_VERSION, servers: outcomes };
    let text = serde_json::to_string_pretty(&concluded).unwrap_or_default();
    Ok(state.write(&format!("plans/{generation:06}.outcome.json"), &text)?)
}

fn plan_file(generation: u64) -> String {
    format!("plans/{generation:06}.json")
}

/// Generation to whether its outcome is recorded.
fn generations(state: &StateDir) -> Result<BTreeMap<u64, bool>, SavedError> {
    let mut found = BTreeMap::new();
    for name in state.list("plans")? {
        if let Some(generation) = name.strip_suffix(".outcome.json").and_then(|stem| stem.parse().ok()) {
            found.insert(generation, true);
        } else if let Some(generation) = name.strip_suffix(".json").and_then(|stem| stem.parse().ok()) {
            found.entry(generation).or_insert(false);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_core::plan::AbsentServer;

    fn plan(generation: u64) -> Saved {
        let plan = Plan {
            version: 1,
            id: "x".to_owned(),
            cluster: "lab".to_owned(),
            generation,
            servers: Vec::new(),
            absent: Vec::new(),
        };
        Saved { version: SAVED_VERSION, plan, objects: Vec::new(), inputs: "ef".repeat(32) }
    }

    #[test]
    fn a_plan_and_its_outcome_read_like_this() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let difference = |step: &str, summary: &str, detail: &str| Difference {
            step: step.to_owned(),
            summary: summary.to_owned(),
            detail: detail.to_owned(),
        };
        let server = ServerPlan {
            version: 1,
            id: "ab".repeat(32),
            server: "ml1".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            generation: 9,
            facts_digest: "cd".repeat(32),
            steps: Vec::new(),
            differences: vec![difference("00-base/x", "change /etc/x (1 line)", "-a\n+b\n")],
        };
        let absent = AbsentServer { server: "ml2".to_owned(), reason: "connect: timed out".to_owned() };
        let mut saved = plan(9);
        saved.plan.servers.push(server);
        saved.plan.absent.push(absent);
        saved.objects.push(difference("cluster/node/ml1", "label node ml1", ""));
        save(&state, &saved).unwrap();
        let failure = Failure {
            step: "00-base/x".to_owned(),
            code: "disk-full".to_owned(),
            error: "write /etc/x".to_owned(),
            evidence: "log".to_owned(),
        };
        let reason = || "why".to_owned();
        let outcomes = BTreeMap::from([
            ("a", ServerOutcome::Unchanged),
            ("b", ServerOutcome::Done { changed: 3 }),
            ("c", ServerOutcome::Failed { changed: 1, failures: vec![failure] }),
            ("d", ServerOutcome::Absent { reason: reason() }),
            ("e", ServerOutcome::Untrusted { reason: reason() }),
            ("f", ServerOutcome::Refused { reason: reason() }),
        ]);
        let outcomes = outcomes.into_iter().map(|(server, outcome)| (server.to_owned(), outcome)).collect();
        conclude(&state, 9, &outcomes).unwrap();
        for file in ["plans/000009.json", "plans/000009.outcome.json"] {
            insta::assert_snapshot!(file.replace('/', "-"), state.read(file).unwrap().unwrap());
        }
    }

    #[test]
    fn a_plan_of_a_newer_build_is_refused_and_not_passed_by() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        save(&state, &plan(9)).unwrap();
        let text = state.read("plans/000009.json").unwrap().unwrap();
        // The one of the whole, then the one of the plan in it.
        for position in 0..2 {
            let (at, _) = text.match_indices("\"version\": 1").nth(position).unwrap();
            let (before, after) = text.split_at(at);
            let newer = format!("{before}{}", after.replacen('1', "2", 1));
            state.write("plans/000009.json", &newer).unwrap();
            for error in [pending(&state).unwrap_err(), server_plan(&state, "x").unwrap_err()] {
                let cause = std::error::Error::source(&error).unwrap().to_string();
                assert!(cause.starts_with("version 2, this build reads 1"), "{cause}");
            }
        }
    }

    #[test]
    fn a_plan_of_an_older_build_was_made_from_nothing_known() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let mut older = serde_json::to_value(plan(9)).unwrap();
        older.as_object_mut().unwrap().remove("inputs");
        state.write("plans/000009.json", &older.to_string()).unwrap();
        assert_eq!(pending(&state).unwrap().unwrap().inputs, "");
    }

    #[test]
    fn a_retired_plan_is_pending_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        retire(&state).unwrap();
        assert_eq!(state.list("plans").unwrap(), Vec::<String>::new(), "nothing is there to retire");
        save(&state, &plan(9)).unwrap();
        save(&state, &plan(10)).unwrap();
        retire(&state).unwrap();
        assert_eq!(pending(&state).unwrap(), None, "an older plan never comes back");
        assert_eq!(newest_generation(&state).unwrap(), 10);
    }

    #[test]
    fn a_plan_is_pending_until_its_outcome_is_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        assert_eq!(pending(&state).unwrap(), None);
        save(&state, &plan(9)).unwrap();
        save(&state, &plan(10)).unwrap();
        assert_eq!(newest_generation(&state).unwrap(), 10);
        assert_eq!(pending(&state).unwrap(), Some(plan(10)));
        // A controller that was killed here finds the same plan again.
        assert_eq!(pending(&state).unwrap(), Some(plan(10)));
        conclude(&state, 10, &BTreeMap::new()).unwrap();
        assert_eq!(pending(&state).unwrap(), None, "an older plan never comes back");
        assert_eq!(newest_generation(&state).unwrap(), 10);
    }
}
