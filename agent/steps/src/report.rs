//! What a node says about itself while it runs: load, memory, steal, disk latency.
//!
//! Load and memory come from sysinfo; steal and disk latency, which it does not know, from /proc/stat and
//! /proc/diskstats as differences between two samples.

use crate::facts;
use procfs::{CurrentSI, DiskStat, KernelStats};
use rackwright_wire::facts::Disk;
use rackwright_wire::report::{DiskReport, NodeReport, REPORT_VERSION};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Differences over less than this say nothing.
const SHORTEST: Duration = Duration::from_millis(200);
/// Asked again within this time, the same report is given: reports are cheap, but not free.
const FRESH: Duration = Duration::from_secs(5);

/// Samples a node; each report covers the time since the one before.
#[derive(Debug)]
pub struct Sampler {
    server: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    at: Instant,
    counters: Counters,
    last: Option<NodeReport>,
}

/// Counters that only grow.
#[derive(Debug, Default, Clone)]
struct Counters {
    steal: u64,
    cpu: u64,
    /// Device to (operations, milliseconds they took).
    disks: BTreeMap<String, (u64, u64)>,
}

impl Sampler {
    /// Starts sampling the server of this name.
    pub fn new(server: impl Into<String>) -> Self {
        let state = State { at: Instant::now(), counters: Counters::read(), last: None };
        Self { server: server.into(), state: Mutex::new(state) }
    }

    /// The node now; rates are over the time since the last report.
    pub fn report(&self) -> NodeReport {
        let mut state = crate::host::lock(&self.state);
        let age = state.at.elapsed();
        if let Some(last) = &state.last
            && age < FRESH
        {
            return last.clone();
        }
        std::thread::sleep(SHORTEST.saturating_sub(age));
        let counters = Counters::read();
        let report = self.compose(&state.counters, &counters);
        *state = State { at: Instant::now(), counters, last: Some(report.clone()) };
        report
    }

    fn compose(&self, before: &Counters, now: &Counters) -> NodeReport {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        // A kernel that does not say is shown as zero, which nobody takes for a measurement.
        let (total, machine_used) = System::new_with_specifics(memory)
            .map_or((0, 0), |system| (system.total_memory(), system.used_memory()));
        let root = Path::new("/");
        let allowed = facts::memory_allowed(root).unwrap_or(total);
        // A limited group knows its own use; the machine's would count everybody's.
        let used = if allowed < total { facts::memory_used(root) } else { None };
        NodeReport {
            version: REPORT_VERSION,
            server: self.server.clone(),
            at_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            load_1m: System::load_average().map_or(0.0, |load| load.one),
            memory_used_bytes: used.unwrap_or(machine_used),
            memory_allowed_bytes: allowed,
            steal_percent: steal_percent(before, now),
            disks: facts::mounted(root)
                .into_iter()
                .filter_map(|disk| disk_report(disk, before, now))
                .collect(),
        }
    }
}

impl Counters {
    /// What the kernel counts now; zeros where it does not say.
    fn read() -> Self {
        let (steal, cpu) = KernelStats::current().map_or((0, 0), |stats| {
            let cpu = stats.total;
            let parts = [cpu.iowait, cpu.irq, cpu.softirq, cpu.steal].map(Option::unwrap_or_default);
            (cpu.steal.unwrap_or(0), cpu.user + cpu.nice + cpu.system + cpu.idle + parts.iter().sum::<u64>())
        });
        let disks = procfs::diskstats().unwrap_or_default();
        let entry =
            |disk: DiskStat| (disk.name, (disk.reads + disk.writes, disk.time_reading + disk.time_writing));
        Self { steal, cpu, disks: disks.into_iter().map(entry).collect() }
    }
}

fn steal_percent(before: &Counters, now: &Counters) -> f64 {
    let cpu = now.cpu.saturating_sub(before.cpu);
    ratio(now.steal.saturating_sub(before.steal), cpu).map_or(0.0, |share| share * 100.0)
}

fn disk_report(disk: Disk, before: &Counters, now: &Counters) -> Option<DiskReport> {
    let mount = disk.mount?;
    let stat = rustix::fs::statvfs(mount.as_str()).ok()?;
    let (operations, busy_ms) = now.disks.get(&disk.device).copied().unwrap_or_default();
    let (operations_before, busy_before) = before.disks.get(&disk.device).copied().unwrap_or_default();
    Some(DiskReport {
        mount,
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        latency_ms: ratio(busy_ms.saturating_sub(busy_before), operations.saturating_sub(operations_before)),
        device: disk.device,
    })
}

/// `None` when nothing happened.
#[expect(clippy::cast_precision_loss, reason = "counters of a few seconds are far below 2^52")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_of_two_samples() {
        let at = |steal, cpu| Counters { steal, cpu, disks: BTreeMap::new() };
        assert!((steal_percent(&at(10, 1000), &at(35, 1100)) - 25.0).abs() < 1e-9);
        assert!(steal_percent(&at(10, 1000), &at(10, 1000)).abs() < 1e-9, "no time passed");
        assert_eq!(ratio(30, 0), None);
    }

    #[test]
    fn this_machine_reports_itself_and_not_more_often_than_it_makes_sense() {
        let sampler = Sampler::new("here");
        let report = sampler.report();
        assert_eq!(report.server, "here");
        assert!(report.memory_allowed_bytes > 0 && report.memory_used_bytes > 0);
        assert!((0.0..=100.0).contains(&report.steal_percent));
        assert_eq!(sampler.report(), report, "asked again at once");
    }
}
