//! `mount`: a device is mounted, now and at boot (a line of fstab).

use super::Found;
use crate::durable;
use crate::error::{Code, StepError};
use crate::exec;
use crate::host::Host;
use std::fs;
use std::time::Duration;

const FSTAB: &str = "/etc/fstab";
const MOUNT_LIMIT: Duration = Duration::from_mins(1);

/// A mount as a step wants it.
pub(super) struct Wanted<'a> {
    pub(super) source: &'a str,
    pub(super) target: &'a str,
    pub(super) fs: &'a str,
    pub(super) options: &'a str,
}

impl Wanted<'_> {
    pub(super) fn check(&self, host: &Host) -> Result<Option<Found>, StepError> {
        let mut words = Vec::new();
        if self.merged(&Self::table(host)?) != Self::table(host)? {
            words.push(format!("write {} to {FSTAB}", self.target));
        }
        let mounts = fs::read_to_string(host.path("/proc/self/mountinfo")).unwrap_or_default();
        if !self.is_mounted(&mounts) {
            words.push(format!("mount {} on {}", self.source, self.target));
        }
        Ok((!words.is_empty()).then(|| Found::new(words.join("; ")).with_detail(self.line())))
    }

    pub(super) fn apply(&self, host: &Host) -> Result<(), StepError> {
        let target = host.path(self.target);
        durable::make_dir(&target, 0o755).map_err(|error| StepError::io("make", &target, error))?;
        let table = host.path(FSTAB);
        durable::write(&table, self.merged(&Self::table(host)?).as_bytes(), 0o644, None)
            .map_err(|error| StepError::io("write", &table, error))?;
        let mounts = fs::read_to_string(host.path("/proc/self/mountinfo")).unwrap_or_default();
        if self.is_mounted(&mounts) {
            return Ok(());
        }
        let done = exec::run("mount", &[self.target], MOUNT_LIMIT)?;
        if done.success() {
            return Ok(());
        }
        let what = format!("mount {} on {}", self.source, self.target);
        Err(StepError::new(Code::MountFailed, what).with_evidence(&done.output()))
    }

    fn table(host: &Host) -> Result<String, StepError> {
        let path = host.path(FSTAB);
        let bytes = durable::read_if_there(&path).map_err(|error| StepError::io("read", &path, error))?;
        Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    }

    /// `nofail`: a rented server whose data disk died must still boot and answer SSH.
    fn line(&self) -> String {
        let options = if self.options.is_empty() { "defaults,nofail" } else { self.options };
        format!("{} {} {} {options} 0 2", self.source, self.target, self.fs)
    }

    /// fstab with our line in the place of any other for this target.
    fn merged(&self, table: &str) -> String {
        let mut found = false;
        let mut lines: Vec<String> = Vec::new();
        for line in table.lines() {
            let is_target = !line.trim_start().starts_with('#')
                && line.split_ascii_whitespace().nth(1) == Some(self.target);
            if !is_target {
                lines.push(line.to_owned());
            } else if !found {
                found = true;
                lines.push(self.line());
            }
        }
        if !found {
            lines.push(self.line());
        }
        lines.join("\n") + "\n"
    }

    /// Whether the topmost mount at the target has the wanted type.
    fn is_mounted(&self, mountinfo: &str) -> bool {
        let at_target = mountinfo.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (left.split(' ').nth(4)? == self.target).then(|| right.split(' ').next())?
        });
        at_target.collect::<Vec<_>>().last().copied() == Some(self.fs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: Wanted<'_> = Wanted { source: "UUID=77", target: "/data", fs: "ext4", options: "" };

    #[test]
    fn fstab_keeps_every_other_line() {
        let table = "# disks\n/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /data xfs defaults 0 2\n";
        let merged = DATA.merged(table);
        assert_eq!(
            merged,
            "# disks\n/dev/sda1 / ext4 defaults 0 1\nUUID=77 /data ext4 defaults,nofail 0 2\n"
        );
        assert_eq!(DATA.merged(&merged), merged, "a second time changes nothing");
    }

    #[test]
    fn the_topmost_mount_counts() {
        let below = "22 1 8:1 / /data rw - ext4 /dev/sdb1 rw\n";
        assert!(DATA.is_mounted(below));
        assert!(!DATA.is_mounted(&format!("{below}23 22 0:5 / /data rw - tmpfs tmpfs rw\n")));
        assert!(!DATA.is_mounted("22 1 8:1 / /data2 rw - ext4 /dev/sdb1 rw\n"));
    }
}
