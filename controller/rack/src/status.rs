//! How a rack is right now: nodes, units, certificates' ends, etcd's size. Reads only.

use crate::agent::Agent;
use crate::cluster::NodeState;
use crate::drive::Driver;
use crate::objects;
use crate::survey::{Survey, chain};
use rackwright_core::inventory::Role;
use rackwright_wire::step::{Difference, Step, StepKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A certificate that ends sooner is said.
const SOON_DAYS: i64 = 7;

/// A whole rack.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Every server of the inventory.
    pub servers: Vec<ServerStatus>,
    /// What differs in the cluster's own objects, nodes aside; `None` when no API answers.
    pub cluster: Option<Vec<Difference>>,
    /// etcd, when it answers.
    pub etcd: Option<EtcdStatus>,
}

/// One server.
#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Whether it was asked: `--only` leaves servers out.
    pub asked: bool,
    /// Why it could not be asked; `None` when it could.
    pub problem: Option<String>,
    /// Its node, when the API knows it.
    pub node: Option<NodeState>,
    /// Differences from the playbooks, and from the marks that its node must have.
    pub differences: usize,
    /// Units of ours and their state, as systemd says it.
    pub units: BTreeMap<String, String>,
    /// Certificates and when they end.
    pub certificates: Vec<CertificateStatus>,
}

/// One certificate on a server.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateStatus {
    /// Of the file.
    pub path: String,
    /// Whole days until it ends; negative when it has.
    pub days_left: i64,
}

/// etcd's own numbers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct EtcdStatus {
    /// Size of the file.
    pub file_bytes: u64,
    /// Of it, in use.
    pub in_use_bytes: u64,
}

impl Status {
    /// Whether everything is as it should be.
    pub fn is_healthy(&self) -> bool {
        let as_planned = self.cluster.as_ref().is_some_and(Vec::is_empty);
        as_planned && self.servers.iter().filter(|server| server.asked).all(ServerStatus::is_healthy)
    }
}

impl ServerStatus {
    fn is_healthy(&self) -> bool {
        let ready = self.node.as_ref().is_some_and(|node| node.ready);
        self.problem.is_none() && self.differences == 0 && ready && self.down().next().is_none()
    }

    fn down(&self) -> impl Iterator<Item = (&String, &String)> {
        self.units.iter().filter(|(_, state)| *state != "active")
    }
}

impl Driver {
    /// Looks at everything. `now_s` is in seconds since the epoch.
    pub async fn status(&self, survey: &Survey, now_s: u64) -> Status {
        let (nodes, objects) = match self.cluster().await {
            Some(Ok(cluster)) => {
                let (nodes, objects) =
                    tokio::join!(cluster.nodes(), cluster.differences(&self.wanted.inventory));
                (nodes.unwrap_or_default(), objects.ok())
            }
            Some(Err(_)) | None => (Vec::new(), None),
        };
        let (marks, cluster): (Vec<_>, Vec<_>) =
            objects.iter().flatten().cloned().partition(|found| objects::is_node_step(&found.step));
        let looked = self.wanted.inventory.servers.iter().map(|server| {
            let answered = survey.answered.iter().find(|of| of.server == server.name);
            let agent = survey.agents.get(&server.name);
            let node = nodes.iter().find(|node| node.name == server.name).cloned();
            let unmarked =
                marks.iter().filter(|found| found.step == objects::node_step(&server.name)).count();
            async move {
                let (mut units, mut certificates) = (BTreeMap::new(), Vec::new());
                if let (Some(answered), Some(agent)) = (answered, agent) {
                    units = unit_states(agent, &answered.steps).await;
                    certificates = ends(agent, &answered.steps, now_s).await;
                }
                ServerStatus {
                    name: server.name.clone(),
                    role: server.role,
                    asked: answered.is_some() || survey.failed.contains_key(&server.name),
                    problem: survey.failed.get(&server.name).map(|error| chain(error)),
                    node,
                    differences: unmarked + answered.map_or(0, |of| of.report.differences.len()),
                    units,
                    certificates,
                }
            }
        });
        let servers = futures::future::join_all(looked).await;
        Status { servers, cluster: objects.map(|_| cluster), etcd: self.etcd().await }
    }

    async fn etcd(&self) -> Option<EtcdStatus> {
        let metrics = self.etcd_metrics().await?;
        Some(EtcdStatus {
            file_bytes: gauge(&metrics, "etcd_mvcc_db_total_size_in_bytes")?,
            in_use_bytes: gauge(&metrics, "etcd_mvcc_db_total_size_in_use_in_bytes")?,
        })
    }
}

async fn unit_states(agent: &Agent, steps: &[Step]) -> BTreeMap<String, String> {
    let named = |step: &Step| {
        if let StepKind::Unit { name, active: true, .. } = &step.kind { Some(name.clone()) } else { None }
    };
    let units: Vec<String> = steps.iter().filter_map(named).collect();
    let asked = agent.session().exec(&format!("systemctl is-active {}", units.join(" ")), b"").await;
    let answer = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let answer = answer.unwrap_or_default();
    let mut states = answer.lines().map(str::to_owned);
    units.into_iter().map(|unit| (unit, states.next().unwrap_or_else(|| "unknown".to_owned()))).collect()
}

async fn ends(agent: &Agent, steps: &[Step], now_s: u64) -> Vec<CertificateStatus> {
    let mut found = Vec::new();
    for step in steps {
        let StepKind::Certificate(certificate) = &step.kind else { continue };
        let path = &certificate.cert;
        let Ok(output) = agent.session().exec(&format!("cat {path}"), b"").await else { continue };
        if let Some(end_s) = end(&output.stdout) {
            let left_s = end_s - i64::try_from(now_s).unwrap_or(i64::MAX);
            found.push(CertificateStatus { path: path.clone(), days_left: left_s.div_euclid(86_400) });
        }
    }
    found
}

