//! `directory`: a folder exists, with this mode and owner.

use super::Found;
use super::attributes::Attributes;
use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;

pub(super) fn check(host: &Host, path: &str, mode: &str, owner: &str) -> Result<Option<Found>, StepError> {
    let place = host.path(path);
    if !place.exists() {
        return Ok(Some(Found::new(format!("make {path}"))));
    }
    if !place.is_dir() {
        return Err(StepError::new(Code::BadStep, format!("use {path} as a folder (it is a file)")));
    }
    let lines = Attributes::resolve(host, mode, owner)?.differences(&place)?;
    Ok((!lines.is_empty())
        .then(|| Found::new(format!("change mode or owner of {path}")).with_detail(lines.join("\n"))))
}

pub(super) fn apply(host: &Host, path: &str, mode: &str, owner: &str) -> Result<(), StepError> {
    let place = host.path(path);
    let attributes = Attributes::resolve(host, mode, owner)?;
    // Parents that a step did not ask for are made readable; the folder itself gets what was asked.
    durable::make_dir(&place, 0o755).map_err(|error| StepError::io("make", &place, error))?;
    attributes.set(&place)
}
