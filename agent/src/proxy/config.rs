//! The proxy's file, and whether it changed.

use serde::Deserialize;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// `/etc/rackwright/proxy.toml`. Addresses only: names would need a resolver before the network is up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Loopback address and port.
    pub(super) listen: SocketAddr,
    /// Control planes.
    pub(super) upstreams: Vec<SocketAddr>,
}

/// The file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("understand {}", path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("use {}: it names no upstream", path.display())]
    Empty { path: PathBuf },
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let owned = || path.to_owned();
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Io { path: owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) })?;
        if config.upstreams.is_empty() {
            return Err(ConfigError::Empty { path: path.to_owned() });
        }
        Ok(config)
    }
}

/// A configuration and the text it came from: 200 bytes are quicker compared than any time stamp.
pub(super) struct Watched {
    path: PathBuf,
    current: Config,
    seen: String,
}

impl Watched {
    pub(super) fn new(path: &Path, current: Config) -> Self {
        // Unreadable now means changed at the next look, which then says why.
        let seen = fs::read_to_string(path).unwrap_or_default();
        Self { path: path.to_owned(), current, seen }
    }

    /// The new configuration when the file changed since the last look, or why it is of no use.
    pub(super) fn changed(&mut self) -> Option<Result<Config, ConfigError>> {
        // Absent for a moment while it is replaced by other means than a rename: the old one stays.
        let text = fs::read_to_string(&self.path).ok()?;
        if text == self.seen {
            return None;
        }
        let parsed = Config::parse(&self.path, &text);
        self.seen = text;
        match parsed {
            Ok(new) if new.listen != self.current.listen => {
                tracing::warn!(listen = %new.listen, "another port needs a restart of the unit");
                Some(Ok(new))
            }
            Ok(new) if new == self.current => None,
            Ok(new) => {
                self.current = new.clone();
                Some(Ok(new))
            }
            Err(error) => Some(Err(error)),
        }
    }
}
