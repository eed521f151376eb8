//! Why a step failed: a stable code for people and programs, what was tried, the cause, and evidence.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Evidence is cut to its last so many bytes: the end of a log says why.
const EVIDENCE_LIMIT: usize = 8 * 1024;

/// Stable codes of the error catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// No space is left on the device.
    DiskFull,
    /// The file system or kernel setting is read-only.
    ReadOnly,
    /// The agent may not do this.
    Permission,
    /// Another input or output error.
    Io,
    /// The package source could not be reached.
    PackageNetwork,
    /// No source has this package.
    PackageUnknown,
    /// Another package manager holds the lock.
    PackageLocked,
    /// The package manager failed otherwise.
    PackageFailed,
    /// A unit did not reach its state.
    UnitFailed,
    /// The controller will not deliver an artifact, or delivered a wrong one.
    ArtifactRefused,
    /// An image could not be imported.
    ImageFailed,
    /// The controller will not sign, or signed something else.
    CertificateRefused,
    /// Nobody answered in time.
    ControllerAbsent,
    /// A state was not reached in time.
    WaitTimeout,
    /// The controller says that the state will not be reached.
    WaitRefused,
    /// A command of a step failed.
    CommandFailed,
    /// A command of a step took too long.
    CommandTimeout,
    /// Apply ended well, and yet the second check finds a difference.
    StillDiffers,
    /// The kernel has no such setting or refuses the value.
    SysctlRefused,
    /// The kernel has no such module.
    ModuleMissing,
    /// A mount failed.
    MountFailed,
    /// A user could not be made.
    UserFailed,
    /// The step itself makes no sense on this server.
    BadStep,
    /// A step that this one needs failed.
    Skipped,
}

impl Code {
    /// The code as it stands in events and in the docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DiskFull => "disk-full",
            Self::ReadOnly => "read-only",
            Self::Permission => "permission",
            Self::Io => "io",
            Self::PackageNetwork => "package-network",
            Self::PackageUnknown => "package-unknown",
            Self::PackageLocked => "package-locked",
            Self::PackageFailed => "package-failed",
            Self::UnitFailed => "unit-failed",
            Self::ArtifactRefused => "artifact-refused",
            Self::ImageFailed => "image-failed",
            Self::CertificateRefused => "certificate-refused",
            Self::ControllerAbsent => "controller-absent",
            Self::WaitTimeout => "wait-timeout",
            Self::WaitRefused => "wait-refused",
            Self::CommandFailed => "command-failed",
            Self::CommandTimeout => "command-timeout",
            Self::StillDiffers => "still-differs",
            Self::SysctlRefused => "sysctl-refused",
            Self::ModuleMissing => "module-missing",
            Self::MountFailed => "mount-failed",
            Self::UserFailed => "user-failed",
            Self::BadStep => "bad-step",
            Self::Skipped => "skipped",
        }
    }

    /// The code of an input or output error that another process of this server named.
    pub fn of_io_name(name: &str) -> Option<Self> {
        [Self::DiskFull, Self::ReadOnly, Self::Permission, Self::Io]
            .into_iter()
            .find(|of| of.as_str() == name)
    }

    /// The code that fits an input or output error.
    pub fn of_io(error: &io::Error) -> Self {
        // Only the kinds with a code of their own matter; the rest is "io" whatever it is.
        if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
            Self::DiskFull
        } else if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
            Self::ReadOnly
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission
        } else {
            Self::Io
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed operation of a step; the text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StepError {
    /// Stable code.
    pub code: Code,
    what: String,
    /// Log lines or command output that explain it, at most 8 KiB.
    pub evidence: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StepError {
    /// An error of this code; `what` reads after "failed to".
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), evidence: String::new(), source: None }
    }

    /// An input or output error while doing `what` to `path`; the code follows from its kind.
    pub fn io(what: &str, path: &Path, error: io::Error) -> Self {
        Self::new(Code::of_io(&error), format!("{what} {}", path.display())).because(error)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(cause));
        self
    }

    /// The same error with the end of a log as evidence.
    #[must_use]
    pub fn with_evidence(mut self, evidence: &str) -> Self {
        tail(evidence, EVIDENCE_LIMIT).clone_into(&mut self.evidence);
        self
    }

    /// The error and its causes, one a line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes, one a line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push('\n');
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The last `limit` bytes, from the next line or character boundary on.
fn tail(text: &str, limit: usize) -> &str {
    let text = text.trim_end();
    let start = text.len().saturating_sub(limit);
    let boundary = (start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let cut = text.get(boundary..).unwrap_or_default();
    if start == 0 { cut } else { cut.split_once('\n').map_or(cut, |(_, rest)| rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_code_of_its_own() {
        let error = StepError::io("write", Path::new("/x"), io::Error::from_raw_os_error(28));
        assert_eq!((error.code, error.to_string()), (Code::DiskFull, "write /x".to_owned()));
        assert!(error.chain().contains("No space left"), "{}", error.chain());
    }

    #[test]
    fn evidence_keeps_whole_lines_of_the_end() {
        let log = format!("{}\nlast line", "é".repeat(10_000));
        let error = StepError::new(Code::Io, "x").with_evidence(&log);
        assert_eq!(error.evidence, "last line");
    }
}
