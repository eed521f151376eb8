//! A dataset version: which files with which bytes, under one digest, signed, with a generation.
//!
//! Identity is BLAKE3 of the bytes, never an `ETag` or a name. A version becomes visible on a node
//! only when every chunk hashed; an older generation is refused; deletes follow only from a signed
//! complete manifest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The version of [`Manifest`], [`Wanted`] and [`Held`] that this build writes.
pub const MANIFEST_VERSION: u32 = 1;
/// The version of [`SignedManifest`] that this build writes.
pub const SIGNED_VERSION: u32 = 1;
/// Chunk size in bytes: 16 MiB, an aligned BLAKE3 subtree (anchors: chunk <= 1 % of a large file).
pub const CHUNK_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of a manifest of any kind in JSON: ten thousand files with long names, or chunk hashes of 10 TiB.
pub const MANIFEST_BYTES: usize = 64 * 1024 * 1024;

/// One version of one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, MANIFEST_VERSION>")]
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

    /// Sum of the file sizes in bytes; saturates, so a hostile manifest cannot wrap it to little.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Everything that is wrong with the content, one line each; empty when it may touch a disk.
    pub fn check(&self) -> Vec<String> {
        let mut findings = Vec::new();
        if self.version != MANIFEST_VERSION {
            findings.push(format!("version {} is not {MANIFEST_VERSION}", self.version));
        }
        if !is_dns_label(&self.dataset) {
            findings.push(format!("dataset {:?} is not a DNS label", self.dataset));
        }
        findings.extend(check_files(&self.files));
        let reserved = self.files.iter().any(|file| file.path.split('/').next() == Some(MANIFEST_FILE));
        if reserved {
            findings.push(format!("{MANIFEST_FILE} is reserved for the manifest itself"));
        }
        let width: u64 = self.columns.iter().map(|column| u64::from(column.width)).sum();
        if let Some(rows) = self.rows
            && rows.checked_mul(width) != Some(self.bytes())
        {
            findings.push(format!("{rows} rows of {width} bytes are not {} bytes", self.bytes()));
        }
        findings
    }
}

/// The manifest's own name inside a version's folder, so that a reader of the rows finds the columns.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Everything that is wrong with a list of files: paths that leave the folder, that repeat or that
/// would need one name to be both file and folder; hashes that are none; chunk counts off the size.
pub fn check_files(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut names = BTreeSet::new();
    let mut folders = BTreeSet::new();
    for file in files {
        if !is_plain_relative_path(&file.path) {
            findings.push(format!("path {:?} is not a plain relative path", file.path));
        }
        if !names.insert(file.path.as_str()) {
            findings.push(format!("path {:?} appears twice", file.path));
        }
        folders.extend(file.path.match_indices('/').filter_map(|(at, _)| file.path.get(..at)));
        if !file.chunks.iter().chain([&file.blake3]).all(|hash| is_blake3(hash)) {
            findings.push(format!("{:?} has a hash that is not 64 hexadecimal digits", file.path));
        }
        if file.bytes.div_ceil(CHUNK_BYTES) != u64::try_from(file.chunks.len()).unwrap_or(u64::MAX) {
            findings.push(format!("{:?}: {} chunks for {} bytes", file.path, file.chunks.len(), file.bytes));
        }
    }
    findings.extend(names.intersection(&folders).map(|path| format!("path {path:?} is file and folder")));
    findings
}

/// Whether `text` is the lower-case hexadecimal form of a BLAKE3 hash: the only text that ever
/// becomes a file name of the content store.
pub fn is_blake3(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is a DNS label: 1 to 63 of `a-z0-9-`, no dash at either end.
pub fn is_dns_label(text: &str) -> bool {
    let plain = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    (1..=63).contains(&text.len()) && plain && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether every part of `path` is an ordinary name: no root, no `..` or `.`, nothing empty, no NUL.
pub fn is_plain_relative_path(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255;
    path.len() <= 1024 && !path.bytes().any(|byte| byte < b' ' || byte == 0x7f) && path.split('/').all(plain)
}

/// Why a signed manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The key or the signature is not what it should be, or they do not fit.
    #[error("verify the manifest's signature")]
    Signature,
    /// The signed bytes are no manifest of a version that this build reads.
    #[error("read the manifest")]
    Json(#[source] serde_json::Error),
    /// The content breaks a rule.
    #[error("accept the manifest: {}", .0.join("; "))]
    Content(Vec<String>),
}

/// A manifest as it travels: exact bytes and an Ed25519 signature over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// [`SIGNED_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, SIGNED_VERSION>")]
    pub version: u32,
    /// The manifest's JSON exactly as signed.
    pub manifest: String,
    /// Ed25519 signature over those bytes, base64.
    pub signature: String,
}

impl SignedManifest {
    /// Signs the manifest's compact JSON with the controller's key.
    ///
    /// # Errors
    /// The content breaks a rule: what an agent would refuse is never signed.
    pub fn sign(manifest: &Manifest, key: &ring::signature::Ed25519KeyPair) -> Result<Self, ManifestError> {
        let findings = manifest.check();
        if !findings.is_empty() {
            return Err(ManifestError::Content(findings));
        }
        let manifest = serde_json::to_string(manifest).map_err(ManifestError::Json)?;
        let signature = STANDARD.encode(key.sign(manifest.as_bytes()));
        Ok(Self { version: SIGNED_VERSION, manifest, signature })
    }

    /// Verifies the signature with an Ed25519 public key (32 bytes), then reads and checks the content.
    ///
    /// # Errors
    /// Wrong signature, unreadable JSON, or content that breaks a rule (all findings at once).
    pub fn open(&self, public_key: &[u8]) -> Result<Manifest, ManifestError> {
        let signature = STANDARD.decode(&self.signature).map_err(|_not_base64| ManifestError::Signature)?;
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public_key)
            .verify(self.manifest.as_bytes(), &signature)
            .map_err(|_unspecified| ManifestError::Signature)?;
        let manifest: Manifest = serde_json::from_str(&self.manifest).map_err(ManifestError::Json)?;
        let findings = manifest.check();
        if findings.is_empty() { Ok(manifest) } else { Err(ManifestError::Content(findings)) }
    }
}

/// What the controller wants one node to hold, pushed to its agent (`PUT /v1/wanted`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// [`MANIFEST_VERSION`] of the writer.
    #[serde(deserialize_with = "crate::format::version::<_, MANIFEST_VERSION>")]
    pub version: u32,
    /// Counts up with every change of any wanted set; an agent refuses an older one.
    pub generation: u64,
    /// Signed manifests by dataset: the newest last.
    pub datasets: BTreeMap<String, Vec<SignedManifest>>,
    /// Where to fetch from, best first: the predecessor in the chain, those before it, the source, and
    /// last those behind, which matter for repairs.
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
    #[serde(deserialize_with = "crate::format::version::<_, MANIFEST_VERSION>")]
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
