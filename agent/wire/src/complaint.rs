//! The last words of an agent's subcommand that failed: one JSON line on standard error.

use serde::{Deserialize, Serialize};

/// The version of [`Complaint`] that this build writes.
pub const COMPLAINT_VERSION: u32 = 1;

/// Why a subcommand did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Complaint {
    /// [`COMPLAINT_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, COMPLAINT_VERSION>")]
    pub version: u32,
    /// Stable code of the error catalogue, such as `disk-full`.
    pub code: String,
    /// The error chain in one line; reads after "failed to".
    pub error: String,
    /// Unit log or command output that explains it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub evidence: String,
}
