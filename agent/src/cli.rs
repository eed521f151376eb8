//! The command line: what the controller calls over SSH, and what the units run.

use crate::failure::Failure;
use clap::{Parser, Subcommand};
use rackwright_steps::host::Host;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Rackwright's agent on a server.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    /// Root of the server's file tree (another one only in tests).
    #[arg(long, global = true, default_value = "/", hide = true)]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what this server is.
    Facts,
    /// Read steps on stdin and print what differs; change nothing.
    Check,
    /// Store an artifact from stdin under its hash.
    Receive {
        /// SHA-256 (hex) that the bytes must have.
        #[arg(long)]
        sha256: String,
        /// Octal mode of the stored file.
        #[arg(long, default_value = "0755")]
        mode: String,
    },
    /// Read a plan on stdin (first line), apply it detached, print its events; later lines are answers.
    Run,
    /// Print the events of a plan that `run` started before; start it again when it was interrupted.
    Follow {
        /// The plan's id.
        #[arg(long)]
        plan: String,
        /// Print events from this number on.
        #[arg(long, default_value_t = 1)]
        from_seq: u64,
    },
    /// Apply a stored plan (in its transient unit).
    Apply {
        /// The plan's id.
        #[arg(long)]
        plan: String,
    },
    /// Forward a loopback port to the control planes that are healthy.
    Proxy {
        /// TOML: `listen` and `upstreams`.
        #[arg(long, default_value = "/etc/rackwright/proxy.toml")]
        config: PathBuf,
    },
    /// Serve the data plane.
    Data {
        /// TOML, as playbooks/10-agent.toml writes it.
        #[arg(long, default_value = "/etc/rackwright/data.toml")]
        config: PathBuf,
    },
    /// Serve the kubelet's volumes and seal what jobs leave behind.
    Node {
        /// TOML, as playbooks/10-agent.toml writes it.
        #[arg(long, default_value = "/etc/rackwright/node.toml")]
        config: PathBuf,
    },
    /// Print load, memory, steal and disk latency.
    Report {
        /// Inventory name to report as; the host name when it is not given.
        #[arg(long)]
        server: Option<String>,
    },
}

impl Cli {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let host = Host::new(self.root, now_s());
        match self.command {
            Command::Facts => crate::facts::run(&host),
            Command::Check => crate::check::run(&host),
            Command::Receive { sha256, mode } => crate::receive::run(&host, &sha256, &mode),
            Command::Run => crate::run::run(host),
            Command::Follow { plan, from_seq } => crate::follow::run(host, &plan, from_seq),
            Command::Apply { plan } => crate::apply::run(&host, &plan),
            Command::Proxy { config } => crate::proxy::run(&config),
            Command::Data { config } => crate::data::run(&config),
            Command::Node { config } => crate::node::run(&config),
            Command::Report { server } => crate::report::run(server),
        }
    }
}

/// Seconds since the epoch.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
