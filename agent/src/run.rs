//! `run`: takes a plan, starts it, follows it. The same plan again only follows.

use crate::failure::Failure;
use crate::{follow, input};
use rackwright_steps::host::Host;
use rackwright_steps::plans;
use rackwright_wire::plan::ServerPlan;
use std::io;

pub(crate) fn run(host: Host) -> Result<(), Failure> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| Failure::io("read the plan", &error))?;
    let plan: ServerPlan = input::json("read the plan", &line)?;
    plans::accept(&host, &plan)?;
    drop(line);
    follow::follow(host, &plan.id, 1)
}
