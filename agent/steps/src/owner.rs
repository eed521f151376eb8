//! Owners and modes as steps write them, resolved in the server's own passwd and group files.
//!
//! The agent is static: names are never resolved through libc.

use crate::error::{Code, StepError};
use crate::host::Host;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Numeric user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid() }
    }
}

/// Reads `user:group` (names or numbers).
///
/// # Errors
/// `bad-step` when a name is unknown on this server.
pub(crate) fn resolve(host: &Host, text: &str) -> Result<Owner, StepError> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    Ok(Owner { uid: id(host, "/etc/passwd", user)?, gid: id(host, "/etc/group", group)? })
}

fn id(host: &Host, file: &str, name: &str) -> Result<u32, StepError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let path = host.path(file);
    let text = std::fs::read_to_string(&path).map_err(|error| StepError::io("read", &path, error))?;
    lookup(&text, name).ok_or_else(|| {
        StepError::new(Code::BadStep, format!("find {name:?} in {file} (a user step must come before)"))
    })
}

/// The number in the third field of the line whose first field is `name`.
fn lookup(text: &str, name: &str) -> Option<u32> {
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
}

/// Reads an octal mode such as `0644`.
pub(crate) fn mode(text: &str) -> Result<u32, StepError> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| StepError::new(Code::BadStep, format!("read {text:?} as a mode (write it like 0644)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_whole_field() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nrootless:x:77:77::/:/bin/false\n";
        assert_eq!(lookup(passwd, "rootless"), Some(77));
        assert_eq!(lookup(passwd, "roo"), None);
    }

    #[test]
    fn modes_are_octal_and_bounded() {
        assert_eq!(mode("0755").unwrap(), 0o755);
        for bad in ["", "9", "77777", "rwx"] {
            assert_eq!(mode(bad).unwrap_err().code, Code::BadStep, "{bad}");
        }
    }
}
