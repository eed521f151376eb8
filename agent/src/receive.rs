//! `receive`: an artifact on stdin, stored under its hash.

use crate::failure::Failure;
use rackwright_steps::host::Host;
use rackwright_steps::receive;
use std::io;

pub(crate) fn run(host: &Host, sha256: &str, mode: &str) -> Result<(), Failure> {
    let octal = u32::from_str_radix(mode, 8).map_err(|error| Failure::bad_input("read --mode", &error))?;
    let received = receive::receive(host, sha256, octal, &mut io::stdin().lock())?;
    tracing::info!(sha256, ?received, "artifact");
    Ok(())
}
