//! Processes by id and start time, so that a later process with the same id is never taken for ours.

use crate::error::{LabError, file_error};
use crate::record::ProcessId;
use std::path::Path;

/// Which boot of the machine this is.
///
/// # Errors
/// [`LabError::File`].
pub(crate) fn boot() -> Result<String, LabError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(file_error("read", path))
}

/// The process with this id, as it is now.
pub(crate) fn identify(pid: i32, boot: &str) -> Option<ProcessId> {
    let start_ticks = start_ticks(&stat(pid)?)?;
    Some(ProcessId { pid, start_ticks, boot: boot.to_owned() })
}

/// Whether the process still runs. One that has ended and waits for its parent does not.
pub(crate) fn is_alive(id: &ProcessId, boot: &str) -> bool {
    id.boot == boot && stat(id.pid).and_then(|stat| start_ticks(&stat)) == Some(id.start_ticks)
}

/// Kills a process at once, if it still is that process.
pub(crate) fn kill(id: &ProcessId, boot: &str) {
    if is_alive(id, boot) {
        kill_pid(id.pid);
    }
}

/// Kills whatever has this id: for members of our own control groups only.
pub(crate) fn kill_pid(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // It may have ended by itself in between.
        let _already_gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Whether a process is the first of a process namespace directly below ours: the init of a server.
pub(crate) fn is_inner_init(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| names_inner_init(&status))
}

fn names_inner_init(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let ids: Vec<&str> = ids.unwrap_or_default().split_whitespace().collect();
    matches!(ids.as_slice(), [_, "1"])
}

fn stat(pid: i32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// Field 22 of `/proc/PID/stat` (proc(5)); none for a zombie. The second field is the program's name in
/// brackets and may hold anything, so fields count from its last closing one.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (a) b) S 1 77 77 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 1 0 4242 1000 10 0";

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        assert_eq!(start_ticks(STAT), Some(4242));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        assert_eq!(start_ticks(&STAT.replace(") S ", ") Z ")), None);
    }

    #[test]
    fn this_process_is_alive_and_another_start_or_boot_is_not_it() {
        let boot = boot().unwrap();
        let own = identify(i32::try_from(std::process::id()).unwrap(), &boot).unwrap();
        assert!(is_alive(&own, &boot));
        assert!(!is_alive(&own, "another boot"));
        assert!(!is_alive(&ProcessId { start_ticks: own.start_ticks + 1, ..own }, &boot));
    }

    #[test]
    fn a_container_in_a_server_is_not_taken_for_the_server() {
        assert!(names_inner_init("Name:\tsystemd\nNSpid:\t14014\t1\n"));
        assert!(!names_inner_init("NSpid:\t14014\n"));
        assert!(!names_inner_init("NSpid:\t14014\t812\t1\n"));
    }
}
