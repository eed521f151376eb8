//! The command line: one file per area, one exit code per documented outcome.

mod artifacts;
mod cost;
mod data;
mod job;
mod lab;
mod rack;
mod serve;

use crate::out::Out;
use crate::report::Report;
use clap::{Parser, Subcommand};
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// The Kubernetes client logs every refused connection; whoever made the call says so with its reason.
const SAID_BY_US: &str = "kube_client::client::builder=off";

/// Kubernetes racks on rented servers, for ML.
#[derive(Debug, Parser)]
#[command(
    name = "rackwright",
    version,
    propagate_version = true,
    after_help = "Exit codes, and what to do about every [code]: docs/codes.md"
)]
pub(crate) struct Cli {
    /// Print data as JSON on stdout.
    #[arg(long, global = true)]
    json: bool,
    /// Log more on stderr (-v info, -vv debug); `RUST_LOG` wins.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Raise real servers on this machine, cut them off, take them away.
    Lab(lab::LabCommand),
    /// Have the lock's binaries and images.
    Artifacts(artifacts::ArtifactsCommand),
    /// What the rack cost, and for whom.
    Cost(cost::CostCommand),
    /// Jobs: submit, look, explain, cancel.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Master data: versions, and who holds them.
    #[command(subcommand)]
    Data(data::DataCommand),
    #[command(flatten)]
    Rack(rack::RackCommand),
    /// Run the controller's service, or make its first token.
    Serve(serve::ServeCommand),
    /// Print shell completions.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Runs the command and turns its outcome into an exit code.
    pub(crate) fn run(self) -> ExitCode {
        let out = Out::new(self.json);
        log_to_stderr(self.verbose);
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return failed(out, &Report::new(format!("start the runtime: {cause}"))),
        };
        let code = runtime.block_on(self.command.run(out)).unwrap_or_else(|report| failed(out, &report));
        if out.is_lost() {
            return failed(out, &Report::new("write to standard output").help("is its disk full?"));
        }
        code
    }
}

impl Command {
    async fn run(self, out: Out) -> Result<ExitCode, Report> {
        match self {
            Self::Lab(command) => lab::run(command, out).await,
            Self::Artifacts(command) => artifacts::run(command, out).await,
            Self::Cost(command) => cost::run(command, out).await,
            Self::Job(command) => job::run(command, out).await,
            Self::Data(command) => data::run(command, out).await,
            Self::Rack(command) => rack::run(command, out).await,
            Self::Serve(command) => Box::pin(serve::run(command, out)).await,
            Self::Completions { shell } => {
                let mut command = <Cli as clap::CommandFactory>::command();
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut command, "rackwright", &mut text);
                out.line(String::from_utf8_lossy(&text).trim_end());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn failed(out: Out, report: &Report) -> ExitCode {
    out.say(report);
    ExitCode::from(report.code())
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{level},{SAID_BY_US}")));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
