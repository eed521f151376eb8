//! What can go wrong while artifacts are had; texts read after "failed to".

use crate::findings::Findings;
use rackwright_wire::format::Other;
use std::io;
use std::path::PathBuf;

/// A failed operation on artifacts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written or renamed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The lockfile is wrong.
    #[error("read the artifact lock {}:{findings}", path.display())]
    Lock {
        /// The lockfile.
        path: PathBuf,
        /// Everything that is wrong with it.
        findings: Findings,
    },
    /// Names that the lock does not have.
    #[error("find {} in the artifact lock; it has {known}", names.join(", "))]
    Unknown {
        /// The names that were asked for.
        names: Vec<String>,
        /// The names that exist.
        known: String,
    },
    /// The cache's index is damaged.
    #[error("read the artifact index {}; remove the file, and everything is fetched anew", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<toml::de::Error>,
    },
    /// The index's version is not ours.
    #[error("read the artifact index {}", path.display())]
    IndexVersion {
        /// The index.
        path: PathBuf,
        /// Its version.
        #[source]
        other: Other,
    },
    /// The offline bundle cannot be used.
    #[error("read the artifact bundle {}: {problem}", path.display())]
    Bundle {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No source gave the artifact.
    #[error("get {name} {version} from any source:{}", list(tried))]
    NoSource {
        /// The artifact.
        name: String,
        /// Its version.
        version: String,
        /// Each source with its reason, in the order of trying.
        tried: Vec<(&'static str, String)>,
    },
    /// A blocking task was cancelled, at the end of the program.
    #[error("finish work on artifacts, because the program ends")]
    Cancelled,
}

/// Why one source did not give an artifact; the next source is tried.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file could not be read, written or renamed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The server did not answer, or not to the end.
    #[error("download {url}")]
    Download {
        /// From where.
        url: String,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// The server's host did not answer earlier in this run.
    #[error("reach {host}; it did not answer a moment ago")]
    Unreachable {
        /// The host.
        host: String,
    },
    /// The server answered with something else than the file.
    #[error("download {url}: the server answered {status}")]
    Status {
        /// From where.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The bytes are not the pinned ones.
    #[error("accept {what}: its sha256 is {got}, the lock pins {expected}")]
    WrongHash {
        /// What was hashed.
        what: String,
        /// The pinned sha256.
        expected: String,
        /// The sha256 of the bytes.
        got: String,
    },
    /// The committed `go.sum` is not the pinned one.
    #[error("use {}: its sha256 is {got}, the lock pins {expected}", path.display())]
    GoSum {
        /// The `go.sum`.
        path: PathBuf,
        /// The pinned sha256.
        expected: String,
        /// The sha256 of the file.
        got: String,
    },
    /// A program is not installed.
    #[error("run {program}, which is not installed; {help}")]
    NoProgram {
        /// The program.
        program: String,
        /// How to get it.
        help: &'static str,
    },
    /// A program failed.
    #[error("run {program}: {status}{tail}")]
    Program {
        /// Program and arguments.
        program: String,
        /// How it ended.
        status: String,
        /// Its last lines on stderr, each indented on a line of its own.
        tail: String,
    },
    /// The source has no such file.
    #[error("find {member} in {container}")]
    NoMember {
        /// The file that was looked for.
        member: String,
        /// Where.
        container: String,
    },
    /// A blocking task was cancelled, at the end of the program.
    #[error("finish, because the program ends")]
    Cancelled,
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn list(tried: &[(&'static str, String)]) -> String {
    indented(tried.iter().map(|(source, reason)| format!("{source}: failed to {reason}")), 2)
}

/// Lines, each on a line of its own after what stands before.
pub(crate) fn indented(lines: impl IntoIterator<Item = impl AsRef<str>>, spaces: usize) -> String {
    let mut text = String::new();
    for line in lines {
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', spaces));
        text.push_str(line.as_ref());
    }
    text
}

/// Turns an [`io::Error`] into the caller's error with what was being done.
pub(crate) trait Doing<T> {
    /// For operations on the cache.
    fn doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
    /// For operations of one source.
    fn source_doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, SourceError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing, path: path.into(), source })
    }

    fn source_doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, SourceError> {
        self.map_err(|source| SourceError::Io { doing, path: path.into(), source })
    }
}
