//! What the demo measured: the closing table and `report.json`.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Everything that is measured in one run. `shared` names are those of the report.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) seconds: Vec<(String, f64)>,
    pub(super) nodes_ready: u64,
    pub(super) ssh_to_ready_s: f64,
    pub(super) second_apply_changes: u64,
    pub(super) second_apply_s: f64,
    /// Proportional set size of the agent's units together, on the server where they are heaviest.
    pub(super) agent_bytes: u64,
    /// Node to dataset to version.
    pub(super) versions: BTreeMap<String, BTreeMap<String, Version>>,
    pub(super) scrub_found: u64,
    pub(super) scrub_repaired: u64,
    pub(super) jobs: Jobs,
    pub(super) pods_before: u64,
    pub(super) pods_peak: u64,
    pub(super) pods_after: u64,
    pub(super) etcd_before: u64,
    pub(super) etcd_peak: u64,
    pub(super) etcd_after: u64,
    pub(super) results_rows: u64,
    pub(super) results_rows_with_ml_cut: u64,
    pub(super) best: Value,
    pub(super) bill: Bill,
}

/// One dataset version on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) generation: u64,
    pub(super) bytes: u64,
    pub(super) digest: String,
}

/// Tasks of an array count singly, a gang once.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub(super) submitted: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
    pub(super) waiting_reason: String,
    pub(super) submit_to_running_s: f64,
}

/// Amounts are decimal strings of the bill's currency.
#[derive(Debug, Default)]
pub(super) struct Bill {
    pub(super) invoice: String,
    pub(super) sum: String,
    pub(super) rows: Vec<(String, String, String)>,
    pub(super) cloud: String,
    pub(super) currency: String,
}

impl Findings {
    /// Writes the report.
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(&self.report())?;
        text.push('\n');
        std::fs::write(path, text)
    }

    fn report(&self) -> Value {
        let versions: serde_json::Map<String, Value> = self
            .versions
            .iter()
            .map(|(node, sets)| {
                let sets: serde_json::Map<String, Value> = sets
                    .iter()
                    .map(|(name, v)| {
                        (name.clone(), json!({"version": v.generation, "bytes": v.bytes, "digest": v.digest}))
                    })
                    .collect();
                (node.clone(), sets.into())
            })
            .collect();
        let rows: Vec<Value> = self
            .bill
            .rows
            .iter()
            .map(|(team, project, amount)| json!({"team": team, "project": project, "amount": amount}))
            .collect();
        let seconds: serde_json::Map<String, Value> =
            self.seconds.iter().map(|(name, took)| (name.clone(), json!(took))).collect();
        json!({
            "seconds": seconds,
            "nodes_ready": self.nodes_ready,
            "ssh_to_ready_s": self.ssh_to_ready_s,
            "second_apply_changes": self.second_apply_changes,
            "second_apply_s": self.second_apply_s,
            "agent_bytes": self.agent_bytes,
            "versions": versions,
            "scrub": {"found": self.scrub_found, "repaired": self.scrub_repaired},
            "jobs": {
                "submitted": self.jobs.submitted, "succeeded": self.jobs.succeeded, "failed": self.jobs.failed,
                "retried": self.jobs.retried, "waiting_reason": self.jobs.waiting_reason,
                "submit_to_running_s": self.jobs.submit_to_running_s,
            },
            "pods": {"before": self.pods_before, "peak": self.pods_peak, "after": self.pods_after},
            "etcd_bytes": {"before": self.etcd_before, "peak": self.etcd_peak, "after": self.etcd_after},
            "results_rows": self.results_rows,
            "results_rows_with_ml_cut": self.results_rows_with_ml_cut,
            "best": self.best,
            "bill": {
                "invoice": self.bill.invoice, "sum": self.bill.sum, "rows": rows, "cloud": self.bill.cloud,
                "currency": self.bill.currency,
            },
        })
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, text: String| writeln!(f, "  {name:<22} {text}");
        writeln!(f)?;
        line(
            f,
            "nodes Ready",
            format!("{} in {:.1} s after SSH answered", self.nodes_ready, self.ssh_to_ready_s),
        )?;
        let changes = self.second_apply_changes;
        line(f, "second apply", format!("{changes} changes, {:.2} s", self.second_apply_s))?;
        line(
            f,
            "agent, all its units",
            format!("{:.1} MB at most (PSS, idle)", megabytes(self.agent_bytes)),
        )?;
        for (node, sets) in &self.versions {
            let text = sets.iter().map(|(name, v)| {
                let digest: String = v.digest.chars().take(12).collect();
                format!("{name}@{} {:.1} MB {digest}", v.generation, megabytes(v.bytes))
            });
            line(f, &format!("data on {node}"), text.collect::<Vec<_>>().join(", "))?;
        }
        let scrub = format!("{} bad object found, {} repaired", self.scrub_found, self.scrub_repaired);
        line(f, "scrub", scrub)?;
        let jobs = &self.jobs;
        let text = format!(
            "{} submitted, {} succeeded, {} failed, {} retried; first pod ran after {:.2} s",
            jobs.submitted, jobs.succeeded, jobs.failed, jobs.retried, jobs.submit_to_running_s
        );
        line(f, "jobs", text)?;
        line(f, "waits because", jobs.waiting_reason.clone())?;
        let pods =
            format!("{} before, {} at the peak, {} after", self.pods_before, self.pods_peak, self.pods_after);
        line(f, "pods in etcd", pods)?;
        let [before, peak, after] = [self.etcd_before, self.etcd_peak, self.etcd_after].map(megabytes);
        line(f, "etcd in use", format!("{before:.1} MB before, {peak:.1} at the peak, {after:.1} after"))?;
        let (rows, cut) = (self.results_rows, self.results_rows_with_ml_cut);
        line(f, "result rows", format!("{rows}, and {cut} with both ml nodes cut off"))?;
        let bill = &self.bill;
        let text = format!(
            "{} {} = {} invoiced; EC2 on demand: {}",
            bill.sum, bill.currency, bill.invoice, bill.cloud
        );
        line(f, "bill", text)?;
        for (team, project, amount) in &bill.rows {
            line(f, "", format!("{amount:>12}  {team} / {project}"))?;
        }
        let times = self.seconds.iter().map(|(name, took)| format!("{name} {took:.0}")).collect::<Vec<_>>();
        line(f, "seconds", times.join(", "))
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
