//! A job attempt's writable folder: `work/<team>/<project>/<job>/<task>-<attempt>/`.
//!
//! `checkpoints/<step>/` (decimal; made elsewhere and renamed in) and `results/` are what counts.
//! The folders above the attempt's belong to root alone, so no other user of the server gets in.

use crate::seal::{self, SealError, Writers};
use crate::spool::{Spool, gone};
use rackwright_wire::sealed::{SEALED_VERSION, SealedSet, SetKind};
use rackwright_wire::volume::VolumeRequest;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use std::ffi::CString;
use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// One attempt's folder.
#[derive(Debug, Clone)]
pub struct WorkFolder {
    path: PathBuf,
    /// The set without kind, step and files.
    owner: SealedSet,
}

impl WorkFolder {
    /// The folder that a work request names; `None` for other requests and for names that are not plain.
    pub fn of(data_dir: &Path, request: &VolumeRequest) -> Option<Self> {
        let VolumeRequest::Work { team, project, job, task, attempt, .. } = request else {
            return None;
        };
        let (task, attempt) = (task.parse::<u32>().ok()?, attempt.parse::<u32>().ok()?);
        let plain = |name: &String| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        if ![team, project, job].into_iter().all(plain) {
            return None;
        }
        let path = data_dir.join("work").join(team).join(project).join(job).join(format!("{task}-{attempt}"));
        let owner = SealedSet {
            version: SEALED_VERSION,
            kind: SetKind::Results,
            team: team.clone(),
            project: project.clone(),
            job: job.clone(),
            task,
            attempt,
            step: 0,
            node: String::new(),
            files: Vec::new(),
            refused: None,
            left_out: 0,
        };
        Some(Self { path, owner })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints are written and restored.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Makes the folder; pods run under any user id, so it is open, but its way there is root's.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn create(&self) -> std::io::Result<()> {
        let results = self.path.join("results");
        for folder in [&self.path, &self.checkpoints(), &results] {
            std::fs::create_dir_all(folder)?;
            std::fs::set_permissions(folder, Permissions::from_mode(0o1777))?;
        }
        let top = self.path.ancestors().nth(4).unwrap_or(&self.path);
        std::fs::set_permissions(top, Permissions::from_mode(0o700))
    }

    /// Removes the folder and the empty ones above it, up to the job's.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> std::io::Result<()> {
        gone(remove_tree(&self.path))?;
        for folder in self.path.ancestors().skip(1).take(3) {
            if std::fs::remove_dir(folder).is_err() {
                break; // another attempt or job still lives here
            }
        }
        Ok(())
    }

    /// Seals every finished checkpoint that is not sealed yet, and the results once they are there.
    ///
    /// # Errors
    /// The first folder that cannot be sealed; what was sealed before stays sealed.
    pub fn seal_new(&self, node: &str, spool: &Spool, writers: Writers) -> Result<(), SealError> {
        for (step, folder) in self.finished_checkpoints() {
            let set =
                SealedSet { kind: SetKind::Checkpoint, step, node: node.to_owned(), ..self.owner.clone() };
            self.seal_once(&set, &folder, spool, writers)?;
        }
        let results = self.path.join("results");
        let empty = std::fs::read_dir(&results).map_or(true, |mut entries| entries.next().is_none());
        if !empty {
            let set = SealedSet { node: node.to_owned(), ..self.owner.clone() };
            self.seal_once(&set, &results, spool, writers)?;
        }
        Ok(())
    }

    fn seal_once(
        &self,
        set: &SealedSet,
        folder: &Path,
        spool: &Spool,
        writers: Writers,
    ) -> Result<(), SealError> {
        let mark = self.path.join(format!(".sealed-{}", set.id()));
        if mark.exists() {
            return Ok(());
        }
        if let Some(why) = seal::seal(set, folder, spool, writers)?.refused {
            tracing::warn!(set = set.id(), why, "refused");
        }
        match std::fs::File::create(&mark) {
            // No room for the mark: what has ended is not sealed again, and its folder goes next.
            Err(_) if writers == Writers::Ended => Ok(()),
            made => made.map(|_mark| ()).map_err(|cause| SealError::File { path: mark, cause }),
        }
    }

    /// Folders with a decimal name; a restored one is this attempt's start, not its work.
    fn finished_checkpoints(&self) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(self.checkpoints()) else {
            return Vec::new();
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .filter(|(_, path)| path.is_dir() && !path.join(seal::RESTORED_MARK).exists())
            .collect();
        found.sort();
        found
    }
}

