//! The host-key ledger: which key proves which server, and who said so.
//!
//! A server is known by its key, never by its address. The ledger answers before any authentication
//! starts; a key that differs from the pinned one is an alarm, not a question. New keys enter only from
//! the inventory, from the provider's API, or by an explicit first-use acceptance, which is recorded.

use crate::state::{StateDir, StateError};
use rackwright_wire::format::Other;
use russh::keys::{HashAlg, PublicKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const FILE: &str = "hosts.toml";
/// The version of the ledger file that this build writes.
pub const LEDGER_VERSION: u32 = 1;

/// Who vouched for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `ssh.host_key` of the inventory.
    Inventory,
    /// The provider's API: the lab.
    Provider,
    /// `--accept-new`: the operator took the key that the server showed first.
    Accepted,
}

/// One server's pinned key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// SHA-256 fingerprint, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// Such as `ssh-ed25519`; unknown when only a fingerprint was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    /// Who vouched for it.
    pub source: Source,
    /// When it was recorded, RFC 3339.
    pub recorded: String,
}

impl Pin {
    /// Whether this is the key.
    pub fn fits(&self, key: &PublicKey) -> bool {
        self.fingerprint == fingerprint(key)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    hosts: BTreeMap<String, Pin>,
}

/// The ledger could not be read or a key in it makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file is no ledger.
    #[error("read the host-key ledger hosts.toml")]
    Syntax(#[source] toml::de::Error),
    /// Another build wrote the file.
    #[error("read the host-key ledger hosts.toml")]
    Version(#[source] Other),
    /// A key does not parse.
    #[error("read the host key of {server} given by {origin}: it is neither SHA256:… nor a public key")]
    Key {
        /// The server.
        server: String,
        /// Who gave it.
        origin: &'static str,
    },
    /// Inventory and ledger name different keys.
    #[error("trust {server}: the inventory's host key {inventory} is not the recorded one {recorded}")]
    Contradiction {
        /// The server.
        server: String,
        /// Fingerprint in the inventory.
        inventory: String,
        /// Fingerprint in the ledger.
        recorded: String,
    },
}

/// Which key proves which server.
#[derive(Debug)]
pub struct HostLedger {
    state: StateDir,
    hosts: BTreeMap<String, Pin>,
}

impl HostLedger {
    /// Reads the ledger; a missing file is an empty one.
    pub fn open(state: &StateDir) -> Result<Self, LedgerError> {
        Ok(Self { state: state.clone(), hosts: read(state)? })
    }

    /// The pinned key of a server.
    pub fn pinned(&self, server: &str) -> Option<&Pin> {
        self.hosts.get(server)
    }

    /// Takes the inventory's fingerprint. One that contradicts the ledger is refused: somebody must remove
    /// the recorded key on purpose.
    pub fn learn_from_inventory(&mut self, server: &str, key: &str, now: &str) -> Result<(), LedgerError> {
        let given = parse(server, "the inventory", key, Source::Inventory, now)?;
        match self.pinned(server) {
            Some(known) if known.fingerprint == given.fingerprint => Ok(()),
            Some(known) => Err(LedgerError::Contradiction {
                server: server.to_owned(),
                inventory: given.fingerprint,
                recorded: known.fingerprint.clone(),
            }),
            None => self.record(server, given),
        }
    }

    /// Takes the provider's key. The provider made the server, so its word replaces an older one: a
    /// reinstalled server is announced, not guessed.
    pub fn learn_from_provider(&mut self, server: &str, key: &str, now: &str) -> Result<(), LedgerError> {
        let given = parse(server, "the provider", key, Source::Provider, now)?;
        match self.pinned(server) {
            Some(known) if known.fingerprint == given.fingerprint => Ok(()),
            Some(_) | None => self.record(server, given),
        }
    }

    /// Records the key that a server showed first, because the operator said so.
    pub fn accept(&mut self, server: &str, key: &PublicKey, now: &str) -> Result<(), LedgerError> {
        self.record(server, pin(key, Source::Accepted, now))
    }

    fn record(&mut self, server: &str, pin: Pin) -> Result<(), LedgerError> {
        let _turn = self.state.turn()?;
        // What another process recorded meanwhile must not be forgotten: any key would do then.
        self.hosts = read(&self.state)?;
        self.hosts.insert(server.to_owned(), pin);
        let file = File { version: LEDGER_VERSION, hosts: self.hosts.clone() };
        // Strings and integers only: TOML can always hold them.
        let text = toml::to_string(&file).unwrap_or_default();
        Ok(self.state.write(FILE, &text)?)
    }
}

fn read(state: &StateDir) -> Result<BTreeMap<String, Pin>, LedgerError> {
    let text = state.read(FILE)?;
    Ok(text.map(|text| parse_file(&text)).transpose()?.map(|file| file.hosts).unwrap_or_default())
}

/// The version is looked at first: tables have no order, and a newer one may hold keys that are unknown here.
fn parse_file(text: &str) -> Result<File, LedgerError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let found = toml::from_str::<Head>(text).map_err(LedgerError::Syntax)?.version;
    if found != LEDGER_VERSION {
        return Err(LedgerError::Version(Other { found, reads: LEDGER_VERSION }));
    }
    toml::from_str(text).map_err(LedgerError::Syntax)
}

/// The SHA-256 fingerprint, as `ssh-keygen -l` prints it.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn pin(key: &PublicKey, source: Source, now: &str) -> Pin {
    let algorithm = Some(key.algorithm().to_string());
    Pin { fingerprint: fingerprint(key), algorithm, source, recorded: now.to_owned() }
}

