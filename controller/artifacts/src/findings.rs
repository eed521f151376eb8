//! What is wrong with a lockfile beyond its grammar, all at once, each with its line.

use crate::hash;
use crate::lock::{Image, LOCK_VERSION, ModuleSet, RawArtifact, RawLock};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use toml::Spanned;

/// One thing that is wrong with a lockfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// Everything that is wrong with a lockfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            write!(f, "\n  line {}: {}", finding.line, finding.text)?;
            if !finding.hint.is_empty() {
                write!(f, " (help: {})", finding.hint)?;
            }
        }
        Ok(())
    }
}

/// Checks a lockfile that follows the grammar.
pub(crate) fn check(text: &str, raw: &RawLock) -> Result<(), Findings> {
    let mut check = Check { text, findings: Vec::new() };
    check.run(raw);
    if check.findings.is_empty() { Ok(()) } else { Err(Findings(check.findings)) }
}

/// The finding for a lockfile of another version, whose grammar may be another too.
pub(crate) fn other_version(text: &str) -> Option<Finding> {
    #[derive(Deserialize)]
    struct Head {
        version: Spanned<u32>,
    }
    let version = toml::from_str::<Head>(text).ok()?.version;
    let hint = format!("this build reads version {LOCK_VERSION}");
    let line = line_at(text, version.span().start);
    (*version.get_ref() != LOCK_VERSION).then(|| Finding {
        line,
        text: format!("lock version {}", version.get_ref()),
        hint,
    })
}

/// Collects what is wrong beyond the grammar.
struct Check<'a> {
    text: &'a str,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn run(&mut self, raw: &RawLock) {
        let version = *raw.version.get_ref();
        if version != LOCK_VERSION {
            let hint = format!("this build reads version {LOCK_VERSION}");
            self.find(raw.version.span().start, format!("lock version {version}"), hint);
        }
        if !raw.go.toolchain.get_ref().starts_with("go1.") {
            let text = format!("'{}' is no Go toolchain", raw.go.toolchain.get_ref());
            self.find(raw.go.toolchain.span().start, text, "such as \"go1.26.8\"");
        }
        let mut sets = BTreeSet::new();
        for set in &raw.modules {
            self.module_set(set, &mut sets);
        }
        let known: BTreeSet<&str> =
            raw.artifact.iter().map(|artifact| artifact.name.get_ref().as_str()).collect();
        let mut seen = BTreeSet::new();
        for artifact in &raw.artifact {
            let name = artifact.name.get_ref();
            if !seen.insert(name.as_str()) {
                self.find(
                    artifact.name.span().start,
                    format!("artifact '{name}' stands twice"),
                    "remove one of them",
                );
            }
            self.artifact(artifact, &sets, &known);
        }
    }

    fn module_set<'a>(&mut self, set: &'a Spanned<ModuleSet>, sets: &mut BTreeSet<&'a str>) {
        let at = set.span().start;
        let set = set.get_ref();
        if !sets.insert(&set.name) {
            self.find(at, format!("module set '{}' stands twice", set.name), "remove one of them");
        }
        if set.go_mod.starts_with('/') || set.go_mod.split('/').any(|part| part == "..") {
            self.find(at, format!("go_mod '{}' leaves the lockfile's folder", set.go_mod), "a path below it");
        }
        self.sha256(at, "go_sum_sha256", &set.go_sum_sha256);
    }

    fn artifact(&mut self, raw: &RawArtifact, sets: &BTreeSet<&str>, known: &BTreeSet<&str>) {
        let at = raw.name.span().start;
        let name = raw.name.get_ref();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            self.find(at, format!("'{name}' is no artifact name"), "lower-case letters, digits and dashes");
        }
        if raw.official.is_none() && raw.module.is_none() && raw.debian.is_none() && raw.image.is_none() {
            let hint = "add [artifact.official], [artifact.module], [artifact.debian] or [artifact.image]";
            self.find(at, format!("artifact '{name}' has no source"), hint);
        }
        if let Some(official) = &raw.official {
            let at = official.span().start;
            let official = official.get_ref();
            self.sha256(at, "sha256", &official.sha256);
            if !official.url.starts_with("https://") && !official.url.starts_with("http://") {
                self.find(at, format!("'{}' is no http address", official.url), "such as https://…");
            }
        }
        if let Some(module) = &raw.module {
            let at = module.span().start;
            let module = module.get_ref();
            if !sets.contains(module.set.as_str()) {
                self.find(at, format!("module set '{}' does not exist", module.set), "add it as [[modules]]");
            }
            for (toolchain, sha256) in &module.sha256 {
                self.sha256(at, toolchain, sha256);
            }
        }
        if let Some(image) = &raw.image {
            self.image(image, known);
        }
    }

    fn image(&mut self, image: &Spanned<Image>, known: &BTreeSet<&str>) {
        let at = image.span().start;
        let image = image.get_ref();
        match (&image.busybox, &image.debian) {
            (Some(_), Some(_)) | (None, None) => {
                let text = format!("image '{}' needs exactly one layer", image.reference);
                self.find(at, text, "either busybox = \"…\" or [artifact.image.debian]");
            }
            (Some(name), None) if !known.contains(name.as_str()) => {
                self.find(at, format!("artifact '{name}' does not exist"), "name the static busybox's entry");
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        let numeric = image
            .user
            .split_once(':')
            .is_some_and(|(user, group)| user.parse::<u32>().is_ok() && group.parse::<u32>().is_ok());
        if !numeric {
            self.find(at, format!("user '{}' is not uid:gid", image.user), "such as \"65534:65534\"");
        }
    }

    fn sha256(&mut self, at: usize, key: &str, value: &str) {
        if !hash::is_sha256(value) {
            self.find(at, format!("{key} '{value}' is no sha256"), "64 lower-case hex digits");
        }
    }

    fn find(&mut self, offset: usize, text: String, hint: impl Into<String>) {
        self.findings.push(Finding { line: line_at(self.text, offset), text, hint: hint.into() });
    }
}

/// The line, from 1, of a byte offset.
pub(crate) fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