/// Removes a folder that nobody writes to any more, however deep a job has made it: folders below its own are moved
/// up to its top, so that two are open at a time.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    let top = rustix::fs::open(path, FOLDER, Mode::empty())?;
    let mut moved = 0_u64;
    loop {
        let mut is_empty = true;
        for name in names(&top)? {
            is_empty = false;
            if !is_removed(&top, &name)? {
                let folder = rustix::fs::openat(&top, &name, FOLDER, Mode::empty())?;
                for inner in names(&folder)? {
                    if !is_removed(&folder, &inner)? {
                        move_up(&folder, &inner, &top, &mut moved)?;
                    }
                }
                rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
            }
        }
        if is_empty {
            return std::fs::remove_dir(path);
        }
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn names(folder: &OwnedFd) -> std::io::Result<Vec<CString>> {
    let entries = rustix::fs::Dir::read_from(folder)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_owned()));
    names.filter(|name| !matches!(name, Ok(name) if matches!(name.to_bytes(), b"." | b".."))).collect()
}

/// Removes what is no folder.
fn is_removed(folder: &OwnedFd, name: &CString) -> std::io::Result<bool> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR) => Ok(false),
        done => gone(done.map_err(Into::into)).map(|()| true),
    }
}

/// Moves a folder up under a name that the job has not used.
fn move_up(folder: &OwnedFd, name: &CString, top: &OwnedFd, moved: &mut u64) -> std::io::Result<()> {
    loop {
        *moved += 1;
        match rustix::fs::renameat_with(folder, name, top, format!("{moved}.gone"), RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Spool;

    fn request(project: &str, task: &str) -> VolumeRequest {
        VolumeRequest::Work {
            team: "vision".to_owned(),
            project: project.to_owned(),
            job: "j1".to_owned(),
            task: task.to_owned(),
            attempt: "1".to_owned(),
            resume: String::new(),
        }
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let dir = Path::new("/data");
        assert!(WorkFolder::of(dir, &request("p", "0")).is_some());
        for project in ["..", "a/b", "", "."] {
            assert!(WorkFolder::of(dir, &request(project, "0")).is_none(), "{project}");
        }
        assert!(WorkFolder::of(dir, &request("p", "../1")).is_none());
    }

    #[test]
    fn each_checkpoint_is_sealed_once_and_unfinished_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path());
        let folder = WorkFolder::of(dir.path(), &request("p", "0")).unwrap();
        folder.create().unwrap();
        for (name, text) in [("10", "a"), ("20.part", "b")] {
            let step = folder.checkpoints().join(name);
            std::fs::create_dir(&step).unwrap();
            std::fs::write(step.join("state"), text).unwrap();
        }
        folder.seal_new("ml1", &spool, Writers::Running).unwrap();
        folder.seal_new("ml1", &spool, Writers::Running).unwrap();
        let ids: Vec<_> = spool.waiting().into_iter().map(|set| set.id()).collect();
        assert_eq!(ids, ["checkpoint-j1-0-1-10"]);
        std::fs::write(folder.path().join("results/scores.jsonl"), "{}\n").unwrap();
        folder.seal_new("ml1", &spool, Writers::Running).unwrap();
        assert_eq!(spool.waiting().len(), 2);
        folder.remove().unwrap();
        assert!(!dir.path().join("work/vision").exists());
    }

    #[test]
    fn a_folder_of_any_depth_goes_with_few_open_files_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir_all(top.join("1.gone/kept")).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        let mut below = rustix::fs::open(&top, FOLDER, Mode::empty()).unwrap();
        // More levels than a process may have open files, and than a stack of recursion holds.
        for _level in 0..20_000 {
            rustix::fs::mkdirat(&below, "d", Mode::RWXU).unwrap();
            below = rustix::fs::openat(&below, "d", FOLDER, Mode::empty()).unwrap();
        }
        drop(below);
        remove_tree(&top).unwrap();
        assert!(!top.exists() && outside.join("kept").exists());
    }
}
