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
    ///
    /// Its name has an `@` on purpose. The kubelet registers plugins with the percent-encoded path of the socket as
    /// HTTP/2 authority, which our server refuses as malformed (hyperium/h2#487). What stands before an `@` is user
    /// information, where percent signs may be; what follows is a plain host name.
    pub fn registration_socket(&self) -> PathBuf {
        let name = format!("reg@{}.sock", rackwright_wire::volume::DRIVER);
        self.kubelet_dir.join("plugins_registry").join(name)
    }
}

fn kubelet_dir() -> PathBuf {
    PathBuf::from("/var/lib/kubelet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::http::uri::Authority;

    #[test]
    fn the_kubelets_name_for_the_registration_socket_is_an_authority() {
        let config: Config = toml::from_str(
            "server = \"ml1\"\ndata_dir = \"/data\"\ncert = \"/c\"\nkey = \"/k\"\nca = \"/ca\"\n\
             [results]\nserver = \"results1\"\naddress = \"10.77.0.15:7446\"\n",
        )
        .unwrap();
        // grpc-go escapes the path and leaves `@` as it is (observed with Kubernetes 1.36.3).
        let encoded = config.registration_socket().display().to_string().replace('/', "%2F");
        assert!(Authority::try_from(encoded.as_str()).is_ok(), "{encoded}");
    }
}
