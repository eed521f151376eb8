//! `artifact`: a binary of the lockfile is in place, linked or copied from what was staged.

use super::Found;
use super::attributes::Attributes;
use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use crate::receive;
use std::fs::{self, File};
use std::io;
use std::path::Path;

const OWNER: &str = "0:0";

pub(super) fn check(host: &Host, path: &str, sha256: &str, mode: &str) -> Result<Option<Found>, StepError> {
    let place = host.path(path);
    let is = host.hashes.sha256(&place).map_err(|error| StepError::io("hash", &place, error))?;
    match is {
        None => Ok(Some(Found::new(format!("install {path}")).with_detail(format!("sha256 {sha256}")))),
        Some(is) if is != sha256 => {
            let detail = format!("sha256 {is} -> {sha256}");
            Ok(Some(Found::new(format!("replace {path}")).with_detail(detail)))
        }
        Some(_) => {
            let mut lines = Attributes::resolve(host, mode, OWNER)?.differences(&place)?;
            lines.retain(|line| host.is_server() || !line.starts_with("owner"));
            Ok((!lines.is_empty())
                .then(|| Found::new(format!("change mode or owner of {path}")).with_detail(lines.join("\n"))))
        }
    }
}

pub(super) fn apply(host: &Host, path: &str, sha256: &str, mode: &str) -> Result<(), StepError> {
    let attributes = Attributes::resolve(host, mode, OWNER)?;
    let Some(source) = receive::source(host, sha256)
        .map_err(|error| StepError::io("look for", &host.state("artifacts"), error))?
    else {
        return Err(StepError::new(
            Code::ArtifactRefused,
            format!("find {sha256} among the staged artifacts"),
        ));
    };
    let place = host.path(path);
    if let Some(parent) = place.parent() {
        durable::make_dir(parent, 0o755).map_err(|error| StepError::io("make", parent, error))?;
    }
    install(&source, &place, attributes.mode).map_err(|error| StepError::io("install", &place, error))?;
    if host.is_server() {
        // A link shares its owner with what was staged, whoever that was given to.
        attributes.set(&place)?;
    }
    // A link changes ctime, and with it what is remembered; the content is known, it was just verified.
    host.hashes.note(&place, sha256);
    host.hashes.note(&source, sha256);
    Ok(())
}

/// A hard link where possible (no second copy of 700 MB), a copy on another file system or with another
/// mode. Through a temporary name, so that a running binary is replaced, never written.
fn install(source: &Path, place: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let temp = durable::temp_name(place);
    durable::remove(&temp)?;
    let same_mode = fs::metadata(source)?.permissions().mode() & 0o7777 == mode;
    if !same_mode || fs::hard_link(source, &temp).is_err() {
        let copied = fs::copy(source, &temp)
            .and_then(|_| fs::set_permissions(&temp, fs::Permissions::from_mode(mode)))
            .and_then(|()| File::open(&temp)?.sync_all());
        if let Err(error) = copied {
            // Nothing half-written stays behind, such as on a full disk.
            let _removed = fs::remove_file(&temp);
            return Err(error);
        }
    }
    fs::rename(&temp, place)?;
    // Renaming a link over another name of the same file does nothing and leaves the first name.
    durable::remove(&temp)?;
    durable::sync_parent(place)
}
