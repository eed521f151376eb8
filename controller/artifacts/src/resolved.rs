//! What was used: the machine-local side of the lock, one record an artifact.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// An artifact that is in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resolved {
    /// Name in the lock.
    pub name: String,
    /// Version in the lock.
    pub version: String,
    /// SHA-256 (hex) of the file.
    pub sha256: String,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// The file, read-only, in the cache.
    pub path: PathBuf,
    /// Reference of an image; none for binaries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Where it came from.
    pub source: Source,
    /// Whether it came through an offline bundle.
    pub bundled: bool,
}

/// Where an artifact came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// The official release.
    Official {
        /// Download address.
        url: String,
        /// SHA-256 (hex) of the download.
        sha256: String,
    },
    /// Built from published Go modules.
    Module {
        /// Module path.
        module: String,
        /// Module version.
        version: String,
        /// Main package.
        package: String,
        /// Linker flags.
        ldflags: String,
        /// Go toolchain that built it.
        go: String,
        /// SHA-256 (hex) of the `go.sum` that all dependencies were checked with.
        go_sum_sha256: String,
        /// Whether the result is the one that the lock pins for this toolchain; false where it pins none.
        reproduced: bool,
    },
    /// A file of a Debian package.
    Debian {
        /// Package name.
        package: String,
        /// Exact package version.
        version: String,
        /// SHA-256 (hex) of the package file.
        sha256: String,
    },
    /// An image made here.
    Image {
        /// SHA-256 (hex) of the one layer, uncompressed.
        layer_sha256: String,
        /// What is in it: packages with versions, or the artifact with its sha256.
        contents: Vec<String>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Official { url, .. } => write!(f, "official release {url}"),
            Self::Module { module, version, go, reproduced, .. } => {
                let how = if *reproduced { "pinned bytes" } else { "bytes not pinned" };
                write!(f, "module {module}@{version}, {go}, {how}")
            }
            Self::Debian { package, version, .. } => write!(f, "Debian package {package} {version}"),
            Self::Image { contents, .. } => match contents.as_slice() {
                [only] => write!(f, "made here of {only}"),
                many => write!(f, "made here of {} Debian packages", many.len()),
            },
        }
    }
}

/// A record of the index: [`Resolved`] with the inputs it counts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) version: String,
    /// [`crate::Lock::inputs`] at the time.
    pub(crate) inputs: String,
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    /// The file's modification time when its content was last hashed: while it stays, so does the content.
    pub(crate) hashed_mtime_ns: i64,
    #[serde(default)]
    pub(crate) bundled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    pub(crate) source: Source,
}

impl Record {
    pub(crate) fn at(&self, path: PathBuf) -> Resolved {
        Resolved {
            name: self.name.clone(),
            version: self.version.clone(),
            sha256: self.sha256.clone(),
            size_bytes: self.size_bytes,
            path,
            reference: self.reference.clone(),
            source: self.source.clone(),
            bundled: self.bundled,
        }
    }
}
