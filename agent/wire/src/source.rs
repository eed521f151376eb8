//! What the controller asks the data server's agent about the masters, and what a scrub answers.
//!
//! Facts are cheap and say whether anything changed; an export reads the source once, hashes every
//! byte and leaves the files in the agent's own content store. The controller decides in between.

use crate::manifest::{Column, File, Source};
use serde::{Deserialize, Serialize};

/// The version of the formats in this module that this build writes.
pub const SOURCE_VERSION: u32 = 1;

/// Asks for facts (`POST /v1/source/facts`) or for an export (`POST /v1/source/export`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRequest {
    /// [`SOURCE_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SOURCE_VERSION>")]
    pub version: u32,
    /// Dataset name.
    pub dataset: String,
    /// What the dataset is made from.
    pub spec: SourceSpec,
}

/// What a dataset is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceSpec {
    /// A ClickHouse table.
    Clickhouse {
        /// `database.table`.
        table: String,
        /// Columns in order; empty for every column of fixed width.
        #[serde(default)]
        columns: Vec<String>,
        /// Order of the rows; empty for the table's sorting key. All exported columns follow as
        /// tie-breakers, so that equal rows give equal bytes.
        #[serde(default)]
        order_by: Vec<String>,
    },
    /// The objects of a bucket.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Only keys that begin with this; it stays part of the path.
        #[serde(default)]
        prefix: String,
    },
}

impl SourceSpec {
    /// The name in [`Source::name`]: the table, or bucket and prefix.
    pub fn name(&self) -> String {
        match self {
            Self::Clickhouse { table, .. } => table.clone(),
            Self::S3 { bucket, prefix } if prefix.is_empty() => bucket.clone(),
            Self::S3 { bucket, prefix } => format!("{bucket}/{prefix}"),
        }
    }
}

/// The state of a source now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFacts {
    /// [`SOURCE_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SOURCE_VERSION>")]
    pub version: u32,
    /// Dataset name.
    pub dataset: String,
    /// Kind, name and fingerprint.
    pub source: Source,
    /// Tables: rows in all active parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes that an export would have.
    pub bytes: u64,
    /// Active parts, or objects.
    pub parts: u64,
    /// The source's software, such as `ClickHouse 18.16.1`.
    pub software: String,
    /// Columns that an export leaves out, as `name Type`: they have no fixed width.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// What one export gave. All files lie in the exporting agent's content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// [`SOURCE_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SOURCE_VERSION>")]
    pub version: u32,
    /// Dataset name.
    pub dataset: String,
    /// The source state that the bytes belong to: equal before and after the export.
    pub source: Source,
    /// Files in path order.
    pub files: Vec<File>,
    /// Tables: columns of the fixed-width rows.
    #[serde(default)]
    pub columns: Vec<Column>,
    /// Tables: number of rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes that this call read from the source; 0 when the same state was exported before.
    pub read_bytes: u64,
    /// Columns left out, as in [`SourceFacts::left_out`].
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// What a scrub found (`POST /v1/scrub`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubReport {
    /// [`SOURCE_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SOURCE_VERSION>")]
    pub version: u32,
    /// Server name.
    pub server: String,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged objects, in hash order.
    pub damaged: Vec<Damage>,
}

impl ScrubReport {
    /// Objects whose bytes did not hash.
    pub fn found(&self) -> u64 {
        u64::try_from(self.damaged.len()).unwrap_or(u64::MAX)
    }

    /// Of those, how many were repaired.
    pub fn repaired(&self) -> u64 {
        let repaired = self.damaged.iter().filter(|damage| damage.unrepaired.is_none()).count();
        u64::try_from(repaired).unwrap_or(u64::MAX)
    }
}

/// One object whose bytes did not hash or were gone, or one version whose folder was not what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damage {
    /// The hash that it should have; of a version its digest.
    pub blake3: String,
    /// Chunks that did not hash or could not be read; none of a version.
    pub chunks: Vec<u64>,
    /// Versions and sets that share it, as `dataset/digest` or `set/id`; all were relinked when repaired.
    pub shared_by: Vec<String>,
    /// Holders (pod uids) that had one of these versions pinned, and so may have read bad bytes.
    pub holders: Vec<String>,
    /// Bytes fetched for the repair, by peer.
    pub fetched: std::collections::BTreeMap<String, u64>,
    /// Why it could not be repaired, when it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrepaired: Option<String>,
}
