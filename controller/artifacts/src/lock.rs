//! The committed lockfile: every artifact with its version and where it may come from.
//!
//! Parsing is strict and reports everything that is wrong at once, with line and hint. It reads no other file:
//! the `go.mod` and `go.sum` of a module set are checked when they are used.

use crate::findings::{self, Finding, Findings, line_at};
use crate::hash;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use toml::Spanned;

/// The version of the lockfile that this build reads.
pub const LOCK_VERSION: u32 = 1;

/// The whole lockfile.
#[derive(Debug, Clone)]
pub struct Lock {
    /// The Go toolchain that the pinned module builds were made with, such as `go1.26.8`.
    pub toolchain: String,
    /// Module sets by name.
    pub modules: BTreeMap<String, ModuleSet>,
    /// Artifacts in the order of the file.
    pub artifacts: Vec<Artifact>,
}

/// Go modules that are resolved together: one `go.mod` and its `go.sum`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSet {
    /// Its name in [`Module::set`].
    pub name: String,
    /// Path of the `go.mod`, relative to the lockfile; the `go.sum` lies beside it.
    pub go_mod: String,
    /// SHA-256 (hex) of the `go.sum`.
    pub go_sum_sha256: String,
}

/// One binary or image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// Name by which playbooks ask for it.
    pub name: String,
    /// Version for people and reports.
    pub version: String,
    /// How long making it usually takes on 2 cores with nothing cached.
    #[serde(skip)]
    pub usually: Duration,
    /// Official release, where its sha256 is known.
    pub official: Option<Official>,
    /// Build from published Go modules.
    pub module: Option<Module>,
    /// File of a Debian package.
    pub debian: Option<DebianFile>,
    /// OCI archive made here.
    pub image: Option<Image>,
}

/// An official release, downloaded only with its sha256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Official {
    /// Where it is published.
    pub url: String,
    /// SHA-256 (hex) of the download.
    pub sha256: String,
    /// The file to take, when the download is a gzipped tar.
    #[serde(default)]
    pub member: Option<String>,
}

/// A main package of a published Go module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// The module set whose `go.mod` pins all dependencies.
    pub set: String,
    /// Module path.
    pub path: String,
    /// Module version, as the `go.mod` requires it.
    pub version: String,
    /// Package path of the main package.
    pub package: String,
    /// Linker flags.
    pub ldflags: String,
    /// SHA-256 (hex) of the result by Go toolchain.
    #[serde(default, skip_serializing)]
    pub sha256: BTreeMap<String, String>,
}

/// One file of a Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianFile {
    /// Binary package.
    pub package: String,
    /// Path inside the package, without a leading slash.
    pub member: String,
}

/// An image that is made here, as an OCI archive with one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Reference under which it is imported.
    pub reference: String,
    /// Entrypoint of the image.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default command.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `uid:gid`; numbers, so that `runAsNonRoot` can be checked.
    pub user: String,
    /// The layer is the static busybox of this artifact, with all its applets.
    #[serde(default)]
    pub busybox: Option<String>,
    /// The layer is a minimal Debian with packages.
    #[serde(default)]
    pub debian: Option<DebianLayer>,
}

