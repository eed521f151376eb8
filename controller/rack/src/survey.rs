//! All servers at once: connect, measure, render, compare. Nothing is changed, and a server that does not
//! answer delays the others by nothing but its own time-out.

use crate::agent::{Agent, AgentBinary, AgentError};
use crate::connect::{ConnectError, Rack};
use crate::progress::{News, Teller};
use crate::saved::ServerOutcome;
use rackwright_core::finding::Finding;
use rackwright_core::inventory::Inventory;
use rackwright_core::plan::{AbsentServer, Answered};
use rackwright_core::playbook::{self, Context, ContextError, Playbook};
use rackwright_wire::facts::Facts;
use rackwright_wire::plan::{CheckRequest, PLAN_VERSION};
use rackwright_wire::step::{Step, StepKind};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An artifact on the operator's machine.
#[derive(Debug, Clone)]
pub struct LocalArtifact {
    /// Name in the lockfile.
    pub name: String,
    /// SHA-256 (hex) of the file.
    pub sha256: String,
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Everything that says what servers must look like.
pub struct Wanted {
    /// What the operator owns and wants.
    pub inventory: Inventory,
    /// The layers.
    pub playbooks: Vec<Playbook>,
    /// Every artifact that the playbooks may name.
    pub artifacts: Vec<LocalArtifact>,
    /// CA names to fingerprints.
    pub pki: BTreeMap<String, String>,
    /// Secrets that playbooks use, resolved just now.
    pub secrets: BTreeMap<String, String>,
    /// The agent.
    pub agent: AgentBinary,
}

/// A server cannot be compared; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// It cannot be reached, trusted or logged in to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Its agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// It cannot have a context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The playbooks do not render for it.
    #[error("render the playbooks for {server}")]
    Playbooks {
        /// The server.
        server: String,
        /// Everything that is wrong.
        findings: Vec<Finding>,
    },
}

impl SurveyError {
    /// Whether a host key stopped us.
    pub fn is_untrusted(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_untrusted())
    }
}

/// What came of asking all servers.
#[derive(Default)]
pub struct Survey {
    /// Servers that were compared, in inventory order.
    pub answered: Vec<Answered>,
    /// Their agents, connected.
    pub agents: BTreeMap<String, Agent>,
    /// Facts of every server that answered, even where the comparison failed.
    pub facts: BTreeMap<String, Facts>,
    /// Servers that did not answer or could not be compared, and why.
    pub failed: BTreeMap<String, SurveyError>,
    /// Servers that could not finish a plan that was interrupted there, and why: they take no new one.
    pub stuck: BTreeMap<String, ServerOutcome>,
}

impl Survey {
    /// Sets those aside that still hold an unfinished plan, of servers that were just asked to finish theirs.
    pub(crate) fn set_aside(&mut self, finished: impl IntoIterator<Item = (String, ServerOutcome)>) {
        let still = |of: &Answered| of.report.unfinished.is_some();
        for (server, outcome) in finished {
            if self.answered.iter().any(|of| of.server == server && still(of)) {
                self.answered.retain(|of| of.server != server);
                self.stuck.insert(server, outcome);
            }
        }
    }

    /// The servers without a plan, as the plan names them.
    pub fn absent(&self, inventory: &Inventory) -> Vec<AbsentServer> {
        let reason = |error: &SurveyError| chain(error);
        inventory
            .servers
            .iter()
            .filter_map(|server| Some((server, self.failed.get(&server.name)?)))
            .map(|(server, error)| AbsentServer { server: server.name.clone(), reason: reason(error) })
            .collect()
    }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let next = inner.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = inner.source();
    }
    text
}

impl Wanted {
    /// SHA-256 (hex) over all that plans are made from, besides what servers say: inventory, playbooks, hashes of
    /// artifacts, CAs and secrets. Never over a secret alone. A plan of another digest is not what is wanted now.
    pub fn digest(&self) -> String {
        let artifacts: Vec<_> = self.artifacts.iter().map(|of| (&of.name, &of.sha256)).collect();
        let inputs =
            (&self.inventory, &self.playbooks, artifacts, &self.pki, &self.secrets, &self.agent.sha256);
        hex::encode(Sha256::digest(format!("{inputs:?}")))
    }

