//! `check`: steps on stdin, differences on stdout.

use crate::failure::Failure;
use crate::output;
use rackwright_steps::check;
use rackwright_steps::host::Host;
use rackwright_wire::plan::{CheckRequest, PLAN_VERSION};
use std::io::{self, Read};

pub(crate) fn run(host: &Host) -> Result<(), Failure> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| Failure::io("read the request", &error))?;
    let request: CheckRequest =
        serde_json::from_str(&text).map_err(|error| Failure::bad_input("read the request", &error))?;
    if request.version != PLAN_VERSION {
        return Err(rackwright_steps::plans::PlanError::Version(request.version).into());
    }
    output::json(&check::check(host, &request))
}
