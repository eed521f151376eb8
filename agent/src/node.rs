//! `node`: the kubelet's side of the data plane. Root, because it mounts; no network port.

use crate::failure::Failure;
use std::path::Path;
use tokio::runtime::Builder;

pub(crate) fn run(config: &Path) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    runtime.block_on(rackwright_node::run(config)).map_err(|error| Failure::new("node", &error))
}
