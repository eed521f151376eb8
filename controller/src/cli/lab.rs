//! `rackwright lab`: real servers on this machine, from the same inventory that describes rented ones.

use crate::out::Out;
use crate::report::Report;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use rackwright_core::inventory::Inventory;
use rackwright_lab::{Event, Lab, LabError, LabName, LabSpec, Rate, ServerSpec};
use rackwright_wire::words::counted;
use serde_json::json;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Real servers on this machine.
#[derive(Debug, Args)]
pub(crate) struct LabCommand {
    /// The inventory; its cluster's name is the lab's.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "inventory/lab.toml",
        env = "RACKWRIGHT_INVENTORY",
        global = true
    )]
    inventory: PathBuf,
    /// A lab that is up, by its name, without its inventory.
    #[arg(long, value_name = "NAME", global = true)]
    lab: Option<LabName>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say what it changes on this machine, then raise the servers.
    Up {
        /// Only say what it would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// Take away everything that `up` made, also after a crash.
    Down,
    /// Show the servers.
    Status,
    /// Log in to a server, or run a command there.
    Ssh {
        /// The server.
        name: String,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Drop everything on a server's link; its carrier stays.
    Cut {
        /// The server.
        name: String,
    },
    /// Let everything through a server's link again.
    Heal {
        /// The server.
        name: String,
    },
    /// Limit a server's link in both directions.
    Shape {
        /// The server.
        name: String,
        /// Such as 100mbit; `off` lifts the limit.
        rate: String,
    },
    /// Cut a server's power.
    Kill {
        /// The server.
        name: String,
    },
    /// Give a server its power back.
    Start {
        /// The server.
        name: String,
    },
}

/// Runs `rackwright lab`.
pub(crate) async fn run(command: LabCommand, out: Out) -> Result<ExitCode, Report> {
    if let Action::Up { dry_run } = command.action {
        return up(&spec(&command.inventory)?, dry_run, out).await;
    }
    let lab = match command.lab {
        Some(name) => Lab::new(name),
        None => Lab::new(spec(&command.inventory)?.name),
    };
    match command.action {
        Action::Up { .. } => {}
        Action::Down => {
            let text = if lab.down().await.map_err(report)? { "is gone" } else { "was not there" };
            out.say(format_args!("lab {} {text}", lab.name()));
        }
        Action::Status => {
            let status = lab.status().await.map_err(report)?;
            out.data(&status, &status);
        }
        Action::Ssh { name, command } => return Err(ssh(&lab, &name, &command)),
        Action::Cut { name } => {
            lab.cut(&name).await.map_err(report)?;
            out.say(format_args!("{name} is cut off; `rackwright lab heal {name}` connects it"));
        }
        Action::Heal { name } => {
            lab.heal(&name).await.map_err(report)?;
            out.say(format_args!("{name} is connected"));
        }
        Action::Shape { name, rate } => {
            let rate = if rate == "off" { None } else { Some(rate.parse::<Rate>().map_err(report)?) };
            lab.shape(&name, rate).await.map_err(report)?;
            let limit =
                rate.map_or_else(|| "has no limit".to_owned(), |rate| format!("carries at most {rate}"));
            out.say(format_args!("{name}'s link {limit}"));
        }
        Action::Kill { name } => {
            lab.kill(&name).await.map_err(report)?;
            out.say(format_args!("{name} has no power; `rackwright lab start {name}` gives it back"));
        }
        Action::Start { name } => {
            let raised = lab.start(&name).await.map_err(report)?;
            let took_s = raised.took.as_secs_f64();
            out.data(&raised, &json!({ "name": name, "address": raised.address, "took_s": took_s }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(spec: &LabSpec, dry_run: bool, out: Out) -> Result<ExitCode, Report> {
    let lab = Lab::new(spec.name.clone());
    let changes = lab.plan(spec).await.map_err(report)?;
    if dry_run {
        out.data(&changes, &changes);
        return Ok(ExitCode::SUCCESS);
    }
    out.say(&changes);
    let progress = Progress::new(out, spec.servers.len());
    let tell = |event: Event| progress.show(&event);
    let raised = tokio::select! {
        raised = lab.up(spec, &tell) => raised.map_err(report),
        _ = tokio::signal::ctrl_c() => Err(Report::new("finish raising the lab: interrupted")
            .help("`rackwright lab down` takes away what is there, `up` clears it and starts anew")),
    };
    progress.clear();
    let raised = raised?;
    let took_s = raised.took.as_secs_f64();
    let servers: Vec<_> = raised
        .raised
        .iter()
        .map(|one| json!({ "name": one.name, "address": one.address, "took_s": one.took.as_secs_f64() }))
        .collect();
    let text = match servers.len() {
        0 => format!("lab {} is up already", spec.name),
        count => format!("lab {}: {} with SSH after {took_s:.1} s", spec.name, counted(count, "server")),
    };
    out.data(text, &json!({ "lab": spec.name, "servers": servers, "took_s": took_s }));
    Ok(ExitCode::SUCCESS)
}

/// A bar for a person who watches, lines for a log.
struct Progress {
    out: Out,
    bar: Option<ProgressBar>,
    servers: usize,
}

impl Progress {
    fn new(out: Out, servers: usize) -> Self {
        let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
        let bar = style.ok().filter(|_| out.is_interactive()).map(|style| {
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { out, bar, servers }
    }

    fn show(&self, event: &Event) {
        let Some(bar) = &self.bar else {
            self.out.say(event);
            return;
        };
        if let Event::Ready(raised) = event {
            bar.inc(1);
            bar.println(raised.to_string());
            bar.set_message(format!("{} of {} servers answer SSH", bar.position(), self.servers));
        } else {
            bar.set_message(event.to_string());
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Becomes OpenSSH; returns only when that could not be.
fn ssh(lab: &Lab, name: &str, command: &[String]) -> Report {
    let spec = match lab.spec() {
        Ok(spec) => spec,
        Err(error) => return report(error),
    };
    let address = match spec.server(name) {
        Ok(server) => server.address,
        Err(error) => return report(error),
    };
    let mut ssh = Command::new("ssh");
    ssh.arg("-i").arg(lab.key_path()).args(["-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=5"]);
    ssh.arg("-o").arg(format!("UserKnownHostsFile={}", lab.known_hosts_path().display()));
    ssh.args(["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"]);
    ssh.arg(format!("root@{address}")).args(command);
    Report::new(format!("run ssh: {}", ssh.exec())).help("`ssh` comes with the package openssh-client")
}

/// Reads what the lab needs of an inventory.
fn spec(file: &PathBuf) -> Result<LabSpec, Report> {
    let named = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|cause| LabError::File { action: "read", path: file.clone(), cause })
        .map_err(|error| {
            let help = "inventory/lab.toml is one for a lab; name yours with --inventory";
            Report::new(error).help(help).exit(Report::BAD_INPUT)
        })?;
    let inventory = Inventory::parse(&named, &text).map_err(|findings| {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        Report::new(format!("accept the inventory:\n{}", lines.join("\n"))).exit(Report::BAD_INPUT)
    })?;
    spec_of(&inventory).map_err(|error| report(error).help("inventory/lab.toml is one for a lab"))
}

fn spec_of(inventory: &Inventory) -> Result<LabSpec, LabError> {
    let mut faults = Vec::new();
    if inventory.lab.is_none() {
        faults.push("the inventory has no section [lab] with a `range`".to_owned());
    }
    let mut servers = Vec::new();
    for server in &inventory.servers {
        match &server.lab {
            Some(lab) => servers.push(ServerSpec {
                name: server.name.clone(),
                role: server.role.to_string(),
                address: server.address,
                memory: lab.memory,
                cpus: lab.cpu,
                disk: lab.disk,
            }),
            None => faults.push(format!("the server {} has no `lab` with its limits", server.name)),
        }
    }
    match &inventory.lab {
        Some(lab) if faults.is_empty() => {
            let (name, subnet) = (inventory.cluster.name.parse()?, lab.range.to_string().parse()?);
            Ok(LabSpec { name, subnet, servers })
        }
        _ => Err(LabError::Spec { faults }),
    }
}

/// What helps, by what failed.
fn report(error: LabError) -> Report {
    let help = match &error {
        LabError::Spec { .. } | LabError::NoServer { .. } => {
            return Report::new(error).exit(Report::BAD_INPUT);
        }
        LabError::NotRoot => "run it as root, such as with sudo",
        LabError::NoLab { .. } => "`rackwright lab up` raises one; --lab names another",
        LabError::Stopped { .. } => "`rackwright lab start` gives it its power back",
        LabError::Differs { .. } => "`rackwright lab down` takes away the one that is up",
        LabError::Busy { .. } => "wait until it has ended, or end it",
        LabError::Late { .. } => "`rackwright lab up` clears what is there and starts anew",
        LabError::Record { .. } | LabError::RecordVersion { .. } => {
            "another version of rackwright may have written it: take the lab down with that one"
        }
        LabError::Start { .. }
        | LabError::Tool { .. }
        | LabError::File { .. }
        | LabError::NoHostKey { .. }
        | LabError::Running { .. } => return Report::new(error),
    };
    Report::new(error).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_inventory_names_five_servers_with_their_limits() {
        let text = include_str!("../../../inventory/lab.toml");
        let spec = spec_of(&Inventory::parse("lab.toml", text).unwrap()).unwrap();
        spec.check().unwrap();
        let roles: Vec<&str> = spec.servers.iter().map(|server| server.role.as_str()).collect();
        assert_eq!(roles, ["control", "data", "ml", "ml", "results"]);
    }

    #[test]
    fn an_inventory_of_rented_servers_is_refused_with_every_reason() {
        let text = include_str!("../../../inventory/lab.toml");
        let mut inventory = Inventory::parse("lab.toml", text).unwrap();
        inventory.lab = None;
        for server in &mut inventory.servers {
            server.lab = None;
        }
        let LabError::Spec { faults } = spec_of(&inventory).unwrap_err() else { panic!("another error") };
        assert_eq!(faults.len(), 6, "{faults:?}");
    }
}
