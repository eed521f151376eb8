//! Hands each server its plan, follows what it does and answers what it asks.
//!
//! No server waits for another here: what depends on several is a named state that a step asks for. A
//! lost connection is found again; the server works on meanwhile. A controller that is killed and
//! started again finds every server where its own journal says it is.

use crate::agent::{Agent, AgentBinary, AgentError};
use crate::conditions::Conditions;
use crate::connect::Rack;
use crate::converse::{Conversation, End};
use crate::follow::{Failure, Follower};
use crate::head_start::HeadStart;
use crate::pki::Authorities;
use crate::progress::{News, Teller};
use crate::ramp::{Patience, jitter};
use crate::resume::{Journal, Start, start};
use crate::saved::ServerOutcome;
use crate::survey::{SurveyError, chain};
use crate::uploads::{Shelf, Uploads};
use rackwright_wire::facts::Facts;
use rackwright_wire::plan::{CheckRequest, PLAN_VERSION, ServerPlan};
use std::sync::Arc;
use std::time::Duration;

/// A server that was lost while it worked is waited for this long: a reboot of real hardware takes minutes.
const RECONNECT: Patience =
    Patience { tries: 60, first_pause: Duration::from_millis(500), longest_pause: Duration::from_secs(10) };

/// Everything that applying needs.
pub struct Apply {
    /// The servers.
    pub rack: Arc<Rack>,
    /// What signs.
    pub authorities: Arc<Authorities>,
    /// What knows the states of several servers.
    pub conditions: Conditions,
    /// What can be sent.
    pub shelf: Shelf,
    /// What goes first.
    pub head_start: HeadStart,
    /// The agent.
    pub agent: AgentBinary,
    /// Who is told.
    pub teller: Teller,
}

/// What was just learned about a server, so that it is not asked twice.
pub struct Introduced {
    /// Its agent, connected.
    pub agent: Agent,
    /// Its facts.
    pub facts: Facts,
    /// Its journal.
    pub journal: Journal,
}

impl Apply {
    /// Applies one server's plan. `known` is what a survey learned just now.
    pub async fn server(&self, plan: &ServerPlan, known: Option<Introduced>) -> ServerOutcome {
        let introduced = match known {
            Some(introduced) => introduced,
            None => match Box::pin(self.introduce(&plan.server)).await {
                Ok(introduced) => introduced,
                Err(error) => return self.unreached(&plan.server, &error),
            },
        };
        match start(plan, &introduced.facts, &introduced.journal) {
            Start::Nothing => ServerOutcome::Unchanged,
            Start::Fresh | Start::Resume => Box::pin(self.run(plan, introduced.agent)).await,
            Start::Refuse(refusal) => {
                let reason = refusal.to_string();
                self.teller.tell(&plan.server, News::Absent { reason: reason.clone() });
                ServerOutcome::Refused { reason }
            }
        }
    }

    async fn run(&self, plan: &ServerPlan, agent: Agent) -> ServerOutcome {
        let mut follower = Follower::default();
        let mut uploads = Uploads::new(&self.shelf, &self.head_start, plan);
        let mut lost = 0;
        let mut agent = agent;
        self.teller.tell(&plan.server, News::Started { steps: plan.steps.len() });
        loop {
            let seen = follower.next_seq();
            let conversation = Conversation {
                apply: self,
                plan,
                agent: &agent,
                follower: &mut follower,
                uploads: &mut uploads,
            };
            let reason = match Box::pin(conversation.hold()).await {
                Ok(End::Over) => return outcome(&follower),
                Ok(End::Lost(reason)) => reason,
                Err(error) if error.is_lost_connection() => chain(&error),
                Err(error) => return self.failed(&plan.server, &follower, &error),
            };
            uploads.disconnected();
            // A connection that brought news was a good one: count from the start again.
            lost = if follower.next_seq() > seen { 1 } else { lost + 1 };
            self.teller.tell(&plan.server, News::Lost { reason: reason.clone() });
            match Box::pin(self.find_again(&plan.server, &mut lost)).await {
                Ok(found) => agent = found,
                Err(error) => return self.unreached(&plan.server, &error),
            }
        }
    }

    async fn find_again(&self, server: &str, lost: &mut u32) -> Result<Agent, SurveyError> {
        loop {
            let found = Box::pin(self.introduce(server)).await;
            match found {
                Ok(introduced) => return Ok(introduced.agent),
                Err(error) => {
                    let pause = RECONNECT.pause(*lost, jitter()).filter(|_| !error.is_untrusted());
                    let Some(pause) = pause else { return Err(error) };
                    *lost += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn introduce(&self, server: &str) -> Result<Introduced, SurveyError> {
        let session = self.rack.session(server).await?;
        let user = self.rack.target(server).map_or("root", |target| target.user.as_str());
        let (agent, facts) = Agent::introduce(session, user, &self.agent).await?;
        let nothing = CheckRequest { version: PLAN_VERSION, steps: Vec::new(), artifacts: Vec::new() };
        let report = agent.check(&nothing).await?;
        let journal = Journal { generation: report.generation, unfinished: report.unfinished };
        Ok(Introduced { agent, facts, journal })
    }

    fn unreached(&self, server: &str, error: &SurveyError) -> ServerOutcome {
        let reason = chain(error);
        if error.is_untrusted() {
            self.teller.tell(server, News::Untrusted { reason: reason.clone() });
            ServerOutcome::Untrusted { reason }
        } else {
            self.teller.tell(server, News::Absent { reason: reason.clone() });
            ServerOutcome::Absent { reason }
        }
    }

    /// The server said no, or its agent cannot go on. What it did so far is in its journal.
    fn failed(&self, server: &str, follower: &Follower, error: &AgentError) -> ServerOutcome {
        let reason = chain(error);
        if error.is_refusal() {
            self.teller.tell(server, News::Absent { reason: reason.clone() });
            return ServerOutcome::Refused { reason };
        }
        if error.code().is_empty() {
            self.teller.tell(server, News::Absent { reason: reason.clone() });
            // What became of the plan is not known: the next apply asks, and goes on.
            return ServerOutcome::Absent { reason };
        }
        let code = error.code().to_owned();
        // It stands beside the text wherever that is shown.
        let text = reason.strip_suffix(&format!(" [{code}]")).unwrap_or(&reason).to_owned();
        let failure = Failure { step: "the plan".to_owned(), code, error: text, evidence: String::new() };
        self.teller.tell(server, News::Failed(failure.clone()));
        let failures = follower.failures().cloned().chain([failure]).collect();
        ServerOutcome::Failed { changed: follower.changed(), failures }
    }
}

fn outcome(follower: &Follower) -> ServerOutcome {
    let changed = follower.changed();
    let failures: Vec<_> = follower.failures().cloned().collect();
    let clean = follower.finished().is_some_and(|finished| finished.failed == 0);
    if clean { ServerOutcome::Done { changed } } else { ServerOutcome::Failed { changed, failures } }
}
