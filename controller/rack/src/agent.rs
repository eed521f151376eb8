//! The agent on a server, spoken to over SSH.
//!
//! The binary lies in `/run/rackwright/agent-<hash>`: `check` and `plan` leave nothing that outlives a
//! reboot, and an agent of the right hash is never sent twice.

use crate::process::{Process, ProcessInput};
use crate::session::{Output, Session, SessionError};
use bytes::Bytes;
use rackwright_wire::complaint::Complaint;
use rackwright_wire::facts::Facts;
use rackwright_wire::plan::{CheckReport, CheckRequest, ServerPlan};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;

/// Read from disk and sent at once; a channel's window at sshd is 2 MiB.
const UPLOAD_BLOCK_BYTES: usize = 512 * 1024;
/// What the shell answers when there is no such program.
const NOT_FOUND: u32 = 127;
/// What the agent answers when it refuses and has touched nothing.
const REFUSED: u32 = 3;

/// The agent binary on the operator's machine.
#[derive(Debug, Clone)]
pub struct AgentBinary {
    /// Of the file.
    pub path: PathBuf,
    /// SHA-256 (hex) of its content.
    pub sha256: String,
}

/// The agent binary cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("read the agent binary {}", path.display())]
pub struct AgentBinaryError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl AgentBinary {
    /// Hashes the binary.
    pub fn open(path: &Path) -> Result<Self, AgentBinaryError> {
        let failed = |source| AgentBinaryError { path: path.to_owned(), source };
        let content = std::fs::read(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), sha256: hex::encode(Sha256::digest(&content)) })
    }
}

/// The agent could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The connection failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The agent answered with an error.
    #[error("{what} on {server}: {error}")]
    Failed {
        /// What was asked.
        what: String,
        /// The server.
        server: String,
        /// Code of the error catalogue, empty when the agent gave none.
        code: String,
        /// The agent's words.
        error: String,
        /// Whether the agent refused before it touched anything.
        refused: bool,
    },
    /// The answer is no answer.
    #[error("understand what the agent on {server} answered to {what:?}")]
    Answer {
        /// What was asked.
        what: String,
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file of this machine could not be read.
    #[error("read {} to send it", path.display())]
    Local {
        /// Of the file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl AgentError {
    /// The code that the agent gave; empty when it gave none.
    pub fn code(&self) -> &str {
        if let Self::Failed { code, .. } = self { code } else { "" }
    }

    /// Whether the server refused before it touched anything.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Failed { refused: true, .. })
    }

    /// Whether the connection broke, so that another one may work.
    pub fn is_lost_connection(&self) -> bool {
        matches!(self, Self::Session(SessionError::Lost { .. } | SessionError::Closed { .. }))
    }
}

/// The agent of one server.
#[derive(Clone)]
pub struct Agent {
    session: Arc<Session>,
    command: String,
    sha256: String,
}

impl Agent {
    /// Finds the agent on the server, sends it when it is not there, and asks for the facts.
    pub async fn introduce(
        session: Arc<Session>,
        user: &str,
        binary: &AgentBinary,
    ) -> Result<(Self, Facts), AgentError> {
        let sudo = if user == "root" { "" } else { "sudo -n " };
        let short = binary.sha256.get(..16).unwrap_or(&binary.sha256);
        let command = format!("{sudo}/run/rackwright/agent-{short}");
        let agent = Self { session, command, sha256: binary.sha256.clone() };
        let first = agent.session.exec(&format!("{} facts", agent.command), b"").await?;
        // sudo answers 1 for a program that does not exist.
        let missing = first.status == NOT_FOUND || first.stderr.contains("command not found");
        let output = if missing {
            agent.send_agent(sudo, short, binary).await?;
            agent.session.exec(&format!("{} facts", agent.command), b"").await?
        } else {
            first
        };
        let facts = agent.answer("read the facts", &output)?;
        Ok((agent, facts))
    }

    /// The server's connection.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// What differs from the steps. Changes nothing.
    pub async fn check(&self, request: &CheckRequest) -> Result<CheckReport, AgentError> {
        let stdin = serde_json::to_vec(request).unwrap_or_default();
        let output = self.session.exec(&format!("{} check", self.command), &stdin).await?;
        self.answer("check", &output)
    }

