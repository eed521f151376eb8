//! A dataset version: which files with which bytes, under one digest, signed, with a generation.
//!
//! Identity is BLAKE3 of the bytes, never an `ETag` or a name. A version becomes visible on a node
//! only when every chunk hashed; an older generation is refused; deletes follow only from a signed
//! complete manifest.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Manifest`] that this build writes.
pub const MANIFEST_VERSION: u32 = 1;
/// Chunk size in bytes: 16 MiB, an aligned BLAKE3 subtree (anchors: chunk <= 1 % of a large file).
pub const CHUNK_BYTES: u64 = 16 * 1024 * 1024;

/// One version of one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// Dataset name: a DNS label.
    pub dataset: String,
    /// Counts up with every publication of this dataset.
    pub generation: u64,
    /// Where the bytes came from: `clickhouse` or `s3`, with what identifies the source state.
    pub source: Source,
    /// Files in path order.
    pub files: Vec<File>,
    /// For tables: columns of the fixed-width rows, in order, so that numpy maps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    /// For tables: number of rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `clickhouse` or `s3`.
    pub kind: String,
    /// Table (`db.table`) or bucket with prefix.
    pub name: String,
    /// Fingerprint of the source state: equal means no export is needed (the recipe key).
    pub fingerprint: String,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Relative path, no `..`, no leading slash.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 (hex) of the whole content.
    pub blake3: String,
    /// BLAKE3 (hex) of each [`CHUNK_BYTES`] chunk, in order.
    pub chunks: Vec<String>,
}

/// One fixed-width column of a table's row file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Column name.
    pub name: String,
    /// ClickHouse type, such as `Float64` or `FixedString(16)`.
    pub clickhouse_type: String,
    /// numpy dtype string, such as `<f8`.
    pub dtype: String,
    /// Width in bytes.
    pub width: u32,
}

impl Manifest {
    /// The version digest (BLAKE3 hex, 64 digits) over dataset, files, columns and rows: what jobs,
    /// labels and results name. Generation and source are left out, so equal bytes are one version.
    pub fn digest(&self) -> String {
        let content = (&self.dataset, &self.files, &self.columns, &self.rows);
        let bytes = serde_json::to_vec(&content).unwrap_or_default();
        blake3::hash(&bytes).to_hex().to_string()
    }

    /// Sum of the file sizes in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A manifest as it travels: exact bytes and an Ed25519 signature over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// The manifest's JSON exactly as signed.
    pub manifest: String,
    /// Ed25519 signature over those bytes, base64.
    pub signature: String,
}

/// What the controller wants one node to hold, pushed to its agent (`PUT /v1/wanted`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// Counts up with every change of any wanted set; an agent refuses an older one.
    pub generation: u64,
    /// Signed manifests by dataset: the newest last.
    pub datasets: BTreeMap<String, Vec<SignedManifest>>,
    /// Where to fetch from, best first: the predecessor in the chain, then others, the source last.
    pub peers: Vec<Peer>,
}

/// Another agent's data port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Inventory name, which its certificate must carry.
    pub server: String,
    /// `address:port`.
    pub address: String,
}

/// What a node holds (`GET /v1/held`), and what `PUT /v1/wanted` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// Server name.
    pub server: String,
    /// The wanted generation last accepted.
    pub generation: u64,
    /// Per dataset, the complete versions and what is under way.
    pub datasets: BTreeMap<String, Vec<HeldVersion>>,
    /// Objects whose bytes did not hash, found by scrubs so far.
    pub scrub_found: u64,
    /// Of those, how many were repaired from a peer.
    pub scrub_repaired: u64,
}

/// One version on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldVersion {
    /// Version digest.
    pub digest: String,
    /// Generation of its manifest.
    pub generation: u64,
    /// Every byte is here and hashed, and the version is visible.
    pub complete: bool,
    /// Bytes here and verified.
    pub bytes: u64,
    /// Bytes of the whole version.
    pub total_bytes: u64,
    /// Bytes fetched over the network so far, by peer name.
    pub fetched: BTreeMap<String, u64>,
    /// Holders that pin it (pod uids).
    pub pins: Vec<String>,
    /// Why it is not complete, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
}
