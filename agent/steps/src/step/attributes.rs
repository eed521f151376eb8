//! Mode and owner of a path: compared and set.

use crate::error::StepError;
use crate::host::Host;
use crate::owner::{self, Owner};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// What a path's mode and owner must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) owner: Owner,
}

impl Attributes {
    /// # Errors
    /// `bad-step` for an unreadable mode or an unknown name.
    pub(super) fn resolve(host: &Host, mode: &str, owner: &str) -> Result<Self, StepError> {
        Ok(Self { mode: owner::mode(mode)?, owner: owner::resolve(host, owner)? })
    }

    /// What differs at `path`, which exists, one difference a line.
    pub(super) fn differences(self, path: &Path) -> Result<Vec<String>, StepError> {
        let metadata = fs::symlink_metadata(path).map_err(|error| StepError::io("look at", path, error))?;
        let (mode, owner) = (metadata.permissions().mode() & 0o7777, Owner::of(&metadata));
        let mut lines = Vec::new();
        if mode != self.mode {
            lines.push(format!("mode {mode:04o} -> {:04o}", self.mode));
        }
        if owner != self.owner {
            let (is, wanted) = (owner, self.owner);
            lines.push(format!("owner {}:{} -> {}:{}", is.uid, is.gid, wanted.uid, wanted.gid));
        }
        Ok(lines)
    }

    /// [`Self::differences`] of a file that root writes for all to read; none below a folder, where it is whoever
    /// runs the test that writes.
    pub(super) fn of_plain_file(host: &Host, path: &Path) -> Result<Vec<String>, StepError> {
        if host.is_server() { Self::resolve(host, "0644", "0:0")?.differences(path) } else { Ok(Vec::new()) }
    }

    pub(super) fn set(self, path: &Path) -> Result<(), StepError> {
        lchown(path, Some(self.owner.uid), Some(self.owner.gid))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(self.mode)))
            .map_err(|error| StepError::io("set mode and owner of", path, error))
    }
}
