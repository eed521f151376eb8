//! `facts`: what this server is, as one JSON line.

use crate::failure::Failure;
use crate::output;
use rackwright_steps::facts;
use rackwright_steps::host::Host;

pub(crate) fn run(host: &Host) -> Result<(), Failure> {
    let facts =
        facts::read(host.root(), host.now_s()).map_err(|error| Failure::new("facts-unreadable", &error))?;
    output::json(&facts)
}
