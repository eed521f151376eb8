//! The machine's mounts: which there are, and taking them away.

use crate::error::{LabError, file_error};
use crate::tool::Tools;
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a mount may stay busy after the processes that used it were killed, before it is detached lazily.
const BUSY: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);

/// One mount, as `/proc/self/mountinfo` tells it (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) root: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: String,
    pub(crate) options: String,
}

/// Every mount that this process sees, oldest first.
///
/// # Errors
/// [`LabError::File`].
pub(crate) fn all() -> Result<Vec<Mount>, LabError> {
    let path = Path::new("/proc/self/mountinfo");
    Ok(parse(&std::fs::read_to_string(path).map_err(file_error("read", path))?))
}

/// Whether something is mounted exactly there.
///
/// # Errors
/// [`LabError::File`].
pub(crate) fn is_mounted(path: &Path) -> Result<bool, LabError> {
    Ok(all()?.iter().any(|mount| mount.path == path))
}

/// Takes away whatever is mounted exactly there. A mount that stays busy is detached: it ends with its last user.
///
/// # Errors
/// [`LabError::File`].
pub(crate) async fn unmount(path: &Path) -> Result<(), LabError> {
    let deadline = Instant::now() + BUSY;
    while is_mounted(path)? {
        let flags = if Instant::now() < deadline { UnmountFlags::empty() } else { UnmountFlags::DETACH };
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => tokio::time::sleep(RETRY).await,
            Err(cause) => {
                return Err(LabError::File { action: "unmount", path: path.to_owned(), cause: cause.into() });
            }
        }
    }
    Ok(())
}

/// Frees the loop devices behind which the file stands. One that was mounted with `-o loop` frees itself.
///
/// # Errors
/// What losetup said.
pub(crate) async fn free_loops(tools: &Tools, file: &Path) -> Result<(), LabError> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else {
        return Ok(());
    };
    for device in devices.flatten() {
        let Ok(backing) = std::fs::read_to_string(device.path().join("loop/backing_file")) else {
            continue;
        };
        if is_backing(&backing, file) {
            let device = Path::new("/dev").join(device.file_name());
            tools.run("losetup", [Path::new("--detach"), device.as_path()]).await?;
        }
    }
    Ok(())
}

/// The kernel marks a file that was removed while in use.
fn is_backing(backing: &str, file: &Path) -> bool {
    let backing = backing.trim_end_matches('\n');
    Path::new(backing.strip_suffix(" (deleted)").unwrap_or(backing)) == file
}

fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (place, source) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, path) = (place.next()?, place.next()?);
    let mut source = source.split(' ');
    let (kind, options) = (source.next()?, source.nth(1)?);
    Some(Mount {
        root: root.to_owned(),
        path: PathBuf::from(unescape(path)),
        kind: kind.to_owned(),
        options: options.to_owned(),
    })
}

/// The kernel writes space, tab, line break and backslash in octal.
fn unescape(path: &str) -> String {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    octal.iter().fold(path.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_optional_fields_and_escapes() {
        let text = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                    41 24 0:33 /x /sys/fs/cgroup/cpu rw shared:1 master:2 - cgroup cgroup rw,cpu\n";
        let mounts = parse(text);
        assert_eq!(mounts[0].path, Path::new("/mnt/a b"));
        assert_eq!((mounts[1].kind.as_str(), mounts[1].options.as_str()), ("cgroup", "rw,cpu"));
        assert_eq!(mounts[1].root, "/x");
    }

    #[test]
    fn a_loop_device_is_known_by_its_file_also_after_removal() {
        let file = Path::new("/l/data.img");
        assert!(is_backing("/l/data.img\n", file));
        assert!(is_backing("/l/data.img (deleted)\n", file));
        assert!(!is_backing("/other/l/data.img\n", file));
    }

    #[tokio::test]
    async fn taking_away_what_is_not_mounted_is_no_error() {
        unmount(Path::new("/nowhere/at/all")).await.unwrap();
        free_loops(&Tools::that_look(), Path::new("/nowhere/data.img")).await.unwrap();
    }
}
