//! `report`: the node as it is over the next moment, as one JSON line.

use crate::failure::Failure;
use crate::output;
use rackwright_steps::report::Sampler;

pub(crate) fn run(server: Option<String>) -> Result<(), Failure> {
    let name =
        server.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok()).unwrap_or_default();
    output::json(&Sampler::new(name.trim()).report())
}