/// A minimal Debian with packages, made by mmdebstrap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianLayer {
    /// Debian release, such as `bookworm`.
    pub suite: String,
    /// Packages beyond the minimal base.
    pub packages: Vec<String>,
    /// Newer file times become this many seconds since the epoch, so that the bytes depend on packages only.
    pub source_date_epoch: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLock {
    pub(crate) version: Spanned<u32>,
    pub(crate) go: RawGo,
    #[serde(default)]
    pub(crate) modules: Vec<Spanned<ModuleSet>>,
    #[serde(default)]
    pub(crate) artifact: Vec<RawArtifact>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawGo {
    pub(crate) toolchain: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawArtifact {
    pub(crate) name: Spanned<String>,
    pub(crate) version: String,
    pub(crate) usually_s: u64,
    pub(crate) official: Option<Spanned<Official>>,
    pub(crate) module: Option<Spanned<Module>>,
    pub(crate) debian: Option<DebianFile>,
    pub(crate) image: Option<Spanned<Image>>,
}

impl Lock {
    /// Parses a lockfile's text.
    ///
    /// # Errors
    /// Everything that is wrong, each with its line.
    pub fn parse(text: &str) -> Result<Self, Findings> {
        let raw: RawLock = toml::from_str(text).map_err(|error| {
            if let Some(other) = findings::other_version(text) {
                return Findings(vec![other]);
            }
            let offset = error.span().map_or(0, |span| span.start);
            let hint = "the keys are those of the other entries; nothing was read".to_owned();
            Findings(vec![Finding { line: line_at(text, offset), text: error.message().to_owned(), hint }])
        })?;
        findings::check(text, &raw)?;
        let artifacts = raw.artifact.into_iter().map(|raw| Artifact {
            name: raw.name.into_inner(),
            version: raw.version,
            usually: Duration::from_secs(raw.usually_s),
            official: raw.official.map(Spanned::into_inner),
            module: raw.module.map(Spanned::into_inner),
            debian: raw.debian,
            image: raw.image.map(Spanned::into_inner),
        });
        let modules = raw.modules.into_iter().map(Spanned::into_inner).map(|set| (set.name.clone(), set));
        Ok(Self {
            toolchain: raw.go.toolchain.into_inner(),
            modules: modules.collect(),
            artifacts: artifacts.collect(),
        })
    }

    /// The artifact of that name.
    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.name == name)
    }

    /// Digest over everything that decides an artifact's bytes: its entry, its module set, the toolchain, the
    /// binary inside an image. A cached result counts only for the same inputs.
    pub fn inputs(&self, artifact: &Artifact) -> String {
        let set = artifact.module.as_ref().and_then(|module| self.modules.get(&module.set));
        let inner = artifact.image.as_ref().and_then(|image| image.busybox.as_deref());
        let inner = inner.and_then(|name| self.artifact(name)).map(|busybox| self.inputs(busybox));
        let toolchain = artifact.module.as_ref().map(|_| self.toolchain.as_str());
        let go_sum = set.map(|set| set.go_sum_sha256.as_str());
        let inputs = serde_json::json!({ "recipe": 1, "artifact": artifact, "go_sum": go_sum, "go": toolchain, "inner": inner });
        hash::hex_of(inputs.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../artifacts.lock");

    #[test]
    fn the_committed_lock_parses_and_names_what_a_rack_needs() {
        let lock = Lock::parse(GOOD).unwrap();
        for name in
            ["kube-apiserver", "kubelet", "etcd", "containerd", "runc", "cni-bridge", "minio", "python"]
        {
            assert!(lock.artifact(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_committed_go_sums_are_the_pinned_ones() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for set in Lock::parse(GOOD).unwrap().modules.values() {
            let go_sum = std::fs::read(root.join(&set.go_mod).with_file_name("go.sum")).unwrap();
            assert_eq!(hash::hex_of(&go_sum), set.go_sum_sha256, "{}", set.name);
        }
    }

    #[test]
    fn everything_wrong_is_reported_at_once_with_its_line() {
        let text = r#"version = 2
[go]
toolchain = "1.26"
[[artifact]]
name = "a"
version = "1"
usually_s = 1
[[artifact]]
name = "a"
version = "1"
usually_s = 1
[artifact.official]
url = "ftp://x"
sha256 = "12"
[[artifact]]
name = "B"
version = "1"
usually_s = 1
[artifact.module]
set = "none"
path = "p"
version = "v1"
package = "p"
ldflags = ""
"#;
        let findings = Lock::parse(text).unwrap_err();
        let lines: Vec<usize> = findings.0.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [1, 3, 5, 9, 12, 12, 16, 19], "{findings}");
    }

    #[test]
    fn of_a_newer_lock_its_version_is_all_that_is_said() {
        let text = "version = 2\n[go]\ntoolchain = \"go1.26.8\"\ncolour = 1\n";
        let findings = Lock::parse(text).unwrap_err().to_string();
        assert_eq!(findings, "\n  line 1: lock version 2 (help: this build reads version 1)");
    }

    #[test]
    fn an_unknown_key_is_reported_with_its_line() {
        let findings = Lock::parse("version = 1\n[go]\ntoolchain = \"go1.26.8\"\ncolour = 1\n").unwrap_err();
        assert_eq!(findings.0.first().map(|finding| finding.line), Some(4), "{findings}");
        assert!(findings.to_string().contains("colour"), "{findings}");
    }

    #[test]
    fn inputs_change_with_what_decides_the_bytes_and_with_nothing_else() {
        let lock = Lock::parse(GOOD).unwrap();
        let inputs = |lock: &Lock, name| lock.inputs(lock.artifact(name).unwrap());
        let slower = Lock::parse(&GOOD.replace("usually_s = 439", "usually_s = 440")).unwrap();
        assert_eq!(inputs(&lock, "kube-apiserver"), inputs(&slower, "kube-apiserver"));
        let newer = Lock::parse(&GOOD.replace("go1.26.8", "go1.26.9")).unwrap();
        assert_ne!(inputs(&lock, "kube-apiserver"), inputs(&newer, "kube-apiserver"));
        assert_eq!(inputs(&lock, "runc"), inputs(&newer, "runc"));
        let other = Lock::parse(&GOOD.replace("bin/busybox", "usr/bin/busybox")).unwrap();
        assert_ne!(inputs(&lock, "pause"), inputs(&other, "pause"));
    }
}
