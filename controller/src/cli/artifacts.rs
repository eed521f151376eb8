//! `rackwright artifacts`: has the lock's binaries and images in this machine's cache.

use crate::out::Out;
use crate::report::Report;
use clap::{Args, Subcommand};
use rackwright_artifacts::bundle::Bundle;
use rackwright_artifacts::cache::{Cache, Lookup};
use rackwright_artifacts::progress::{Bar, Lines, Progress};
use rackwright_artifacts::{Artifacts, Error, Resolved};
use rackwright_wire::words::counted;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where lock and cache are.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// The lockfile.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "artifacts.lock",
        env = "RACKWRIGHT_LOCK",
        global = true
    )]
    lock: PathBuf,
    /// The cache's folder [default: rackwright/artifacts in the user's cache folder].
    #[arg(long, value_name = "DIR", global = true)]
    cache: Option<PathBuf>,
}

/// Binaries and images by hash.
#[derive(Debug, Args)]
pub(crate) struct ArtifactsCommand {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have artifacts in the cache: bundle, official release, module build, in this order.
    Fetch {
        /// Which ones [default: all].
        names: Vec<String>,
        /// Take them from an offline bundle first.
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
        /// Ask no release server.
        #[arg(long)]
        no_official: bool,
    },
    /// Show the lock beside what this machine has.
    List,
    /// Hash everything in the cache; a changed file is fetched again by the next `fetch`.
    Verify,
    /// Write artifacts into one file for machines without a network.
    Bundle {
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Which ones [default: all].
        names: Vec<String>,
    },
}

/// One line of `list`.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved: Option<Resolved>,
}

/// Runs `rackwright artifacts`.
pub(crate) async fn run(command: ArtifactsCommand, out: Out) -> Result<ExitCode, Report> {
    let places = command.places;
    match command.action {
        Action::Fetch { names, bundle, no_official } => {
            let mut artifacts = load(&places)?;
            if no_official {
                artifacts = artifacts.without_official();
            }
            if let Some(bundle) = bundle {
                artifacts = artifacts.with_bundle(Bundle::open(bundle).map_err(report)?);
            }
            fetch(&artifacts, &names, out).await
        }
        Action::List => list(&load(&places)?, out),
        Action::Verify => verify(&load(&places)?, out),
        Action::Bundle { to, names } => bundle(&load(&places)?, &names, &to, out).await,
    }
}

/// Reads lock and cache.
pub(crate) fn load(places: &Places) -> Result<Artifacts, Report> {
    let cache = places.cache.clone().unwrap_or_else(Cache::default_dir);
    if !places.lock.is_file() {
        return Err(Report::new(format!(
            "read the artifact lock {}: there is no such file",
            places.lock.display()
        ))
        .help("work in Rackwright's folder, or name its artifacts.lock with --lock")
        .exit(Report::BAD_INPUT));
    }
    Artifacts::load_into(&places.lock, cache).map_err(report)
}

/// A bar for a person who watches, lines for a log.
pub(crate) fn progress(out: Out) -> Box<dyn Progress> {
    if out.is_interactive() {
        Box::new(Bar::new())
    } else {
        Box::new(Lines::new(move |line: &str| out.say(line)))
    }
}

async fn fetch(artifacts: &Artifacts, names: &[String], out: Out) -> Result<ExitCode, Report> {
    let names = chosen(artifacts, names);
    let lacking = artifacts.missing_packages(&names).map_err(report)?;
    if !lacking.is_empty() {
        out.say(format_args!("this needs Debian packages first: apt-get install {}", lacking.join(" ")));
    }
    let resolved = artifacts.ensure(&names, progress(out).as_ref()).await.map_err(report)?;
    let bytes: u64 = resolved.iter().map(|resolved| resolved.size_bytes).sum();
    let index = artifacts.cache().dir().join("index.toml");
    let text = format!(
        "{} artifacts, {} MiB, are in the cache; {} says where each came from",
        resolved.len(),
        bytes >> 20,
        index.display()
    );
    out.data(text, &resolved);
    Ok(ExitCode::SUCCESS)
}

fn list(artifacts: &Artifacts, out: Out) -> Result<ExitCode, Report> {
    for artifact in &artifacts.lock().artifacts {
        let (state, resolved) = match artifacts.lookup(&artifact.name).map_err(report)? {
            Lookup::Hit(resolved) => ("cached", Some(*resolved)),
            Lookup::Missing => ("missing", None),
            Lookup::Corrupt { .. } => ("corrupt", None),
        };
        let what = resolved.as_ref().map_or_else(String::new, |resolved| {
            let short: String = resolved.sha256.chars().take(12).collect();
            format!("{short}  {:>5} MiB  {}", resolved.size_bytes >> 20, resolved.source)
        });
        let (name, version) = (artifact.name.as_str(), artifact.version.as_str());
        let short: String = version.chars().take(20).collect();
        out.data(
            format!("{name:<24} {short:<20} {state:<8} {what}"),
            &Row { name, version, state, resolved },
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(artifacts: &Artifacts, out: Out) -> Result<ExitCode, Report> {
    let mut wrong = 0_u32;
    for (name, state) in artifacts.cache().verify().map_err(report)? {
        let (state, text) = match state {
            Lookup::Hit(resolved) => ("good", resolved.sha256),
            Lookup::Missing => ("missing", String::new()),
            Lookup::Corrupt { got, .. } => ("corrupt", format!("the bytes hash to {got}")),
        };
        wrong += u32::from(state != "good");
        out.data(
            format!("{name:<24} {state:<8} {text}"),
            &serde_json::json!({ "name": name, "state": state }),
        );
    }
    if wrong == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    out.say(format_args!(
        "not what it was: {}; `rackwright artifacts fetch` has it again",
        counted(wrong, "file")
    ));
    Ok(ExitCode::FAILURE)
}

async fn bundle(artifacts: &Artifacts, names: &[String], to: &Path, out: Out) -> Result<ExitCode, Report> {
    let names = chosen(artifacts, names);
    let bytes = artifacts.bundle(&names, to, progress(out).as_ref()).await.map_err(report)?;
    let value = serde_json::json!({ "bundle": to, "bytes": bytes, "artifacts": names });
    out.data(format!("{} artifacts, {} MiB, are in {}", names.len(), bytes >> 20, to.display()), &value);
    Ok(ExitCode::SUCCESS)
}

fn chosen<'a>(artifacts: &'a Artifacts, names: &'a [String]) -> Vec<&'a str> {
    if names.is_empty() {
        return artifacts.lock().artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    }
    names.iter().map(String::as_str).collect()
}

fn report(error: Error) -> Report {
    let help = match &error {
        Error::NoSource { .. } => {
            "what was finished is kept; run the same command again after mending one source"
        }
        Error::Lock { .. } => {
            return Report::new(error)
                .help("mend the lockfile, or name another with --lock")
                .exit(Report::BAD_INPUT);
        }
        Error::Unknown { .. } => {
            return Report::new(error)
                .help("`rackwright artifacts list` shows the lock")
                .exit(Report::BAD_INPUT);
        }
        Error::Bundle { .. } => {
            "make it with `rackwright artifacts bundle --to FILE` where there is a network"
        }
        Error::Io { .. } | Error::Index { .. } | Error::IndexVersion { .. } | Error::Cancelled => {
            return Report::new(error);
        }
    };
    Report::new(error).help(help)
}
