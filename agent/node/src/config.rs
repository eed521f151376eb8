//! `/etc/rackwright/node.toml`, strict.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("understand {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        cause: toml::de::Error,
    },
}

/// The node unit's settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This server's inventory name.
    pub server: String,
    /// The data plane's folder.
    pub data_dir: PathBuf,
    /// Certificate of this server, data CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificate of the data CA.
    pub ca: PathBuf,
    /// The kubelet's folder.
    #[serde(default = "kubelet_dir")]
    pub kubelet_dir: PathBuf,
    /// Where sealed sets go.
    pub results: ResultsServer,
}

/// The results server's data unit.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultsServer {
    /// Inventory name: its certificate must carry it.
    pub server: String,
    /// `address:port`.
    pub address: String,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it cannot be read, or has an unknown or missing key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        toml::from_str(&text).map_err(|cause| ConfigError::Parse { path: path.to_owned(), cause })
    }

    /// The plugin's own socket.
    pub fn csi_socket(&self) -> PathBuf {
        self.kubelet_dir.join("plugins").join(rackwright_wire::volume::DRIVER).join("csi.sock")
    }

    /// The socket through which the kubelet finds the plugin.
    pub fn registration_socket(&self) -> PathBuf {
        let name = format!("{}-reg.sock", rackwright_wire::volume::DRIVER);
        self.kubelet_dir.join("plugins_registry").join(name)
    }
}

fn kubelet_dir() -> PathBuf {
    PathBuf::from("/var/lib/kubelet")
}
