//! What files will be once the rest of a request is applied.
//!
//! A check runs before anything is applied, yet has to say which units will be restarted: those whose
//! files are going to be other than when they were started. A file that drifted and is going to be put
//! back is not one of them.

use crate::hashes::hash_bytes;
use rackwright_wire::step::{Step, StepKind};
use std::collections::BTreeMap;

/// Path to what it will be.
#[derive(Debug, Default)]
pub struct Expected {
    files: BTreeMap<String, Content>,
}

/// What a file will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// It has this SHA-256 (hex).
    Sha256(String),
    /// It is not there.
    Absent,
    /// It will be made anew, with content that nobody knows yet.
    Anew,
}

impl Expected {
    /// From all steps of a request, and from those among them that differ.
    pub fn of(steps: &[Step], differs: impl Fn(&Step) -> bool) -> Self {
        let mut expected = Self::default();
        for step in steps {
            expected.add(step, differs(step));
        }
        expected
    }

    fn add(&mut self, step: &Step, differs: bool) {
        let kind = &step.kind;
        if let StepKind::File { path, absent: true, .. } = kind {
            self.files.insert(path.clone(), Content::Absent);
        } else if let StepKind::File { path, content: Some(content), .. } = kind {
            self.files.insert(path.clone(), Content::Sha256(hash_bytes(content.as_bytes())));
        } else if let StepKind::Artifact { path, sha256, .. } = kind {
            self.files.insert(path.clone(), Content::Sha256(sha256.clone()));
        } else if let StepKind::Certificate(wanted) = kind
            && differs
        {
            self.files.insert(wanted.cert.clone(), Content::Anew);
        } else if let StepKind::KeyPair { key, public, .. } = kind
            && differs
        {
            self.files.insert(key.clone(), Content::Anew);
            self.files.insert(public.clone(), Content::Anew);
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Content> {
        self.files.get(path)
    }
}
