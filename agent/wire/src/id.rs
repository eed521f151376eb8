//! Ids and names as types, each with one door that validates.
//!
//! Names end up in Kubernetes labels, object names and paths, so the doors let through only what is
//! safe in all three: no slash, no dot at either end, no capital letters, bounded length.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A name or id that its door refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {what}: {rule}")]
pub struct IdError {
    /// What was expected, such as `project name`.
    pub what: &'static str,
    /// What was given, cut at 80 characters.
    pub given: String,
    /// What would be accepted.
    pub rule: &'static str,
}

impl IdError {
    fn new(what: &'static str, given: &str, rule: &'static str) -> Self {
        Self { what, given: given.chars().take(80).collect(), rule }
    }
}

fn is_label(text: &str, max: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    is_bounded(text, max, inner)
}

fn is_dotted(text: &str, max: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    is_bounded(text, max, inner) && !text.contains("..")
}

fn is_bounded(text: &str, max: usize, inner: impl Fn(u8) -> bool) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= max
        && text.bytes().all(inner)
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The door.
            ///
            /// # Errors
            /// The text breaks the rule, which the error states.
            pub fn new(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(IdError::new($what, text, $rule)) }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(D::Error::custom)
            }
        }
    };
}

name! {
    /// A Kubernetes node, which is also the server's inventory name.
    NodeName, "node name", "use lower-case letters, digits, `-` and `.`, at most 63 characters",
    |text| is_dotted(text, 63) && !text.contains('_')
}
name! {
    /// A team: one namespace (`team-<team>`), one line of the bill.
    Team, "team name", "use lower-case letters, digits and inner `-`, at most 40 characters",
    |text| is_label(text, 40)
}
name! {
    /// A project: scopes checkpoints, results and caches, and is a line of the bill.
    Project, "project name", "use lower-case letters, digits and inner `-`, at most 40 characters",
    |text| is_label(text, 40)
}
name! {
    /// Who submitted, as the token says.
    Owner, "owner name", "use lower-case letters, digits, `-`, `_` and `.`, at most 63 characters",
    |text| is_dotted(text, 63)
}
name! {
    /// A job's name: for people, need not be unique.
    JobName, "job name", "use lower-case letters, digits and inner `-`, at most 63 characters",
    |text| is_label(text, 63)
}
name! {
    /// The model that a job works for: a line of the bill.
    ModelName, "model name", "use lower-case letters, digits, `-`, `_` and `.`, at most 63 characters",
    |text| is_dotted(text, 63)
}
name! {
    /// A dataset.
    DatasetName, "dataset name", "use lower-case letters, digits and inner `-`, at most 50 characters",
    |text| is_label(text, 50)
}
name! {
    /// A dataset version: the whole BLAKE3 digest of its manifest's content, 64 hex digits.
    DatasetVersion, "dataset version", "use the whole digest, 64 lower-case hex digits",
    |text| text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
name! {
    /// A type of GPU as nodes are labelled with it.
    GpuType, "GPU type", "use lower-case letters, digits, `-`, `_` and `.`, at most 63 characters",
    |text| is_dotted(text, 63)
}
name! {
    /// A pod's uid as the API server gave it.
    PodUid, "pod uid", "use letters, digits and `-`, at most 64 characters",
    |text| !text.is_empty() && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl DatasetVersion {
    /// What a node label can hold: the first 32 hex digits.
    pub fn label(&self) -> &str {
        self.0.get(..32).unwrap_or(&self.0)
    }

    /// What people read: the first 12 hex digits.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

/// A job's id: `j` and ten base-32 digits (Crockford's, lower case), which sort as the ids do.
///
/// The store hands ids out in rising order, never below the clock in milliseconds, so that the ids of
/// a store restored from a backup do not meet those that were handed out after the backup was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl JobId {
    /// The smallest id.
    pub const MIN: Self = Self(0);
    /// The largest id: 50 bits, ten digits.
    pub const MAX: Self = Self((1 << 50) - 1);

    /// The door.
    ///
    /// # Errors
    /// The number needs more than ten digits.
    pub fn new(number: u64) -> Result<Self, IdError> {
        if number > Self::MAX.0 {
            return Err(Self::refuse(&number.to_string()));
        }
        Ok(Self(number))
    }

    /// The number behind the digits.
    pub const fn get(self) -> u64 {
        self.0
    }

    fn refuse(given: &str) -> IdError {
        IdError::new("job id", given, "use `j` and ten digits, as `job list` prints it")
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(11);
        text.push('j');
        for place in (0..10).rev() {
            let digit = usize::try_from((self.0 >> (place * 5)) & 31).unwrap_or(0);
            text.push(DIGITS.get(digit).map_or('0', |byte| char::from(*byte)));
        }
        formatter.pad(&text)
    }
}

impl FromStr for JobId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || Self::refuse(text);
        let digits = text.strip_prefix('j').filter(|digits| digits.len() == 10).ok_or_else(refuse)?;
        digits
            .bytes()
            .try_fold(0_u64, |value, byte| {
                let digit = DIGITS.iter().position(|known| *known == byte)?;
                Some((value << 5) | u64::try_from(digit).ok()?)
            })
            .map(Self)
            .ok_or_else(refuse)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A task's index within its job, from 0; members of a gang are tasks too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskIndex(pub u32);

/// An attempt's number within its task, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptNo(pub u32);

impl fmt::Display for TaskIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for AttemptNo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One attempt of one task: exactly one pod, whose name this is (`<job>-<task>-<attempt>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskIndex,
    /// The attempt.
    pub attempt: AttemptNo,
}

impl fmt::Display for PodKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}-{}", self.job, self.task, self.attempt)
    }
}

impl FromStr for PodKey {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::new("pod of a job", text, "it is named <job>-<task>-<attempt>");
        let number = |part: Option<&str>| -> Result<u32, IdError> {
            let part = part.ok_or_else(refuse)?;
            let value = part.parse().ok().filter(|value: &u32| value.to_string() == part);
            value.ok_or_else(refuse)
        };
        let mut parts = text.splitn(3, '-');
        let job = parts.next().and_then(|part| part.parse().ok()).ok_or_else(refuse)?;
        let task = TaskIndex(number(parts.next())?);
        let attempt = AttemptNo(number(parts.next())?);
        Ok(Self { job, task, attempt })
    }
}

impl Serialize for PodKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PodKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_a_folder_or_break_a_label_are_refused() {
        for wrong in ["", "..", "a/b", "A", "-a", "a-", "a b", "ä", "a_b", &"a".repeat(41)] {
            assert!(Project::new(wrong).is_err(), "{wrong:?} was accepted");
        }
        assert!(Owner::new("ada.lovelace_2").is_ok());
        assert!(Owner::new("a..b").is_err());
        assert!(NodeName::new("ml1.rack-2").is_ok());
        assert!(NodeName::new("ml_1").is_err());
    }

    #[test]
    fn a_version_is_the_whole_digest() {
        let version = DatasetVersion::new(&"0123456789abcdef".repeat(4)).unwrap();
        assert_eq!(version.label().len(), 32);
        assert!(DatasetVersion::new(version.label()).is_err());
        assert!(DatasetVersion::new("latest").is_err());
    }

    #[test]
    fn a_pod_name_says_job_task_and_attempt_in_one_way_only() {
        let key: PodKey = "j0000000011-17-2".parse().unwrap();
        assert_eq!((key.job.get(), key.task, key.attempt), (33, TaskIndex(17), AttemptNo(2)));
        for wrong in
            ["j0000000011-017-2", "j0000000011-1", "j11-1-1", "j0000000011-1-1-1", "j0000000011-+1-1"]
        {
            assert!(wrong.parse::<PodKey>().is_err(), "{wrong:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn job_ids_sort_as_they_are_written(a in 0_u64..1 << 50, b in 0_u64..1 << 50) {
            let (left, right) = (JobId::new(a).unwrap(), JobId::new(b).unwrap());
            prop_assert_eq!(left.to_string().parse::<JobId>().unwrap(), left);
            prop_assert_eq!(left.cmp(&right), left.to_string().cmp(&right.to_string()));
        }
    }
}
