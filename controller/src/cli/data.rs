//! `rackwright data`: publish the masters' newest state, see who holds what, reread it.

use crate::client::Client;
use crate::out::Out;
use crate::report::Report;
use clap::Subcommand;
use rackwright_serve::data::{DataView, Operation, ScrubWanted, SyncWanted};
use rackwright_wire::words::counted;
use std::process::ExitCode;
use std::time::Duration;

/// Exit code when an operation ended, but not for everybody.
const INCOMPLETE: u8 = 3;
/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Replicate master data and see where it is.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Export what changed, once, and wait until every node that should has it; exit 3 when fewer than `min_nodes` do.
    Sync {
        /// Datasets [default: all].
        datasets: Vec<String>,
        /// Upload rate of the servers, such as 200mbit: prints the least possible time beside the real one.
        #[arg(long, value_name = "RATE")]
        uplink: Option<String>,
    },
    /// Show every server's versions: what is complete, on its way or blocked, and whence the bytes came.
    Status,
    /// Reread everything that servers hold; repair what does not hash; exit 3 when something stays damaged.
    Scrub {
        /// Servers [default: all that hold data].
        servers: Vec<String>,
    },
    /// List published versions.
    Versions,
}

/// Runs `rackwright data`.
pub(crate) async fn run(command: DataCommand, out: Out) -> Result<ExitCode, Report> {
    let client = Client::from_env()?;
    match command {
        DataCommand::Sync { datasets, uplink } => {
            let started: Operation = client.post("/v1/data/sync", &SyncWanted { datasets, uplink }).await?;
            follow(&client, started, out).await
        }
        DataCommand::Scrub { servers } => {
            let started: Operation = client.post("/v1/data/scrub", &ScrubWanted { servers }).await?;
            follow(&client, started, out).await
        }
        DataCommand::Status => {
            let view: DataView = client.get("/v1/data").await?;
            out.data(status(&view).join("\n"), &view);
            Ok(ExitCode::SUCCESS)
        }
        DataCommand::Versions => {
            let view: DataView = client.get("/v1/data").await?;
            out.data(versions(&view).join("\n"), &view.datasets);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Waits for an operation; says what is new on the way, as lines that a log can keep.
async fn follow(client: &Client, mut operation: Operation, out: Out) -> Result<ExitCode, Report> {
    let mut said: Vec<String> = Vec::new();
    while !operation.done {
        tokio::time::sleep(LOOK_EVERY).await;
        operation = client.get(&format!("/v1/data/operations/{}", operation.id)).await?;
        if out.is_interactive() {
            let lines = operation.lines();
            lines.iter().filter(|line| !said.contains(line)).for_each(|line| out.say(line));
            said = lines;
        }
    }
    out.data(operation.lines().join("\n"), &operation);
    let damaged = operation.scrubs.iter().any(|scrub| scrub.found() > scrub.repaired());
    if let Some(error) = &operation.error {
        out.say(format_args!("{} {}: {error}", operation.kind, operation.id));
    }
    let good = operation.error.is_none() && !damaged;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}

fn status(view: &DataView) -> Vec<String> {
    let mut lines = Vec::new();
    for (server, seen) in &view.nodes {
        let error = seen.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        let Some(held) = &seen.held else {
            lines.push(format!("{server}{error}"));
            continue;
        };
        let scrub = format!("scrubs found {}, repaired {}", held.scrub_found, held.scrub_repaired);
        lines.push(format!("{server}: generation {}, {scrub}{error}", held.generation));
        for (dataset, versions) in &held.datasets {
            for version in versions {
                let short: String = version.digest.chars().take(12).collect();
                let state = match (&version.blocked, version.complete) {
                    (_, true) => "complete".to_owned(),
                    (Some(blocked), false) => format!("blocked: {blocked}"),
                    (None, false) => format!("{} of {} bytes", version.bytes, version.total_bytes),
                };
                let fetched: Vec<_> =
                    version.fetched.iter().map(|(peer, bytes)| format!("{bytes} from {peer}")).collect();
                let fetched = fetched.join(", ");
                lines.push(format!(
                    "  {dataset:<16} {short} generation {:<4} {state}  {fetched}",
                    version.generation
                ));
            }
        }
    }
    lines
}

fn versions(view: &DataView) -> Vec<String> {
    let line = |dataset: &rackwright_serve::data::DatasetView| {
        let Some(version) = &dataset.version else {
            return format!("{:<16} nothing published yet (source {})", dataset.name, dataset.source);
        };
        let rows = version.rows.map_or(String::new(), |rows| {
            format!(", {} of {}", counted(rows, "row"), counted(version.columns.len(), "column"))
        });
        let (generation, bytes, files) = (version.generation, version.bytes, version.files);
        format!(
            "{:<16} {} generation {generation}, {bytes} bytes in {}{rows}",
            dataset.name,
            version.digest,
            counted(files, "file")
        )
    };
    view.datasets.iter().map(line).collect()
}