fn end(pem: &[u8]) -> Option<i64> {
    let mut bytes = pem;
    let der = rustls_pemfile::certs(&mut bytes).next()?.ok()?;
    let (_, leaf) = X509Certificate::from_der(&der).ok()?;
    Some(leaf.validity().not_after.timestamp())
}

/// A gauge without labels in Prometheus' text format.
fn gauge(metrics: &str, name: &str) -> Option<u64> {
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name))?;
    let number: f64 = line.split(' ').nth(1)?.parse().ok()?;
    // Sizes in bytes are whole, positive and far below 2^53.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in bytes")]
    Some(number as u64)
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.servers.iter().map(|server| server.name.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:width$}  {:8} {:15} {:10} {:8} {:9} certificate",
            "server", "role", "node", "kubelet", "units", "plan"
        )?;
        for server in &self.servers {
            let node = match &server.node {
                Some(node) if node.ready && node.cordoned => "Ready, cordoned",
                Some(node) if node.ready => "Ready",
                Some(_) => "NotReady",
                None => "-",
            };
            let version = server.node.as_ref().map_or("-", |node| node.version.as_str());
            let down = server.down().count();
            let units = format!("{}/{}", server.units.len() - down, server.units.len());
            let plan = match (&server.problem, server.differences) {
                (Some(_), _) => "unknown".to_owned(),
                (None, _) if !server.asked => "not asked".to_owned(),
                (None, 0) => "as is".to_owned(),
                (None, changes) => format!("{changes} differ"),
            };
            let soonest = server.certificates.iter().min_by_key(|of| of.days_left);
            let mut ends = soonest.map_or_else(|| "-".to_owned(), |of| format!("{} days", of.days_left));
            if let Some(soon) = soonest.filter(|of| of.days_left < SOON_DAYS) {
                write!(ends, ": {}", soon.path)?;
            }
            writeln!(
                f,
                "{:width$}  {:8} {node:15} {version:10} {units:8} {plan:9} {ends}",
                server.name, server.role
            )?;
        }
        for server in &self.servers {
            if let Some(problem) = &server.problem {
                writeln!(f, "{}: {problem}", server.name)?;
            }
            for (unit, state) in server.down() {
                writeln!(f, "{}: {unit} is {state}", server.name)?;
            }
            if let Some(node) = server.node.as_ref().filter(|node| !node.ready) {
                writeln!(f, "{}: {}", server.name, node.message)?;
            }
        }
        match &self.cluster {
            None => writeln!(f, "cluster: no API server answers")?,
            Some(found) => {
                for difference in found {
                    writeln!(f, "cluster: would {}", difference.summary)?;
                }
            }
        }
        match self.etcd {
            None => write!(f, "etcd does not answer"),
            Some(etcd) => {
                let (file, used) = (etcd.file_bytes >> 10, etcd.in_use_bytes >> 10);
                write!(f, "etcd: {file} KiB, {used} KiB in use")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_core::inventory::Inventory;

    const LAB: &str = include_str!("../../../inventory/lab.toml");

    fn healthy() -> Status {
        let node = NodeState {
            name: "ml1".to_owned(),
            ready: true,
            cordoned: false,
            message: String::new(),
            version: "v1.36.3".to_owned(),
            allocatable: BTreeMap::new(),
        };
        let server = ServerStatus {
            name: "ml1".to_owned(),
            role: Role::Ml,
            asked: true,
            problem: None,
            node: Some(node),
            differences: 0,
            units: BTreeMap::from([("kubelet.service".to_owned(), "active".to_owned())]),
            certificates: vec![CertificateStatus { path: "/etc/x.crt".to_owned(), days_left: 90 }],
        };
        Status { servers: vec![server], cluster: Some(Vec::new()), etcd: None }
    }

    #[test]
    fn a_table_says_what_is_wrong_and_nothing_that_nobody_looked_at() {
        let mut status = healthy();
        assert!(status.is_healthy());
        let text = status.to_string();
        assert!(text.contains("Ready ") && text.contains("as is") && text.contains("1/1"), "{text}");
        if let Some(node) = status.servers[0].node.as_mut() {
            node.cordoned = true;
        }
        assert!(status.to_string().contains("Ready, cordoned"), "{status}");
        assert!(status.is_healthy(), "somebody wanted that");

        status.servers[0].asked = false;
        assert!(status.to_string().contains("not asked"), "{status}");
        let mut unmarked = healthy();
        unmarked.servers[0].differences = 1;
        assert!(unmarked.to_string().contains("1 differ") && !unmarked.is_healthy());
        let mut drifted = healthy();
        drifted.cluster = Some(objects::all_missing(&Inventory::parse("lab.toml", LAB).unwrap()));
        assert!(
            drifted.to_string().contains("cluster: would create CSIDriver data.rackwright.dev"),
            "{drifted}"
        );
        assert!(!drifted.is_healthy());
        let silent = Status { cluster: None, ..healthy() };
        assert!(silent.to_string().contains("no API server answers") && !silent.is_healthy());
    }

    #[test]
    fn a_gauge_is_found_by_its_whole_name() {
        let metrics = "# TYPE x gauge\netcd_mvcc_db_total_size_in_bytes_extra 1\n\
                       etcd_mvcc_db_total_size_in_bytes 2.097152e+06\n";
        assert_eq!(gauge(metrics, "etcd_mvcc_db_total_size_in_bytes"), Some(2_097_152));
        assert_eq!(gauge(metrics, "etcd"), None);
    }
}
