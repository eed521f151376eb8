//! What can go wrong in the data plane. Texts read after "failed to"; causes only in `source()`.

use rackwright_wire::manifest::ManifestError;
use std::io;
use std::path::PathBuf;

/// A boxed cause.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failed operation of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("read the configuration {}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file system operation failed.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried, such as `write`.
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too little space: nothing was written.
    #[error("find room for {needed} bytes: {free} are free, of which {reserve} stay reserved")]
    Full {
        /// Bytes that would have to be written.
        needed: u64,
        /// Bytes free now.
        free: u64,
        /// Bytes that data never takes.
        reserve: u64,
    },
    /// Bytes do not hash to what they should.
    #[error("verify object {object}: chunks {chunks:?} do not hash")]
    Damaged {
        /// BLAKE3 (hex) of the object.
        object: String,
        /// Which chunks; empty when all do and only the whole does not.
        chunks: Vec<u64>,
    },
    /// The request conflicts with what is here: older generation, other content, unknown name.
    #[error("accept {what}: {why}")]
    Refused {
        /// What was offered.
        what: String,
        /// Why not.
        why: String,
    },
    /// The manifest was refused.
    #[error("accept a manifest of {dataset:?}")]
    Manifest {
        /// Dataset name as sent.
        dataset: String,
        /// Why.
        source: ManifestError,
    },
    /// Something that must be here first is not.
    #[error("accept {what}: {missing} is not here whole")]
    Incomplete {
        /// What was offered.
        what: String,
        /// What it needs.
        missing: String,
    },
    /// It is not here.
    #[error("find {0}")]
    Missing(String),
    /// No peer could give a chunk.
    #[error("fetch chunk {chunk} of object {object} from any of {peers} peers: {last}")]
    NoPeer {
        /// BLAKE3 (hex) of the object.
        object: String,
        /// Chunk index.
        chunk: u64,
        /// How many peers were tried.
        peers: usize,
        /// What the last one answered.
        last: String,
    },
    /// Talking to a peer failed.
    #[error("{what} {peer}")]
    Peer {
        /// What was tried, such as `fetch from`.
        what: &'static str,
        /// The peer's name.
        peer: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading a source failed: nothing was published, nothing deleted.
    #[error("{what}")]
    Source {
        /// What was tried.
        what: String,
        /// Why, when another layer knows.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// TLS or the listener could not be set up.
    #[error("{what}")]
    Setup {
        /// What was tried.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// For `map_err` on file system calls.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }

    /// For `map_err` on rustix calls.
    pub(crate) fn os(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { op, path, source: errno.into() }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), why: why.into() }
    }

    pub(crate) fn source_text(what: impl Into<String>) -> Self {
        Self::Source { what: what.into(), source: None }
    }

    pub(crate) fn source_cause(what: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self::Source { what: what.into(), source: Some(cause.into()) }
    }

    pub(crate) fn setup(what: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self::Setup { what: what.into(), source: cause.into() }
    }

    /// The file system has no room left.
    pub fn is_full(&self) -> bool {
        let io_full = matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull);
        io_full || matches!(self, Self::Full { .. })
    }

    /// The failure with all its causes on one line: `failed to …: …`.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// `failed to <error>: <cause>: <cause>`.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("failed to {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
