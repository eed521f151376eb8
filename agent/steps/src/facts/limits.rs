//! How much of the machine this server may use: control group limits, versions 1 and 2.

use super::{FactsError, Tree};

/// Where a version 1 CPU controller may be mounted.
const CPU_FOLDERS: [&str; 3] = ["cpu", "cpu,cpuacct", "cpuacct,cpu"];

/// `MemTotal` in bytes.
pub(super) fn memory_total(tree: &Tree<'_>) -> Result<u64, FactsError> {
    let info = tree.required("/proc/meminfo")?;
    let kib = info.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(kib.unwrap_or(0).saturating_mul(1024))
}

/// The control group's memory limit in bytes; at most the total.
pub(super) fn memory(tree: &Tree<'_>, cgroup_version: u8, total: u64) -> u64 {
    let file = if cgroup_version == 2 {
        "/sys/fs/cgroup/memory.max"
    } else {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    };
    // "max", a huge number or no file at all mean no limit.
    tree.optional(file).and_then(|limit| limit.parse().ok()).map_or(total, |limit: u64| limit.min(total))
}

/// The control group's use without its inactive page cache, as the kubelet counts a working set.
pub(super) fn memory_used(tree: &Tree<'_>, cgroup_version: u8) -> Option<u64> {
    let (usage, stat, key) = if cgroup_version == 2 {
        ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file ")
    } else {
        const STAT: &str = "/sys/fs/cgroup/memory/memory.stat";
        ("/sys/fs/cgroup/memory/memory.usage_in_bytes", STAT, "total_inactive_file ")
    };
    let usage: u64 = tree.optional(usage)?.parse().ok()?;
    let stat = tree.optional(stat)?;
    let inactive = stat.lines().find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok());
    Some(usage.saturating_sub(inactive.unwrap_or(0)))
}

/// Thousandths of a CPU that the control group allows; at most all of them.
pub(super) fn cpu_milli(tree: &Tree<'_>, cgroup_version: u8, logical: u32) -> u64 {
    let all = u64::from(logical) * 1000;
    let quota = if cgroup_version == 2 { quota_v2(tree) } else { quota_v1(tree) };
    quota.map_or(all, |(quota, period)| (quota.saturating_mul(1000) / period.max(1)).min(all))
}

fn quota_v2(tree: &Tree<'_>) -> Option<(u64, u64)> {
    let text = tree.optional("/sys/fs/cgroup/cpu.max")?;
    let (quota, period) = text.split_once(' ')?;
    Some((quota.parse().ok()?, period.parse().ok()?))
}

fn quota_v1(tree: &Tree<'_>) -> Option<(u64, u64)> {
    CPU_FOLDERS.iter().find_map(|folder| {
        let read = |file: &str| tree.optional(&format!("/sys/fs/cgroup/{folder}/{file}"))?.parse().ok();
        // -1 is no number of ours: no limit.
        Some((read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?))
    })
}

/// How many numbers a kernel list such as `0-3,8` names.
pub(super) fn count(numbers: &str) -> u32 {
    numbers
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            last.checked_sub(first).map(|span| span + 1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_counted() {
        for (list, cpus) in [("0", 1), ("0-3", 4), ("0-3,8,10-11", 7), ("", 0)] {
            assert_eq!(count(list), cpus, "{list}");
        }
    }
}
