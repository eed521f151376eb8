//! The version that every format of ours carries, checked by whatever reads it.
//!
//! The check is part of each type, so no reader can forget it: `version` is always written first, and a
//! text of another version is refused there, before the reader stumbles over a key it does not know.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Reads a `version` field that must be `READS`, for `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// `version 2, this build reads 1`, or it is no number.
pub fn version<'de, D: Deserializer<'de>, const READS: u32>(deserializer: D) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    if found == READS { Ok(found) } else { Err(D::Error::custom(Other { found, reads: READS })) }
}

/// A text of another version; reads after "failed to read … of".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("version {found}, this build reads {reads}")]
pub struct Other {
    /// The version of the text.
    pub found: u32,
    /// The version that this build reads.
    pub reads: u32,
}

/// Tells a line of another version from a line that a crash cut off or spoilt: `Some` for a JSON object
/// with a version, whatever else is in it, that is not the one this build reads.
pub fn other(text: &str, reads: u32) -> Option<Other> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let found = u32::try_from(object.get("version")?.as_u64()?).ok()?;
    (found != reads).then_some(Other { found, reads })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = 3;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        #[serde(deserialize_with = "version::<_, OURS>")]
        version: u32,
    }

    #[test]
    fn another_version_is_what_the_reader_hears_of_first() {
        assert_eq!(serde_json::from_str::<Thing>(r#"{"version": 3}"#).unwrap().version, OURS);
        for found in [0, 2, 4] {
            let error = serde_json::from_str::<Thing>(&format!(r#"{{"version": {found}, "new": 1}}"#));
            let text = error.unwrap_err().to_string();
            assert!(text.starts_with(&format!("version {found}, this build reads 3")), "{text}");
        }
        assert!(serde_json::from_str::<Thing>("{}").is_err(), "a text without a version is of none");
    }

    #[test]
    fn a_torn_or_spoilt_line_is_of_no_other_version() {
        assert_eq!(other(r#"{"version": 4, "new": 1}"#, OURS), Some(Other { found: 4, reads: OURS }));
        for text in [r#"{"version": 3, "new": 1}"#, r#"{"version": 4, "ne"#, "\0\0", "[4]", ""] {
            assert_eq!(other(text, OURS), None, "{text:?}");
        }
    }
}
