//! Starting an apply so that it outlives this process, its SSH channel and its controller.

use crate::failure::Failure;
use rackwright_steps::host::Host;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Starts `apply --plan ID` detached. Already started is fine.
pub(crate) fn start(host: &Host, plan: &str) -> Result<(), Failure> {
    let agent = std::env::current_exe().map_err(|error| Failure::io("find this binary", &error))?;
    let mut command = if host.is_server() { transient_unit(plan) } else { Command::new(&agent) };
    if host.is_server() {
        command.arg(&agent);
    }
    command.arg("--root").arg(host.root()).args(["apply", "--plan", plan]).stdin(Stdio::null());
    if host.is_server() {
        let done = command.output().map_err(|error| Failure::io("start systemd-run", &error))?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        // Two who follow the same plan may both start it: one of them finds the unit there.
        if done.status.success() || said.contains("already loaded") || said.contains("already exists") {
            return Ok(());
        }
        let failed = io::Error::other(said.trim().to_owned());
        return Err(Failure::io("start the apply in a unit of its own", &failed));
    }
    let detached = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
    detached.map(|_child| ()).map_err(|error| Failure::io("start the apply", &error))
}

/// The unit comes back by itself when the agent is killed, and goes away when it ends.
fn transient_unit(plan: &str) -> Command {
    let mut command = Command::new("systemd-run");
    command.args([
        &format!("--unit={}", unit_name(plan)),
        "--description=Rackwright applies a plan",
        "--collect",
        "--quiet",
        "--property=Restart=on-abnormal",
        "--property=RestartSec=1",
        "--",
    ]);
    command
}

/// The apply's unit.
pub(crate) fn unit_name(plan: &str) -> String {
    let short: String = plan.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("rackwright-apply-{short}")
}
