//! Taking everything back, from the record alone. Each step is one that may have been done already.

use crate::error::LabError;
use crate::group::Hierarchies;
use crate::mount;
use crate::network;
use crate::process;
use crate::record::{Record, Thing};
use crate::tool::Tools;
use std::io::ErrorKind;
use std::path::Path;

/// Kills every recorded process and removes every recorded thing. The first failure ends it; the record stays,
/// so that it can be repeated.
///
/// # Errors
/// What could not be removed.
pub(crate) async fn undo(
    tools: &Tools,
    record: &Record,
    hierarchies: &Hierarchies,
    boot: &str,
) -> Result<(), LabError> {
    for (_, id) in &record.processes {
        process::kill(id, boot);
    }
    for thing in record.undo_order() {
        remove(tools, thing, hierarchies).await?;
    }
    Ok(())
}

async fn remove(tools: &Tools, thing: &Thing, hierarchies: &Hierarchies) -> Result<(), LabError> {
    match thing {
        Thing::Group { name } => {
            hierarchies.kill(name).await?;
            hierarchies.remove(name).await
        }
        Thing::Link { name } | Thing::Bridge { name } => {
            if network::is_link(name) {
                network::remove_link(tools, name).await
            } else {
                Ok(())
            }
        }
        Thing::Mount { path } => mount::unmount(path).await,
        Thing::Loop { file } => mount::free_loops(tools, file).await,
        Thing::Table { name } => network::remove_table(tools, name).await,
        Thing::Folder { path } => remove_folder(path),
    }
}

/// Removes a folder with everything in it, if it is there; never reaches through a mount.
///
/// # Errors
/// [`LabError::File`], also when something is still mounted below.
pub(crate) fn remove_folder(folder: &Path) -> Result<(), LabError> {
    let failed = |cause| LabError::File { action: "remove", path: folder.to_owned(), cause };
    if let Some(inner) = mount::all()?.into_iter().find(|mount| mount.path.starts_with(folder)) {
        let cause =
            std::io::Error::new(ErrorKind::ResourceBusy, format!("{} is a mount", inner.path.display()));
        return Err(failed(cause));
    }
    match std::fs::remove_dir_all(folder) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(failed(cause)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_mount_below_is_left_whole() {
        // /proc is a mount on every machine that runs this.
        let error = remove_folder(Path::new("/proc")).unwrap_err();
        assert_eq!(error.to_string(), "remove /proc");
    }

    #[test]
    fn a_folder_that_is_gone_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        remove_folder(folder.path()).unwrap();
        remove_folder(folder.path()).unwrap();
    }
}
