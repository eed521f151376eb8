//! What to keep before a step changes anything, so that it can be undone: files by content, packages
//! that were absent, units' states. Goes into the journal's `applying` line, before the change.

use super::{module, package, slice, sysctl, unit};
use crate::durable;
use crate::error::StepError;
use crate::hashes::hash_file;
use crate::host::Host;
use crate::owner::Owner;
use rackwright_wire::step::{Step, StepKind};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Bigger files are kept by a hard link instead of a copy.
const COPY_LIMIT: u64 = 1024 * 1024;

/// Saves what the step is about to replace and says where; `None` for kinds that replace nothing.
///
/// # Errors
/// When a previous content cannot be saved: then nothing may be changed.
pub fn before(host: &Host, step: &Step) -> Result<Option<Value>, StepError> {
    let files: Vec<String> = match &step.kind {
        StepKind::Package { names } => {
            return Ok(Some(json!({ "absent_packages": package::missing(host, names)? })));
        }
        StepKind::Unit { name, .. } => {
            let state = host.units.state(name)?;
            let files = saved(host, &unit::Wanted::of(&step.kind)?.paths(host)?)?;
            return Ok(Some(json!({ "unit": name, "active": state.active, "files": files })));
        }
        StepKind::Directory { path, .. } => {
            return Ok(Some(json!({ "path": path, "absent": !host.path(path).exists() })));
        }
        StepKind::File { path, .. } | StepKind::Artifact { path, .. } => vec![path.clone()],
        StepKind::Sysctl { file, .. } => vec![sysctl::path(file)],
        StepKind::Module { .. } => vec![module::path(&step.id)],
        StepKind::Mount { .. } => vec!["/etc/fstab".to_owned()],
        StepKind::Certificate(wanted) => {
            vec![wanted.key.clone(), wanted.cert.clone(), wanted.ca_cert.clone()]
        }
        StepKind::KeyPair { key, public, .. } => vec![key.clone(), public.clone()],
        StepKind::Slice { name, memory_bytes, cpu_weight } => {
            slice::as_unit(name, *memory_bytes, *cpu_weight).paths(host)?
        }
        StepKind::Image { .. } | StepKind::User { .. } | StepKind::Wait { .. } | StepKind::Command { .. } => {
            return Ok(None);
        }
    };
    Ok(Some(json!({ "files": saved(host, &files)? })))
}

fn saved(host: &Host, paths: &[String]) -> Result<Vec<Value>, StepError> {
    paths.iter().map(|path| save(host, path)).collect()
}

fn save(host: &Host, path: &str) -> Result<Value, StepError> {
    let place = host.path(path);
    let Ok(metadata) = fs::metadata(&place) else {
        return Ok(json!({ "path": path, "absent": true }));
    };
    let folder = host.state("journal/before");
    durable::make_dir(&folder, 0o700).map_err(|error| StepError::io("make", &folder, error))?;
    let kept = if metadata.len() <= COPY_LIMIT { copy(&folder, &place) } else { link(&folder, &place) };
    let kept = kept.map_err(|error| StepError::io("keep the previous content of", &place, error))?;
    let owner = Owner::of(&metadata);
    Ok(json!({
        "path": path,
        "kept": kept,
        "mode": format!("{:04o}", metadata.permissions().mode() & 0o7777),
        "owner": format!("{}:{}", owner.uid, owner.gid),
    }))
}

/// By content, under its BLAKE3; only root reads it, whoever could read the original.
fn copy(folder: &Path, place: &Path) -> std::io::Result<String> {
    let content = fs::read(place)?;
    let name = blake3::hash(&content).to_hex().to_string();
    let kept = folder.join(&name);
    if !kept.exists() {
        durable::write(&kept, &content, 0o600, None)?;
    }
    Ok(name)
}

/// The same inode under another name: free, and safe because we only ever replace files by renaming.
fn link(folder: &Path, place: &Path) -> std::io::Result<String> {
    let name = format!("sha256-{}", hash_file(place)?);
    let kept = folder.join(&name);
    if !kept.exists() && fs::hard_link(place, &kept).is_err() {
        fs::copy(place, &kept)?;
    }
    durable::sync_parent(&kept)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_noted_like_this_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/there"), "was\n").unwrap();
        fs::set_permissions(dir.path().join("etc/there"), fs::Permissions::from_mode(0o640)).unwrap();
        let file = |path: &str| StepKind::File {
            path: path.to_owned(),
            content: Some("is\n".to_owned()),
            mode: "0644".to_owned(),
            owner: "0:0".to_owned(),
            absent: false,
            secret: false,
        };
        let directory =
            StepKind::Directory { path: "/srv".to_owned(), mode: "0755".to_owned(), owner: "0:0".to_owned() };
        let notes = [file("/etc/there"), file("/etc/absent"), directory].map(|kind| {
            let step = Step { id: "x".to_owned(), needs: Vec::new(), kind };
            let mut note = before(&host, &step).unwrap().unwrap();
            if let Some(owner) = note.pointer_mut("/files/0/owner") {
                *owner = "uid:gid".into();
            }
            note.to_string()
        });
        insta::assert_snapshot!(notes.join("\n"));
        let kept = host.state("journal/before").join(blake3::hash(b"was\n").to_hex().as_str());
        assert_eq!(fs::read_to_string(kept).unwrap(), "was\n");
    }
}