    /// Asks and compares the named servers.
    pub async fn survey(&self, rack: &Rack, servers: &[&str], teller: &Teller) -> Survey {
        let artifacts: BTreeMap<String, String> =
            self.artifacts.iter().map(|of| (of.name.clone(), of.sha256.clone())).collect();
        let asked = servers.iter().map(|server| self.one(rack, server, &artifacts, teller));
        let mut survey = Survey::default();
        for (server, (facts, result)) in servers.iter().zip(futures::future::join_all(asked).await) {
            if let Some(facts) = facts {
                survey.facts.insert((*server).to_owned(), facts);
            }
            match result {
                Ok((answered, agent)) => {
                    survey.answered.push(answered);
                    survey.agents.insert((*server).to_owned(), agent);
                }
                Err(error) => drop(survey.failed.insert((*server).to_owned(), error)),
            }
        }
        survey
    }

    async fn one(
        &self,
        rack: &Rack,
        server: &str,
        artifacts: &BTreeMap<String, String>,
        teller: &Teller,
    ) -> (Option<Facts>, Result<(Answered, Agent), SurveyError>) {
        teller.tell(server, News::Connecting);
        let mut facts = None;
        let result = Box::pin(self.compare(rack, server, artifacts, &mut facts)).await;
        teller.tell(
            server,
            match &result {
                Ok((answered, _)) => News::Compared { changes: answered.report.differences.len() },
                Err(error) if error.is_untrusted() => News::Untrusted { reason: chain(error) },
                Err(error) => News::Absent { reason: chain(error) },
            },
        );
        (facts, result)
    }

    async fn compare(
        &self,
        rack: &Rack,
        server: &str,
        artifacts: &BTreeMap<String, String>,
        measured: &mut Option<Facts>,
    ) -> Result<(Answered, Agent), SurveyError> {
        let session = rack.session(server).await?;
        let user = rack.target(server).map_or("root", |target| target.user.as_str());
        let (agent, facts) = Agent::introduce(session, user, &self.agent).await?;
        *measured = Some(facts.clone());
        let context = Context::new(&self.inventory, server, &facts, artifacts, &self.pki, &self.secrets)?;
        let steps = playbook::render(&self.playbooks, &context)
            .map_err(|findings| SurveyError::Playbooks { server: server.to_owned(), findings })?;
        let request = CheckRequest {
            version: PLAN_VERSION,
            artifacts: steps.iter().filter_map(artifact_of).map(str::to_owned).collect(),
            steps,
        };
        let report = agent.check(&request).await?;
        let answered = Answered { server: server.to_owned(), facts, steps: request.steps, report };
        Ok((answered, agent))
    }
}

/// The hash of the file that a step needs from this machine.
pub fn artifact_of(step: &Step) -> Option<&str> {
    match &step.kind {
        StepKind::Artifact { sha256, .. } | StepKind::Image { sha256, .. } => Some(sha256),
        StepKind::Package { .. }
        | StepKind::File { .. }
        | StepKind::Directory { .. }
        | StepKind::Unit { .. }
        | StepKind::Sysctl { .. }
        | StepKind::Module { .. }
        | StepKind::Mount { .. }
        | StepKind::Certificate(_)
        | StepKind::KeyPair { .. }
        | StepKind::User { .. }
        | StepKind::Slice { .. }
        | StepKind::Wait { .. }
        | StepKind::Command { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(password: &str, agent: &str) -> Wanted {
        let lab = include_str!("../../../inventory/lab.toml");
        Wanted {
            inventory: Inventory::parse("inventory/lab.toml", lab).unwrap(),
            playbooks: Playbook::builtin().unwrap(),
            artifacts: Vec::new(),
            pki: BTreeMap::new(),
            secrets: BTreeMap::from([("clickhouse_password".to_owned(), password.to_owned())]),
            agent: AgentBinary { path: PathBuf::from("/agent"), sha256: agent.to_owned() },
        }
    }

    #[test]
    fn another_secret_inventory_or_agent_is_another_digest() {
        let now = wanted("new", "aa").digest();
        assert_eq!(now, wanted("new", "aa").digest(), "the same inputs are recognised");
        assert_ne!(now, wanted("old", "aa").digest());
        assert_ne!(now, wanted("new", "bb").digest());
        let mut smaller = wanted("new", "aa");
        smaller.inventory.servers.pop();
        assert_ne!(now, smaller.digest());
    }
}
