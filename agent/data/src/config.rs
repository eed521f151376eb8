//! `data.toml`: who this server is on the data plane, where its data lies, whom it trusts.
//!
//! Strict: an unknown key is an error with its line. Secrets are files, never values.

use crate::error::Error;
use rackwright_wire::manifest::Peer;
use rackwright_wire::units::Bytes;
use serde::Deserialize;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Inventory name; the common name and a DNS name of the own certificate.
    pub server: String,
    /// Where the data port listens.
    pub listen: SocketAddr,
    /// The content store, on one real file system: hard links and renames must work in it.
    pub data_dir: PathBuf,
    /// Certificate names that may read chunks and store sealed sets.
    pub known: Vec<String>,
    /// Certificate names that may say what is wanted, and ask for exports and scrubs.
    pub controllers: Vec<String>,
    /// Free space that data never takes; by default 5 % of the file system, at most 20 GiB.
    #[serde(default)]
    pub reserve: Option<Bytes>,
    /// Chunks fetched at once: each holds about 1 MiB of memory.
    #[serde(default = "four")]
    pub in_flight: usize,
    /// Hours between scrubs that start by themselves; 0 for none.
    #[serde(default = "a_week")]
    pub scrub_every_h: u64,
    /// Certificates of the data plane's own CA.
    pub tls: TlsFiles,
    /// ClickHouse on this server: source of tables, or store of results.
    #[serde(default)]
    pub clickhouse: Option<Clickhouse>,
    /// S3 endpoint on this server: source of buckets.
    #[serde(default)]
    pub s3: Option<S3>,
    /// Loads sealed results into a table of the ClickHouse above: on the results server.
    #[serde(default)]
    pub load: Option<Load>,
    /// Where this server's sealed sets go.
    #[serde(default)]
    pub sets: Option<Peer>,
}

/// Where sealed results are loaded to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// `database.table`; both are made when missing.
    pub table: String,
}

/// PEM files of the data plane's identity.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// CA certificate.
    pub ca: PathBuf,
    /// Own certificate.
    pub cert: PathBuf,
    /// Own private key.
    pub key: PathBuf,
}

/// Access to a ClickHouse server over HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clickhouse {
    /// Base URL with an address, such as `http://10.77.0.12:8123`.
    pub url: String,
    /// User name.
    #[serde(default = "default_user")]
    pub user: String,
    /// File with the password; none for no password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Access to an S3 endpoint (path style).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// Base URL with an address, such as `http://10.77.0.12:9000`.
    pub endpoint: String,
    /// Region name to sign with.
    #[serde(default = "default_region")]
    pub region: String,
    /// Access key id.
    pub access_key: String,
    /// File with the secret key.
    pub secret_key_file: PathBuf,
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or says something that does not fit; the cause names the line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |source| Error::Config { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(|cause| wrong(cause.into()))?;
        let config: Self = toml::from_str(&text).map_err(|cause| wrong(cause.into()))?;
        if config.in_flight == 0 {
            return Err(wrong("in_flight must be at least 1".into()));
        }
        Ok(config)
    }
}

/// A secret from its file, without the newline that editors add.
pub(crate) fn read_secret(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(Error::io("read the secret", path))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn four() -> usize {
    4
}
fn a_week() -> u64 {
    7 * 24
}
fn default_user() -> String {
    "default".to_owned()
}
fn default_region() -> String {
    "us-east-1".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
server = "ml1"
listen = "10.77.0.13:7446"
data_dir = "/data/rackwright"
known = ["data1", "ml1"]
controllers = ["rackwright-serve"]
reserve = "1GiB"
[tls]
ca = "/etc/rackwright/pki/data-ca.crt"
cert = "/etc/rackwright/pki/data.crt"
key = "/etc/rackwright/pki/data.key"
[sets]
server = "results1"
address = "10.77.0.15:7446"
"#;

    #[test]
    fn the_documented_file_is_read() {
        let config: Config = toml::from_str(EXAMPLE).unwrap();
        assert_eq!((config.server.as_str(), config.in_flight), ("ml1", 4));
        assert!(config.clickhouse.is_none());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = toml::from_str::<Config>(&EXAMPLE.replace("[sets]", "[stes]")).unwrap_err().to_string();
        assert!(error.contains("stes") && error.contains("line 12"), "{error}");
    }
}
