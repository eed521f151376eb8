//! `file`: a file has this content, mode and owner, or does not exist.

use super::Found;
use super::attributes::Attributes;
use crate::diff;
use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use std::fs;

/// A file as a step wants it.
pub(super) struct Wanted<'a> {
    pub(super) path: &'a str,
    pub(super) content: Option<&'a str>,
    pub(super) mode: &'a str,
    pub(super) owner: &'a str,
    pub(super) absent: bool,
    pub(super) secret: bool,
}

impl Wanted<'_> {
    pub(super) fn check(&self, host: &Host) -> Result<Option<Found>, StepError> {
        let path = host.path(self.path);
        let is_link = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        let old = durable::read_if_there(&path).map_err(|error| StepError::io("read", &path, error))?;
        if self.absent {
            let there = is_link || old.is_some();
            return Ok(there.then(|| self.removal(old.as_deref())));
        }
        let content = self.content()?;
        if old.as_deref() != Some(content.as_bytes()) {
            let change = diff::text(self.path, old.as_deref(), content, self.secret);
            return Ok(Some(Found::new(change.summary).with_detail(change.detail)));
        }
        if is_link {
            return Ok(Some(Found::new(format!("replace the link {} by a file", self.path))));
        }
        let lines = Attributes::resolve(host, self.mode, self.owner)?.differences(&path)?;
        Ok((!lines.is_empty()).then(|| {
            Found::new(format!("change mode or owner of {}", self.path)).with_detail(lines.join("\n"))
        }))
    }

    fn removal(&self, old: Option<&[u8]>) -> Found {
        let detail = diff::text(self.path, old, "", self.secret).detail;
        Found::new(format!("remove {}", self.path)).with_detail(detail)
    }

    pub(super) fn apply(&self, host: &Host) -> Result<(), StepError> {
        let path = host.path(self.path);
        if self.absent {
            return durable::remove(&path).map_err(|error| StepError::io("remove", &path, error));
        }
        let attributes = Attributes::resolve(host, self.mode, self.owner)?;
        if let Some(parent) = path.parent() {
            durable::make_dir(parent, 0o755).map_err(|error| StepError::io("make", parent, error))?;
        }
        durable::write(&path, self.content()?.as_bytes(), attributes.mode, Some(attributes.owner))
            .map_err(|error| StepError::io("write", &path, error))
    }

    fn content(&self) -> Result<&str, StepError> {
        self.content.ok_or_else(|| {
            StepError::new(Code::BadStep, format!("read the wanted content of {} (none is given)", self.path))
        })
    }
}