    /// Sends an artifact; `sent` is called with the bytes of each block. One that is there already costs
    /// one round trip.
    pub async fn receive(
        &self,
        sha256: &str,
        mode: &str,
        file: &Path,
        sent: impl Fn(u64) + Send,
    ) -> Result<(), AgentError> {
        let mut command = format!("{} receive --sha256 {sha256} --mode {mode}", self.command);
        if sha256 == self.sha256 {
            // It is there already: it is what answers.
            let itself = self.command.rsplit(' ').next().unwrap_or_default();
            command = format!("{command} < {itself}");
            let output = self.session.exec(&command, b"").await?;
            return self.require("receive itself", &output);
        }
        let process = self.session.start(&command).await?;
        let output = stream(process, file, sent).await?;
        self.require(&format!("receive {}", file.display()), &output)
    }

    /// Hands over a plan; events come back. Safe to repeat for the same plan.
    pub async fn run(&self, plan: &ServerPlan) -> Result<Process, AgentError> {
        let process = self.session.start(&format!("{} run", self.command)).await?;
        let mut line = serde_json::to_vec(plan).unwrap_or_default();
        line.push(b'\n');
        process.input.write(Bytes::from(line)).await?;
        Ok(process)
    }

    /// Follows a plan that was handed over before, from the event with this sequence number on.
    pub async fn follow(&self, plan: &str, from_seq: u64) -> Result<Process, AgentError> {
        let command = format!("{} follow --plan {plan} --from-seq {from_seq}", self.command);
        Ok(self.session.start(&command).await?)
    }

    /// The error that a finished `run` or `follow` left.
    pub fn complaint(&self, what: &str, output: &Output) -> AgentError {
        let line = output.stderr.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        let (code, error) = match serde_json::from_str::<Complaint>(line) {
            Ok(Complaint { code, error, .. }) => {
                let error = format!("{error} [{code}]");
                (code, error)
            }
            Err(_) if output.stderr.trim().is_empty() => {
                (String::new(), format!("exit status {}", output.status))
            }
            Err(_) => (String::new(), output.stderr.trim().to_owned()),
        };
        AgentError::Failed {
            what: what.to_owned(),
            server: self.session.server().to_owned(),
            code,
            error,
            refused: output.status == REFUSED,
        }
    }

    async fn send_agent(&self, sudo: &str, short: &str, binary: &AgentBinary) -> Result<(), AgentError> {
        let script = format!(
            "umask 077; mkdir -p /run/rackwright && cd /run/rackwright && cat > .agent-{short}.$$ && \
             echo \"{sha256}  .agent-{short}.$$\" | sha256sum -c --status - && chmod 0700 .agent-{short}.$$ && \
             mv -f .agent-{short}.$$ agent-{short}",
            sha256 = binary.sha256,
        );
        let process = self.session.start(&format!("{sudo}sh -c '{script}'")).await?;
        let output = stream(process, &binary.path, |_| ()).await?;
        self.require("receive the agent", &output)
    }

    fn require(&self, what: &str, output: &Output) -> Result<(), AgentError> {
        if output.status == 0 { Ok(()) } else { Err(self.complaint(what, output)) }
    }

    fn answer<T: DeserializeOwned>(&self, what: &str, output: &Output) -> Result<T, AgentError> {
        self.require(what, output)?;
        serde_json::from_slice(&output.stdout).map_err(|source| AgentError::Answer {
            what: what.to_owned(),
            server: self.session.server().to_owned(),
            source,
        })
    }
}

/// Feeds a file to a process and waits for its end.
async fn stream(process: Process, file: &Path, sent: impl Fn(u64) + Send) -> Result<Output, AgentError> {
    let Process { output, input } = process;
    let local = |source| AgentError::Local { path: file.to_owned(), source };
    let mut source = tokio::fs::File::open(file).await.map_err(local)?;
    let mut unreadable = None;
    let feed = async {
        loop {
            let mut block = bytes::BytesMut::with_capacity(UPLOAD_BLOCK_BYTES);
            let mut full = (&mut source).take(UPLOAD_BLOCK_BYTES as u64);
            while full.limit() > 0 {
                match full.read_buf(&mut block).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(cause) => {
                        unreadable = Some(cause);
                        return end(&input).await;
                    }
                }
            }
            if block.is_empty() {
                return end(&input).await;
            }
            let length = block.len() as u64;
            input.write(block.freeze()).await?;
            sent(length);
        }
    };
    let result = output.collect_while(feed).await?;
    // The far side saw a short file and says that its hash is wrong; the cause is here.
    unreadable.map_or(Ok(result), |cause| Err(local(cause)))
}

async fn end(input: &ProcessInput) -> Result<(), SessionError> {
    input.end().await
}
