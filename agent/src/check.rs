//! `check`: steps on stdin, differences on stdout.

use crate::failure::Failure;
use crate::{input, output};
use rackwright_steps::check;
use rackwright_steps::host::Host;
use rackwright_wire::plan::CheckRequest;
use std::io::{self, Read};

pub(crate) fn run(host: &Host) -> Result<(), Failure> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| Failure::io("read the request", &error))?;
    let request: CheckRequest = input::json("read the request", &text)?;
    output::json(&check::check(host, &request)?)
}
