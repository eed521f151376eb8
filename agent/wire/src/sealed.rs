//! What a job leaves behind: a sealed set of files (results or a checkpoint) under one manifest.
//!
//! A set exists only once its manifest is stored, last and create-once. Sets are scoped to a project
//! and fenced by attempt.

use crate::manifest::File;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`SealedSet`] and [`SetList`] that this build writes.
pub const SEALED_VERSION: u32 = 1;

/// A sealed result set or checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSet {
    /// [`SEALED_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SEALED_VERSION>")]
    pub version: u32,
    /// What it is.
    pub kind: SetKind,
    /// Team that owns it.
    pub team: String,
    /// Project that it is scoped to.
    pub project: String,
    /// Job id.
    pub job: String,
    /// Task index within the job; gang members count too.
    pub task: u32,
    /// Attempt that wrote it.
    pub attempt: u32,
    /// Checkpoints: the step, as the job named it (`checkpoints/<step>`); results: 0.
    pub step: u64,
    /// The node that sealed it.
    pub node: String,
    /// Files in path order; none when it is refused.
    pub files: Vec<File>,
    /// Why what the job left could not be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Links, sockets and devices that the job left there too: only plain files are kept.
    #[serde(default, skip_serializing_if = "is_none")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_none(left_out: &u64) -> bool {
    *left_out == 0
}

/// What `GET /v1/sets` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetList {
    /// [`SEALED_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SEALED_VERSION>")]
    pub version: u32,
    /// Sets that match, in the order of job, task, attempt, step.
    pub sets: Vec<SealedSet>,
    /// What became of result sets, by id: `20 rows` or `refused: why`; one that is not here waits for the loader.
    pub outcomes: BTreeMap<String, String>,
}

/// Results or checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetKind {
    /// Rows for the results node: `*.jsonl` files, one JSON object a line.
    Results,
    /// A state to resume from.
    Checkpoint,
}

impl SealedSet {
    /// The set's id: `<kind>-<job>-<task>-<attempt>-<step>`; create-once by this name.
    pub fn id(&self) -> String {
        let kind = match self.kind {
            SetKind::Results => "results",
            SetKind::Checkpoint => "checkpoint",
        };
        format!("{kind}-{}-{}-{}-{}", self.job, self.task, self.attempt, self.step)
    }

    /// What stands behind a good outcome when something was left out.
    pub fn but(&self) -> String {
        match self.left_out {
            0 => String::new(),
            1 => "; 1 link or device left out".to_owned(),
            more => format!("; {more} links or devices left out"),
        }
    }

    /// BLAKE3 (hex) over the whole set's JSON.
    pub fn digest(&self) -> String {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&bytes).to_hex().to_string()
    }
}
