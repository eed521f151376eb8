//! The kubelet's view of the data plane: a CSI node plugin for inline volumes, and what becomes of
//! the files that a job leaves behind.
//!
//! This unit runs as root, because it mounts, and it listens on unix sockets only; the unit that
//! faces the network ([`rackwright-data`]) runs without rights. They share folders, never memory:
//! `versions/` and `pins/` (written here, respected there), `work/` and `spool/` (ours alone).
//!
//! In the order of the flow: [`config`], [`csi`] (gRPC), [`volumes`] (publish and unpublish),
//! [`work`] (a job's writable folder), [`seal`] (folder to sealed set), [`spool`] (sealed sets on
//! their way), [`results`] (the client of the results server).

pub mod config;
pub mod csi;
pub mod results;
pub mod seal;
pub mod spool;
pub mod volumes;
pub mod work;

use std::path::Path;
use std::sync::Arc;

/// Why the node unit could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is of no use.
    #[error("read the node unit's configuration")]
    Config(#[from] config::ConfigError),
    /// The client of the results server could not be made.
    #[error("prepare the connection to the results server")]
    Results(#[from] results::ResultsError),
    /// A socket could not be opened, or a server on it ended.
    #[error("serve the kubelet")]
    Serve(#[from] csi::ServeError),
}

/// Runs the node unit until the process is told to stop.
///
/// # Errors
/// When the configuration cannot be used or a socket cannot be opened.
pub async fn run(config_path: &Path) -> Result<(), Error> {
    let config = config::Config::read(config_path)?;
    let results = results::Results::open(&config)?;
    let spool = spool::Spool::new(&config.data_dir);
    let volumes = Arc::new(volumes::Volumes::new(&config, spool.clone(), results.clone()));
    tokio::select! {
        () = Arc::clone(&volumes).watch_markers() => Ok(()),
        () = spool.upload_forever(results) => Ok(()),
        ended = csi::serve(&config, volumes) => Ok(ended?),
    }
}