fn parse(
    server: &str,
    origin: &'static str,
    key: &str,
    source: Source,
    now: &str,
) -> Result<Pin, LedgerError> {
    let key = key.trim();
    if let Some(rest) = key.strip_prefix("SHA256:") {
        // 32 bytes in base64 without padding.
        if rest.len() == 43 {
            let recorded = now.to_owned();
            return Ok(Pin { fingerprint: key.to_owned(), algorithm: None, source, recorded });
        }
    } else if let Ok(key) = PublicKey::from_openssh(key) {
        return Ok(pin(&key, source, now));
    }
    Err(LedgerError::Key { server: server.to_owned(), origin })
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::{Algorithm, PrivateKey, key::safe_rng};

    fn key() -> PublicKey {
        PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap().public_key().clone()
    }

    #[test]
    fn a_key_that_another_process_recorded_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let (mut one, mut other) = (HostLedger::open(&state).unwrap(), HostLedger::open(&state).unwrap());
        one.accept("ml1", &key(), "now").unwrap();
        other.accept("ml2", &key(), "now").unwrap();
        let ledger = HostLedger::open(&state).unwrap();
        assert!(ledger.pinned("ml1").is_some() && ledger.pinned("ml2").is_some());
    }

    #[test]
    fn a_recorded_key_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let known = key();
        HostLedger::open(&state).unwrap().learn_from_inventory("ml1", &fingerprint(&known), "now").unwrap();
        let again = HostLedger::open(&state).unwrap();
        assert!(again.pinned("ml1").unwrap().fits(&known));
        assert!(!again.pinned("ml1").unwrap().fits(&key()));
    }

    #[test]
    fn the_ledger_reads_like_this_and_a_newer_one_is_refused() {
        const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhdQLPIKenGFr2O+xVZtzZV4LIw0w9ltafBHm3pH66S";
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let mut ledger = HostLedger::open(&state).unwrap();
        let key = PublicKey::from_openssh(KEY).unwrap();
        let now = "2026-11-22T10:00:00Z";
        ledger.learn_from_inventory("control1", &fingerprint(&key), now).unwrap();
        ledger.learn_from_provider("ml1", KEY, now).unwrap();
        ledger.accept("ml2", &key, now).unwrap();
        let text = state.read(FILE).unwrap().unwrap();
        insta::assert_snapshot!(text);
        state.write(FILE, &format!("added = 1\n{}", text.replace("version = 1", "version = 2"))).unwrap();
        let refused = HostLedger::open(&state).unwrap_err();
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert_eq!(cause, "version 2, this build reads 1");
    }

    #[test]
    fn an_inventory_that_contradicts_the_ledger_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = HostLedger::open(&StateDir::at(folder.path()).unwrap()).unwrap();
        ledger.learn_from_inventory("ml1", &fingerprint(&key()), "now").unwrap();
        let refused = ledger.learn_from_inventory("ml1", &fingerprint(&key()), "later");
        assert!(matches!(refused, Err(LedgerError::Contradiction { .. })));
    }

    #[test]
    fn a_provider_may_announce_a_reinstalled_server() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = HostLedger::open(&StateDir::at(folder.path()).unwrap()).unwrap();
        ledger.learn_from_provider("ml1", &key().to_openssh().unwrap(), "now").unwrap();
        let new = key();
        ledger.learn_from_provider("ml1", &new.to_openssh().unwrap(), "later").unwrap();
        assert!(ledger.pinned("ml1").unwrap().fits(&new));
    }

    #[test]
    fn a_key_that_is_none_is_named_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = HostLedger::open(&StateDir::at(folder.path()).unwrap()).unwrap();
        for wrong in ["ssh-ed25519 nonsense", "SHA256:short", ""] {
            let error = ledger.learn_from_inventory("ml1", wrong, "now").unwrap_err();
            assert!(error.to_string().contains("ml1"), "{error}");
        }
    }
}
