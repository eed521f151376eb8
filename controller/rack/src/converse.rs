//! One connection's worth of an apply: events in, answers out, artifacts alongside.

use crate::agent::{Agent, AgentError};
use crate::apply::Apply;
use crate::follow::{Follower, Meaning};
use crate::process::{Piece, Process, ProcessInput};
use crate::progress::News;
use crate::session::{Output, SessionError};
use crate::uploads::{Ended, Known, Unsent, Uploads};
use crate::urgency::Tier;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rackwright_wire::event::{Answer, Ask, EVENT_VERSION, Event, Reply, What};
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::step::{CertificateStep, StepKind};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// A line of events is no longer than this: evidence is at most 8 KiB, certificates a few.
const LONGEST_LINE: usize = 1 << 20;

/// How a connection ended.
pub(crate) enum End {
    /// The run is over.
    Over,
    /// The connection is gone; the server works on.
    Lost(String),
}

/// What one connection works with.
pub(crate) struct Conversation<'a> {
    pub(crate) apply: &'a Apply,
    pub(crate) plan: &'a ServerPlan,
    pub(crate) agent: &'a Agent,
    pub(crate) follower: &'a mut Follower,
    pub(crate) uploads: &'a mut Uploads,
}

/// Answers that are being found out: the step, and its reply.
type Answers<'a> = FuturesUnordered<BoxFuture<'a, (String, Reply)>>;

impl<'a> Conversation<'a> {
    /// Hands over the plan, or follows it when the server has it, until the run or the connection ends.
    pub(crate) async fn hold(mut self) -> Result<End, AgentError> {
        // `run` is safe to repeat, and starts again what a reboot interrupted; `follow` skips what is known.
        let seen = self.follower.next_seq();
        let process = if seen > 1 {
            self.agent.follow(&self.plan.id, seen).await?
        } else {
            self.agent.run(self.plan).await?
        };
        let Process { mut output, input } = process;
        let mut answers = Answers::new();
        let mut waiting: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let open: Vec<_> =
            self.follower.open_asks().map(|(step, ask)| (step.to_owned(), ask.clone())).collect();
        for (step, ask) in open {
            self.ask(step, &ask, &mut answers, &mut waiting);
        }
        let mut lines = BytesMut::new();
        let mut left =
            Output { status: crate::process::NO_STATUS, stdout: Vec::new(), stderr: String::new() };
        loop {
            self.send_artifacts();
            tokio::select! {
                biased;
                piece = output.next() => match piece {
                    Some(Piece::Stdout(bytes)) => {
                        lines.extend_from_slice(&bytes);
                        while let Some(event) = self.next_event(&mut lines)? {
                            self.take(&event, &mut answers, &mut waiting);
                        }
                    }
                    Some(Piece::Stderr(bytes)) => left.stderr.push_str(&String::from_utf8_lossy(&bytes)),
                    Some(Piece::Exit(status)) => left.status = status,
                    None => return self.end(&left, &output.closed()),
                },
                Some((step, reply)) = answers.next() => {
                    // A broken pipe ends the output too, and that is where it is noticed.
                    let _noticed_there = answer(&input, step, reply).await;
                }
                ended = self.uploads.next(), if self.uploads.is_busy() => {
                    if let Some(ended) = ended {
                        self.uploaded(&ended, &mut answers, &mut waiting);
                    }
                }
            }
        }
    }

    fn send_artifacts(&mut self) {
        for artifact in self.uploads.start(self.agent) {
            let news = News::Sending { artifact: artifact.name, bytes: artifact.bytes };
            self.apply.teller.tell(&self.plan.server, news);
        }
    }

    fn next_event(&self, lines: &mut BytesMut) -> Result<Option<Event>, AgentError> {
        let unreadable =
            |source| AgentError::Answer { what: "run".to_owned(), server: self.plan.server.clone(), source };
        let Some(end) = lines.iter().position(|byte| *byte == b'\n') else {
            if lines.len() > LONGEST_LINE {
                return Err(unreadable(serde::de::Error::custom("an event of more than 1 MiB")));
            }
            return Ok(None);
        };
        let line = lines.split_to(end + 1);
        serde_json::from_slice(&line).map(Some).map_err(unreadable)
    }

    fn take(
        &mut self,
        event: &Event,
        answers: &mut Answers<'a>,
        waiting: &mut BTreeMap<String, Vec<String>>,
    ) {
        let meaning = self.follower.observe(event);
        if meaning == Meaning::Old {
            return;
        }
        if let Some(news) = self.news(event) {
            self.apply.teller.tell(&self.plan.server, news);
        }
        if let Meaning::Asked { step, ask } = meaning {
            self.ask(step, &ask, answers, waiting);
        }
    }

