//! What happens while a server applies a plan: one JSON object a line, both on the SSH channel and in
//! the server's journal (`/var/lib/rackwright/journal/<plan id>.jsonl`).

use serde::{Deserialize, Serialize};

/// The version of [`Event`] and [`Answer`] lines that this build writes.
pub const EVENT_VERSION: u32 = 1;

/// One line from agent to controller, and one line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// [`EVENT_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, EVENT_VERSION>")]
    pub version: u32,
    /// Rises within one plan's journal, from 1; a resumed apply goes on at the next million.
    pub seq: u64,
    /// Milliseconds since the epoch on the server's clock; for people, never for decisions.
    pub at_ms: u64,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// The plan was accepted and stored, and its unit started.
    Started {
        /// Plan id.
        plan: String,
    },
    /// A step's check found a difference; apply begins. Written and synced before anything changes.
    Applying {
        /// Step id.
        step: String,
        /// The difference's summary.
        summary: String,
        /// Enough to undo it: previous content digest and backup path, previous state, or `absent`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<serde_json::Value>,
    },
    /// The step's second check found no difference.
    Applied {
        /// Step id.
        step: String,
        /// How long check, apply and check took.
        took_ms: u64,
    },
    /// The step's first check found no difference.
    Unchanged {
        /// Step id.
        step: String,
    },
    /// The step cannot go on without the controller.
    Asking {
        /// Step id.
        step: String,
        /// What is needed.
        ask: Ask,
    },
    /// The step failed; steps that need it are not tried, others go on.
    Failed {
        /// Step id.
        step: String,
        /// Stable code of the error catalogue, such as `disk-full`.
        code: String,
        /// The error chain, one cause a line.
        error: String,
        /// Unit log or command output that explains it, at most 8 KiB.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        evidence: String,
    },
    /// Nothing is left to do.
    Finished {
        /// Steps that changed something.
        changed: u32,
        /// Steps that failed or could not be tried.
        failed: u32,
    },
}

/// What a step can ask of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Sign this request; the private key stays on the server.
    Certificate {
        /// Which CA.
        ca: String,
        /// PKCS#10 request, PEM.
        csr: String,
    },
    /// Tell me when this cluster state is true.
    State {
        /// Such as `etcd:quorum`.
        state: String,
    },
}

/// One line from controller to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// [`EVENT_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, EVENT_VERSION>")]
    pub version: u32,
    /// The step that asked.
    pub step: String,
    /// The answer.
    pub reply: Reply,
}

/// An answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The signed certificate and its CA, PEM.
    Certificate {
        /// Leaf certificate.
        cert: String,
        /// CA certificate.
        ca: String,
    },
    /// The state is true.
    Reached,
    /// The controller will not answer with what was asked for.
    Refused {
        /// Why.
        reason: String,
        /// Code of the error catalogue when the server itself is why, such as `disk-full`; else empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        code: String,
    },
}
