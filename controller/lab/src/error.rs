//! Why something about the lab failed. Texts read after "failed to"; causes stand in `source()`.

use rackwright_wire::format::Other;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The wanted lab contradicts itself or the machine; every fault at once.
    #[error("accept the lab: {}", faults.join("; "))]
    Spec {
        /// What is wrong, one fault a line.
        faults: Vec<String>,
    },
    /// Bridges, mounts and control groups need root.
    #[error("change the machine's network, mounts and control groups without root")]
    NotRoot,
    /// A program could not be started.
    #[error("start `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A program failed.
    #[error("run `{command}` ({status}): {said}")]
    Tool {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The record is not one that this version reads.
    #[error("read line {line} of the record {}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// Another version of this program wrote the record: only that one knows what to do with it.
    #[error("read the record {}", path.display())]
    RecordVersion {
        /// The record.
        path: PathBuf,
        /// Its version.
        #[source]
        other: Other,
    },
    /// Another process is changing the same lab.
    #[error("get hold of {} within {waited_s} s: another rackwright is at work on it", path.display())]
    Busy {
        /// The lock's file.
        path: PathBuf,
        /// How long it was waited for, in seconds.
        waited_s: u64,
    },
    /// Something did not happen within its time.
    #[error("see {what} within {waited_s} s{detail}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        waited_s: u64,
        /// What is known about why, with its own separator.
        detail: String,
    },
    /// No lab of this name is up.
    #[error("find a lab named {name}")]
    NoLab {
        /// The lab.
        name: String,
    },
    /// The lab has no such server.
    #[error("find a server named {server} in the lab {lab} (it has {has})")]
    NoServer {
        /// The lab.
        lab: String,
        /// The server asked for.
        server: String,
        /// Those that exist.
        has: String,
    },
    /// No host key of the server was noted when it was made.
    #[error("find the host key of {server} in {}", path.display())]
    NoHostKey {
        /// The server.
        server: String,
        /// Where they are noted.
        path: PathBuf,
    },
    /// The server does not run, but must for this.
    #[error("reach into {server}: it is not running")]
    Stopped {
        /// The server.
        server: String,
    },
    /// The server runs already.
    #[error("start {server}: it is running")]
    Running {
        /// The server.
        server: String,
    },
    /// A lab of this name is up with other servers.
    #[error("raise {name}: it is up with other servers or sizes")]
    Differs {
        /// The lab.
        name: String,
    },
}

/// For `map_err` on file operations: what was tried, and where.
pub(crate) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LabError {
    move |cause| LabError::File { action, path: path.to_owned(), cause }
}
