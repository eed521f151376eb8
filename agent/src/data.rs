//! `data`: the data plane's unit. It faces the network and has no rights beyond its own folder.

use crate::failure::Failure;
use rackwright_steps::report::Sampler;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(config: &Path) -> Result<(), Failure> {
    let server =
        rackwright_data::config::Config::read(config).map_err(|error| Failure::new("config", &error))?.server;
    let sampler = Sampler::new(server);
    rackwright_data::run(config, Arc::new(move || sampler.report()))
        .map_err(|error| Failure::new("data", &error))
}
