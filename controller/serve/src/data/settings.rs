//! `[data]` of `serve.toml`: strict, and turned into what the deciding code works with.

use super::Error;
use rackwright_core::data::{Dataset, Place};
use rackwright_wire::source::SourceSpec;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The `[data]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The server whose agent exports.
    pub source: String,
    /// The server that keeps sealed sets.
    pub sets: String,
    /// Upload rate of every server, such as `1000mbit`: for the printed bound only.
    #[serde(default)]
    pub uplink: Option<String>,
    /// Seconds between syncs of all datasets; 0 for syncs on request only.
    #[serde(default)]
    pub sync_every_s: u64,
    /// Certificates of the data plane's own CA.
    pub tls: TlsFiles,
    /// The key pair that signs manifests.
    pub signing: SigningFiles,
    /// Every server on the data plane, in the inventory's order.
    #[serde(rename = "server")]
    pub servers: Vec<ServerConfig>,
    /// Datasets by name.
    #[serde(default, rename = "dataset")]
    pub dataset: BTreeMap<String, DatasetConfig>,
}

/// PEM files of the controller's identity on the data plane.
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

/// PEM files of the manifest key pair (Ed25519).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningFiles {
    /// Private key, PKCS#8.
    pub private: PathBuf,
    /// Public key, SPKI.
    pub public: PathBuf,
}

/// One server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Inventory name.
    pub name: String,
    /// `address:port` of its data port.
    pub address: String,
    /// Rack name.
    pub rack: String,
    /// Role.
    pub role: String,
}

/// One dataset.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
pub enum DatasetConfig {
    /// A ClickHouse table of the source server.
    Clickhouse {
        /// `database.table`.
        table: String,
        /// Columns in order; every column of fixed width when empty.
        #[serde(default)]
        columns: Vec<String>,
        /// Row order; the sorting key when empty.
        #[serde(default)]
        order_by: Vec<String>,
        /// Servers of this role hold it.
        role: String,
        /// A sync has done its work when so many of them have it.
        #[serde(default = "one")]
        min_nodes: u32,
        /// So many of them hold it [default: all].
        #[serde(default)]
        target_nodes: Option<u32>,
    },
    /// A bucket of the source server.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key prefix.
        #[serde(default)]
        prefix: String,
        /// Servers of this role hold it.
        role: String,
        /// A sync has done its work when so many of them have it.
        #[serde(default = "one")]
        min_nodes: u32,
        /// So many of them hold it [default: all].
        #[serde(default)]
        target_nodes: Option<u32>,
    },
}

const fn one() -> u32 {
    1
}

impl Config {
    pub(super) fn datasets(&self) -> Vec<Dataset> {
        let dataset = |(name, config): (&String, &DatasetConfig)| {
            let (spec, role, min_nodes, target_nodes) = match config.clone() {
                DatasetConfig::Clickhouse { table, columns, order_by, role, min_nodes, target_nodes } => {
                    (SourceSpec::Clickhouse { table, columns, order_by }, role, min_nodes, target_nodes)
                }
                DatasetConfig::S3 { bucket, prefix, role, min_nodes, target_nodes } => {
                    (SourceSpec::S3 { bucket, prefix }, role, min_nodes, target_nodes)
                }
            };
            Dataset { name: name.clone(), spec, role, min_nodes, target_nodes }
        };
        self.dataset.iter().map(dataset).collect()
    }

    pub(super) fn places(&self) -> Vec<Place> {
        let place = |server: &ServerConfig| Place {
            server: server.name.clone(),
            address: server.address.clone(),
            rack: server.rack.clone(),
            role: server.role.clone(),
        };
        self.servers.iter().map(place).collect()
    }

    pub(super) fn place(&self, name: &str) -> Result<Place, Error> {
        let found = self.places().into_iter().find(|place| place.server == name);
        found.ok_or_else(|| Error::Config(format!("no [[data.server]] is named {name:?}")))
    }

    pub(super) fn uplink_bits_per_s(&self) -> Result<Option<u64>, Error> {
        self.uplink.as_deref().map(bits_per_s).transpose()
    }
}

/// A rate as `tc` writes it: `200mbit`, `10gbit`.
pub(super) fn bits_per_s(text: &str) -> Result<u64, Error> {
    let bad = || Error::Config(format!("rate {text:?} is not a number with kbit, mbit or gbit"));
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let parsed = units.into_iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(factor)
    });
    parsed.filter(|rate| *rate > 0).ok_or_else(bad)
}

/// The signing key, and the public key as agents pin it.
pub(super) fn read_keys(files: &SigningFiles) -> Result<(Ed25519KeyPair, String), Error> {
    let pem = read(&files.private)?;
    let wrong = |path: &Path, why: &str| Error::File { path: path.to_owned(), source: why.to_owned().into() };
    let der = rustls_pemfile::private_key(&mut pem.as_bytes()).ok().flatten();
    let der = der.ok_or_else(|| wrong(&files.private, "no private key in PEM"))?;
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der())
        .map_err(|_rejected| wrong(&files.private, "not an Ed25519 key in PKCS#8"))?;
    let public = read(&files.public)?;
    let item = rustls_pemfile::read_one(&mut public.as_bytes());
    let Ok(Some(rustls_pemfile::Item::SubjectPublicKeyInfo(spki))) = item else {
        return Err(wrong(&files.public, "no public key in PEM"));
    };
    if !spki.as_ref().ends_with(key.public_key().as_ref()) {
        return Err(wrong(&files.public, "it does not belong to the private key"));
    }
    Ok((key, public))
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause| Error::File { path: path.to_owned(), source: cause.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_tc_writes_them() {
        assert_eq!(bits_per_s("200mbit").unwrap(), 200_000_000);
        assert_eq!(bits_per_s("10gbit").unwrap(), 10_000_000_000);
        for bad in ["", "200", "mbit", "0mbit", "-1mbit", "200 MB/s"] {
            assert!(bits_per_s(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_documented_section_is_read() {
        let text = r#"
source = "data1"
sets = "results1"
[tls]
ca = "a"
cert = "b"
key = "c"
[signing]
private = "d"
public = "e"
[[server]]
name = "data1"
address = "10.77.0.12:7446"
rack = "r1"
role = "data"
[dataset.packages]
source = "clickhouse"
table = "apt.packages"
role = "ml"
[dataset.indexes]
source = "s3"
bucket = "apt-indexes"
role = "ml"
"#;
        let config: Config = toml::from_str(text).unwrap();
        let names: Vec<_> =
            config.datasets().into_iter().map(|dataset| (dataset.name, dataset.spec.name())).collect();
        let pair = |name: &str, source: &str| (name.to_owned(), source.to_owned());
        assert_eq!(names, [pair("indexes", "apt-indexes"), pair("packages", "apt.packages")]);
        assert!(config.place("data1").is_ok() && config.place("results1").is_err());
        assert!(toml::from_str::<Config>(&text.replace("bucket", "buckte")).is_err());
    }
}
