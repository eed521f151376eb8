//! References to secrets. An inventory never holds a secret; whoever acts resolves the reference just
//! before use, and neither plans, logs nor findings show the value.

use serde::{Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretRef {
    /// An environment variable of the operator: `env:NAME`.
    Env(String),
    /// A file on the operator's machine: `file:PATH`, where a leading `~/` is the operator's home.
    File(PathBuf),
}

/// The text is not a reference. It is not repeated: it may be the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read a reference to a secret (write `env:NAME` or `file:PATH`, never the secret itself)")]
pub struct NotAReference;

impl FromStr for SecretRef {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        if let Some(name) = text.strip_prefix("env:") {
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            return plain.then(|| Self::Env(name.to_owned())).ok_or(NotAReference);
        }
        match text.strip_prefix("file:") {
            Some(path) if path.starts_with('/') || path.starts_with("~/") => Ok(Self::File(path.into())),
            _ => Err(NotAReference),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_references_are_read_and_errors_do_not_repeat_the_text() {
        assert_eq!("env:TOKEN".parse(), Ok(SecretRef::Env("TOKEN".to_owned())));
        assert_eq!("file:~/key".parse(), Ok(SecretRef::File("~/key".into())));
        for wrong in ["hunter2", "env:", "env:A B", "file:relative", "file:"] {
            let error = wrong.parse::<SecretRef>().unwrap_err();
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
