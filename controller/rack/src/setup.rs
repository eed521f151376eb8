//! From an inventory to what acting needs: targets with keys, a ledger that knows the host keys, secrets.

use crate::connect::Target;
use crate::credential::{Credential, CredentialError};
use crate::ledger::{HostLedger, LedgerError};
use rackwright_core::inventory::{Inventory, SecretRef};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// What a provider that makes servers itself says about them: the lab.
#[derive(Debug, Clone, Default)]
pub struct Provider {
    /// The key that its servers take, where the inventory names none.
    pub key: Option<PathBuf>,
    /// Public host keys by server.
    pub host_keys: BTreeMap<String, String>,
    /// Whether secrets that do not exist may be made up: nobody chose them, and nobody needs to know them.
    pub makes_secrets: bool,
}

/// Something that the inventory refers to is not there.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// An SSH key.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A host key.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A secret.
    #[error("resolve the secret {reference}")]
    Secret {
        /// The reference, never the value.
        reference: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How each server is reached. Without a key in inventory and provider, the running ssh-agent's are used.
pub fn targets(inventory: &Inventory, provider: &Provider) -> Result<Vec<Target>, SetupError> {
    let mut read: BTreeMap<PathBuf, Credential> = BTreeMap::new();
    let mut targets = Vec::new();
    for server in &inventory.servers {
        let path = match &server.ssh.key {
            Some(SecretRef::File(path)) => Some(home(path)),
            Some(SecretRef::Env(name)) => std::env::var_os(name).map(PathBuf::from),
            None => provider.key.clone(),
        };
        let credential = match path {
            None => Credential::Agent,
            Some(path) => credential(&mut read, path)?,
        };
        targets.push(Target {
            server: server.name.clone(),
            host: server.address.to_string(),
            port: server.ssh.port,
            user: server.ssh.user.clone(),
            credential,
            bastion: server.bastion.clone(),
        });
    }
    Ok(targets)
}

/// Each key file is read once.
fn credential(
    read: &mut BTreeMap<PathBuf, Credential>,
    path: PathBuf,
) -> Result<Credential, CredentialError> {
    if let Some(known) = read.get(&path) {
        return Ok(known.clone());
    }
    let credential = Credential::from_file(&path)?;
    read.insert(path, credential.clone());
    Ok(credential)
}

/// Tells the ledger what inventory and provider know. `now` is RFC 3339.
pub fn learn(
    ledger: &mut HostLedger,
    inventory: &Inventory,
    provider: &Provider,
    now: &str,
) -> Result<(), SetupError> {
    for server in &inventory.servers {
        match (&server.ssh.host_key, provider.host_keys.get(&server.name)) {
            (Some(fingerprint), _) => ledger.learn_from_inventory(&server.name, fingerprint, now)?,
            (None, Some(key)) => ledger.learn_from_provider(&server.name, key, now)?,
            (None, None) => {}
        }
    }
    Ok(())
}

/// The secrets that playbooks use, by the names that they use.
pub fn secrets(inventory: &Inventory, provider: &Provider) -> Result<BTreeMap<String, String>, SetupError> {
    let named = [
        ("clickhouse_password", &inventory.data.clickhouse_password),
        ("minio_secret_key", &inventory.data.minio_secret_key),
    ];
    named
        .into_iter()
        .map(|(name, reference)| Ok((name.to_owned(), resolve(reference, provider.makes_secrets)?)))
        .collect()
}

fn resolve(reference: &SecretRef, may_make: bool) -> Result<String, SetupError> {
    let failed = |source| SetupError::Secret { reference: reference.to_string(), source };
    let found = match reference {
        SecretRef::Env(name) => std::env::var(name).map_err(io::Error::other),
        SecretRef::File(path) => read(&home(path), may_make),
    };
    let secret = found.map_err(failed)?;
    // A database without a password would be open to every pod.
    if secret.is_empty() { Err(failed(io::Error::other("it is empty"))) } else { Ok(secret) }
}

fn read(path: &Path, may_make: bool) -> io::Result<String> {
    let text = match fs::read_to_string(path) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound && may_make => {
            make(path)?;
            fs::read_to_string(path)
        }
        text => text,
    };
    Ok(text?.trim_end_matches('\n').to_owned())
}

/// 128 random bits, in a file that only its owner reads; whole from its first moment. Of two that make it at once one
/// wins.
fn make(path: &Path) -> io::Result<()> {
    let mut bytes = [0; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .or(Err(io::Error::other("the operating system gave no random bytes")))?;
    let secret = hex::encode(bytes);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(secret.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(taken) if taken.error.kind() != io::ErrorKind::AlreadyExists => Err(taken.error),
        Ok(_) | Err(_) => fs::File::open(folder)?.sync_all(),
    }
}

fn home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_lab_makes_its_secrets_once_and_keeps_them_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets/clickhouse");
        let reference = SecretRef::File(path.clone());
        assert!(matches!(resolve(&reference, false), Err(SetupError::Secret { .. })));
        let made = resolve(&reference, true).unwrap();
        assert_eq!(made.len(), 32);
        assert_eq!(resolve(&reference, false).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "\n").unwrap();
        assert!(matches!(resolve(&reference, true), Err(SetupError::Secret { .. })), "no empty password");
    }

    #[test]
    fn an_error_names_the_reference_and_never_a_value() {
        let missing = resolve(&SecretRef::Env("RACKWRIGHT_NO_SUCH_VARIABLE".to_owned()), true);
        assert!(missing.unwrap_err().to_string().ends_with("env:RACKWRIGHT_NO_SUCH_VARIABLE"));
    }
}