    fn ask(
        &mut self,
        step: String,
        ask: &Ask,
        answers: &mut Answers<'a>,
        waiting: &mut BTreeMap<String, Vec<String>>,
    ) {
        match ask {
            Ask::Certificate { ca, csr } => {
                let reply = self.certificate(&step, ca, csr);
                answers.push(Box::pin(std::future::ready((step, reply))));
            }
            Ask::State { state } => {
                if let Some(sha256) = state.strip_prefix("artifact:") {
                    self.ask_artifact(step, sha256, answers, waiting);
                    return;
                }
                let (conditions, state) = (&self.apply.conditions, state.clone());
                let held = self.apply.head_start.hold(Tier::Joining);
                answers.push(Box::pin(async move {
                    let _others_wait = held;
                    let reached = conditions.reached(&state).await;
                    (step, reached.map_or_else(refused, |()| Reply::Reached))
                }));
            }
        }
    }

    fn ask_artifact(
        &mut self,
        step: String,
        sha256: &str,
        answers: &mut Answers<'a>,
        waiting: &mut BTreeMap<String, Vec<String>>,
    ) {
        let reply = match self.uploads.want(sha256) {
            Known::Arrived => Reply::Reached,
            Known::Coming => {
                waiting.entry(sha256.to_owned()).or_default().push(step);
                return;
            }
            Known::Unknown => {
                refused(format!("no artifact with SHA-256 {sha256} is on the operator's machine"))
            }
        };
        answers.push(Box::pin(std::future::ready((step, reply))));
    }

    fn uploaded(
        &mut self,
        ended: &Ended,
        answers: &mut Answers<'a>,
        waiting: &mut BTreeMap<String, Vec<String>>,
    ) {
        let reply = match &ended.result {
            Ok(()) => {
                let news = News::Sent { artifact: ended.name.clone(), took_ms: ended.took_ms };
                self.apply.teller.tell(&self.plan.server, news);
                Reply::Reached
            }
            Err(Unsent { lost: true, .. }) => return,
            Err(Unsent { reason, code, lost: false }) => {
                Reply::Refused { reason: reason.clone(), code: code.clone() }
            }
        };
        for step in waiting.remove(&ended.sha256).unwrap_or_default() {
            answers.push(Box::pin(std::future::ready((step, reply.clone()))));
        }
    }

    /// Signs what the plan grants to that step, if that is what the request asks for.
    fn certificate(&self, step: &str, ca: &str, csr: &str) -> Reply {
        let Some(granted) = certificate_step(self.plan, step) else {
            return refused(format!("the plan has no certificate step {step}"));
        };
        if granted.ca != ca {
            return refused(format!("the plan's step {step} is signed by {}, not by {ca}", granted.ca));
        }
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match self.apply.authorities.sign(csr, granted, now_s) {
            Ok(signed) => Reply::Certificate { cert: signed.cert, ca: signed.ca },
            Err(error) => refused(crate::survey::chain(&error)),
        }
    }

    fn news(&self, event: &Event) -> Option<News> {
        let steps = self.plan.steps.len();
        let done = self.follower.done();
        Some(match &event.what {
            What::Started { .. } | What::Asking { ask: Ask::Certificate { .. }, .. } => return None,
            What::Applying { step, summary, .. } => {
                News::Applying { step: step.clone(), summary: summary.clone() }
            }
            What::Applied { step, .. } | What::Unchanged { step } => {
                News::Done { step: step.clone(), done, steps }
            }
            What::Asking { step, ask: Ask::State { state } } => {
                let what = if state.starts_with("artifact:") { "its artifact" } else { state };
                News::Waiting { step: step.clone(), what: what.to_owned() }
            }
            What::Failed { step, code, error, evidence } => News::Failed(crate::follow::Failure {
                step: step.clone(),
                code: code.clone(),
                error: error.clone(),
                evidence: evidence.clone(),
            }),
            What::Finished { changed, failed } => {
                News::Finished(crate::follow::Finished { changed: *changed, failed: *failed })
            }
        })
    }

    fn end(&self, left: &Output, closed: &SessionError) -> Result<End, AgentError> {
        if self.follower.finished().is_some() {
            return Ok(End::Over);
        }
        match left.status {
            // The agent's process went without a word: as good as a lost connection.
            0 | crate::process::NO_STATUS => Ok(End::Lost(closed.to_string())),
            _ => Err(self.agent.complaint("run the plan", left)),
        }
    }
}

fn refused(reason: String) -> Reply {
    Reply::Refused { reason, code: String::new() }
}

fn certificate_step<'p>(plan: &'p ServerPlan, id: &str) -> Option<&'p CertificateStep> {
    plan.steps
        .iter()
        .find(|step| step.id == id)
        .and_then(|step| if let StepKind::Certificate(granted) = &step.kind { Some(granted) } else { None })
}

async fn answer(input: &ProcessInput, step: String, reply: Reply) -> Result<(), SessionError> {
    let answer = Answer { version: EVENT_VERSION, step, reply };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    input.write(Bytes::from(line)).await
}
