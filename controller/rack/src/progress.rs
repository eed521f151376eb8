//! What people and scripts see while the controller works. Data only; who prints it is elsewhere.

use crate::follow::{Failure, Finished};
use rackwright_wire::words::counted;
use serde::Serialize;
use std::fmt;
use tokio::sync::mpsc::UnboundedSender;

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    /// The server, or `cluster` for what concerns all.
    pub server: String,
    /// What happened.
    #[serde(flatten)]
    pub news: News,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub enum News {
    /// A connection is being opened.
    Connecting,
    /// The server answered and was compared.
    Compared {
        /// Differences.
        changes: usize,
    },
    /// The server is not there.
    Absent {
        /// Why.
        reason: String,
    },
    /// Its host key stopped us.
    Untrusted {
        /// Why.
        reason: String,
    },
    /// Its plan was handed over.
    Started {
        /// Steps in its plan.
        steps: usize,
    },
    /// A step is being applied.
    Applying {
        /// Step id.
        step: String,
        /// What changes.
        summary: String,
    },
    /// A step is as it should be.
    Done {
        /// Step id.
        step: String,
        /// How many are.
        done: u32,
        /// Steps in its plan.
        steps: usize,
    },
    /// A step waits for something.
    Waiting {
        /// Step id.
        step: String,
        /// For what.
        what: String,
    },
    /// A step failed.
    Failed(Failure),
    /// An artifact is on its way.
    Sending {
        /// Name in the lockfile.
        artifact: String,
        /// Its size.
        bytes: u64,
    },
    /// An artifact arrived.
    Sent {
        /// Name in the lockfile.
        artifact: String,
        /// How long it took.
        took_ms: u64,
    },
    /// The connection was lost; the server works on.
    Lost {
        /// Why.
        reason: String,
    },
    /// The server's run is over.
    Finished(Finished),
    /// Something about the whole cluster.
    Cluster {
        /// What.
        what: String,
    },
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Compared { changes: 0 } => f.write_str("as planned"),
            Self::Compared { changes } => write!(f, "{changes} to change"),
            Self::Absent { reason } => write!(f, "absent: {reason}"),
            Self::Untrusted { reason } => write!(f, "STOPPED before login: {reason}"),
            Self::Started { steps } => write!(f, "started, {}", counted(steps, "step")),
            Self::Applying { step, summary } => write!(f, "{step}: {summary}"),
            Self::Done { step, done, steps } => write!(f, "{done}/{steps} {step}"),
            Self::Waiting { step, what } => write!(f, "{step}: waiting for {what}"),
            Self::Failed(failure) => {
                write!(f, "FAILED {}: {} [{}]", failure.step, failure.error.replace('\n', ": "), failure.code)
            }
            Self::Sending { artifact, bytes } => write!(f, "sending {artifact}, {} MB", bytes / 1_000_000),
            Self::Sent { artifact, took_ms } => write!(f, "sent {artifact} in {took_ms} ms"),
            Self::Lost { reason } => {
                write!(f, "connection lost ({reason}), the server works on; reconnecting")
            }
            Self::Finished(Finished { changed, failed: 0 }) => write!(f, "done, {changed} changed"),
            Self::Finished(Finished { changed, failed }) => {
                write!(f, "done, {changed} changed, {failed} failed")
            }
            Self::Cluster { what } => f.write_str(what),
        }
    }
}

/// Where progress goes; nobody listening is fine.
#[derive(Debug, Clone)]
pub struct Teller(UnboundedSender<Progress>);

impl Teller {
    /// Tells it to this receiver.
    pub fn new(sender: UnboundedSender<Progress>) -> Self {
        Self(sender)
    }

    /// Tells what happened on a server.
    pub fn tell(&self, server: &str, news: News) {
        let _nobody_listens = self.0.send(Progress { server: server.to_owned(), news });
    }

    /// Tells what happened to the whole cluster.
    pub fn cluster(&self, what: impl Into<String>) {
        self.tell("cluster", News::Cluster { what: what.into() });
    }
}
