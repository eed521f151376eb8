//! `serve.toml`: what the controller needs to know to serve. Strict: an unknown key is an error.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole of `serve.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster's name, for metrics and the bill.
    pub cluster: String,
    /// Where HTTPS listens.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The job store's SQLite file.
    #[serde(default = "default_store")]
    pub store: PathBuf,
    /// The server's certificate.
    pub tls: Tls,
    /// How Kubernetes is reached and what pods look like.
    pub kubernetes: Kubernetes,
    /// How etcd is asked for its size; without it the counters are absent.
    #[serde(default)]
    pub etcd: Option<Etcd>,
    /// Limits of the HTTP interface.
    #[serde(default)]
    pub limits: Limits,
    /// How long finished pods stay.
    #[serde(default)]
    pub jobs: Jobs,
    /// The data plane; without it datasets are taken from the nodes' labels alone.
    #[serde(default)]
    pub data: Option<crate::data::Config>,
}

/// Certificate files; both are reread when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Leaf first, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// How Kubernetes is reached and what pods look like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// A kubeconfig with the controller's own client certificate.
    pub kubeconfig: PathBuf,
    /// `imagePullPolicy` of job pods.
    #[serde(default = "default_pull_policy")]
    pub image_pull_policy: String,
    /// Whether pods ask for the runtime's default seccomp profile.
    #[serde(default = "yes")]
    pub seccomp: bool,
}

/// How etcd is asked for its size.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// Client URLs.
    pub endpoints: Vec<String>,
    /// CA of the servers, PEM.
    pub ca: PathBuf,
    /// Client certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Limits of the HTTP interface.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// A handler that takes longer is given up.
    pub request_timeout_s: u64,
    /// Requests a second per token; the burst is as many.
    pub requests_per_s: u32,
    /// Inputs that wait for the loop; more are turned away with 503.
    pub queue_depth: usize,
    /// Open connections.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 1024 * 1024,
            request_timeout_s: 15,
            requests_per_s: 2000,
            queue_depth: 4096,
            connections: 1024,
        }
    }
}

/// How long finished pods stay, and how often the full pass runs.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// Seconds between a pod's history row and its deletion.
    pub prune_grace_s: u32,
    /// Failed pods kept for a look, per owner, newest first.
    pub keep_failed_per_owner: u32,
    /// Seconds that those stay.
    pub keep_failed_s: u32,
    /// Seconds after which a node that is not ready has stopped its job pods.
    pub lease_s: u32,
    /// Seconds more until what ran there is declared lost and tried elsewhere.
    pub lease_grace_s: u32,
    /// Seconds after which an attempt that has its place and has not started is ended.
    pub start_limit_s: u32,
    /// Seconds between two full passes.
    pub full_pass_s: u32,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            prune_grace_s: 5,
            keep_failed_per_owner: 3,
            keep_failed_s: 3600,
            lease_s: 40,
            lease_grace_s: 10,
            start_limit_s: 600,
            full_pass_s: 30,
        }
    }
}

impl Jobs {
    /// A node that did not renew its lease for this long has stopped its job pods.
    pub(crate) fn silence(self) -> Duration {
        Duration::from_secs(u64::from(self.lease_s) + u64::from(self.lease_grace_s))
    }

    /// Time between two full passes.
    pub(crate) fn full_pass(self) -> Duration {
        Duration::from_secs(u64::from(self.full_pass_s.max(1)))
    }
}

/// Why the configuration cannot be used; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what serve expects.
    #[error("understand {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file is absent, or holds an unknown key or a wrong value: line and column are named.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7443))
}
fn default_store() -> PathBuf {
    PathBuf::from("/var/lib/rackwright/store/jobs.db")
}
fn default_pull_policy() -> String {
    "IfNotPresent".to_owned()
}
fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        cluster = "lab"
        [tls]
        cert = "/etc/rackwright/pki/serve.crt"
        key = "/etc/rackwright/pki/serve.key"
        [kubernetes]
        kubeconfig = "/etc/rackwright/serve.kubeconfig"
    "#;

    #[test]
    fn a_short_file_gets_the_documented_defaults() {
        let config: Config = toml::from_str(SMALL).unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.limits.body_bytes, 1 << 20);
        assert_eq!(config.jobs.prune_grace_s, 5);
        assert!(config.etcd.is_none());
    }

    /// What one side writes, the other must read: the file as the golden rendering of the playbooks has it.
    #[test]
    fn what_the_playbooks_write_is_read() {
        const RENDERED: &str =
            include_str!("../../core/tests/rack/snapshots/rack__playbooks__v1_control1.snap");
        let is_ours = |step: &&str| step.lines().any(|line| line == "path: /etc/rackwright/serve.toml");
        let step = RENDERED.split("\n== ").find(is_ours).unwrap();
        let lines = step.lines().filter_map(|line| line.strip_prefix("  | "));
        let config: Config = toml::from_str(&lines.collect::<Vec<_>>().join("\n")).unwrap();
        assert!(config.etcd.is_some() && config.data.is_some());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = toml::from_str::<Config>(&format!("prot = 1\n{SMALL}")).unwrap_err();
        assert!(error.to_string().contains("prot"), "{error}");
    }
}
