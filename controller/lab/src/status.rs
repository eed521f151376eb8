//! What a lab's servers are doing now.

use crate::spec::Rate;
use rackwright_wire::units::{Bytes, MilliCpu};
use serde::Serialize;
use std::fmt;
use std::net::Ipv4Addr;

/// A server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// It runs and can be reached.
    Running,
    /// It runs, and its link drops everything.
    Cut,
    /// It has no power.
    Stopped,
}

/// One server now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerStatus {
    /// Its host name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// What it does.
    pub state: ServerState,
    /// The process that is its power supply, while it runs.
    pub pid: Option<i32>,
    /// Its CPU limit.
    pub cpus: MilliCpu,
    /// Its memory limit.
    pub memory: Bytes,
    /// What it uses of its memory, without idle file cache.
    pub memory_used: Option<Bytes>,
    /// The rate of its link in both directions, where it is limited.
    pub rate: Option<Rate>,
}

/// A lab now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// Its address range.
    pub subnet: String,
    /// Whether `lab up` came to its end since the machine's last boot.
    pub complete: bool,
    /// The operator's private key.
    pub key: std::path::PathBuf,
    /// Its servers.
    pub servers: Vec<ServerStatus>,
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Cut => "cut",
            Self::Stopped => "stopped",
        })
    }
}

impl fmt::Display for LabStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = if self.complete { "" } else { ", not whole: `lab up` clears it and starts anew" };
        writeln!(f, "lab {} on {}{rest}", self.name, self.subnet)?;
        write!(
            f,
            "{:<12} {:<8} {:<15} {:<8} {:>8} {:>9} {:>9}  LINK",
            "NAME", "ROLE", "ADDRESS", "STATE", "PID", "USED", "MEMORY"
        )?;
        for server in &self.servers {
            let pid = server.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let used = server.memory_used.map_or_else(|| "-".to_owned(), |used| used.to_string());
            let rate = server.rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
            write!(
                f,
                "\n{:<12} {:<8} {:<15} {:<8} {pid:>8} {used:>9} {:>9}  {rate}",
                server.name,
                server.role,
                server.address.to_string(),
                server.state,
                server.memory.to_string(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_who_runs_and_who_does_not() {
        let server = ServerStatus {
            name: "control1".to_owned(),
            role: "control".to_owned(),
            address: Ipv4Addr::new(10, 77, 0, 11),
            state: ServerState::Running,
            pid: Some(14001),
            cpus: MilliCpu::new(2000).unwrap(),
            memory: Bytes::mib(4096),
            memory_used: Some(Bytes::mib(61)),
            rate: None,
        };
        let stopped = ServerStatus {
            name: "ml1".to_owned(),
            state: ServerState::Stopped,
            pid: None,
            memory_used: None,
            rate: "200mbit".parse().ok(),
            ..server.clone()
        };
        let status = LabStatus {
            name: "dev".to_owned(),
            subnet: "10.77.0.0/24".to_owned(),
            complete: true,
            key: "/l/key".into(),
            servers: vec![server, stopped],
        };
        insta::assert_snapshot!(status);
    }
}
