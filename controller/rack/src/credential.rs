//! What the controller logs in with: a key file of the operator, or the keys of a running ssh-agent.

use russh::keys::{Algorithm, PrivateKey, load_secret_key};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a session is opened with.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A private key that was read from a file.
    Key(Arc<PrivateKey>),
    /// Every key that the agent at `SSH_AUTH_SOCK` offers.
    Agent,
}

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// RSA, which the ring-only build does not sign with.
    #[error("use the SSH key {}: it is an RSA key, and this build has none", path.display())]
    Rsa {
        /// Of the key file.
        path: PathBuf,
    },
    /// The file is protected by a passphrase.
    #[error("use the SSH key {}: it is protected by a passphrase", path.display())]
    Encrypted {
        /// Of the key file.
        path: PathBuf,
    },
    /// The file is missing, unreadable or no private key.
    #[error("read the SSH key {}", path.display())]
    Unreadable {
        /// Of the key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
}

impl CredentialError {
    /// What the operator can do.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => {
                "make an Ed25519 key with `ssh-keygen -t ed25519`, add its .pub line to root's authorized_keys on \
                 every server, and name it as ssh.key in the inventory; RSA is left out on purpose (docs/operators.md)"
            }
            Self::Encrypted { .. } => {
                "load it with `ssh-add` and leave ssh.key out of the inventory: keys of a running ssh-agent are used"
            }
            Self::Unreadable { .. } => "ssh.key must name an OpenSSH private key (not the .pub file)",
        }
    }
}

impl Credential {
    /// Reads a private key file in OpenSSH or PKCS#8 format.
    pub fn from_file(path: &Path) -> Result<Self, CredentialError> {
        let key = load_secret_key(path, None).map_err(|source| name_problem(path, source))?;
        if matches!(key.algorithm(), Algorithm::Rsa { .. }) {
            return Err(CredentialError::Rsa { path: path.to_owned() });
        }
        Ok(Self::Key(Arc::new(key)))
    }
}

fn name_problem(path: &Path, source: russh::keys::Error) -> CredentialError {
    let path = path.to_owned();
    // russh answers with several errors for an RSA key that it was built without, depending on the
    // container format; the key's own text says it plainly.
    if is_rsa(&path) {
        return CredentialError::Rsa { path };
    }
    if matches!(source, russh::keys::Error::KeyIsEncrypted) {
        return CredentialError::Encrypted { path };
    }
    CredentialError::Unreadable { path, source }
}

fn is_rsa(path: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else {
        return false;
    };
    if text.contains("BEGIN RSA PRIVATE KEY") {
        return true;
    }
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let raw = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body.trim());
    raw.is_ok_and(|bytes| bytes.windows(7).any(|window| window == b"ssh-rsa"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rsa_key_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id_rsa");
        std::fs::write(&path, "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----\n")
            .unwrap();
        let error = Credential::from_file(&path).unwrap_err();
        assert!(matches!(error, CredentialError::Rsa { .. }), "{error:?}");
        assert!(error.help().contains("ed25519"));
    }

    #[test]
    fn an_rsa_key_in_the_openssh_format_is_named_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id_rsa");
        let mut raw = b"openssh-key-v1\0\0\0\0\x04none\0\0\0\x04none\0\0\0\0\0\0\0\x01".to_vec();
        raw.extend(b"\0\0\0\x17\0\0\0\x07ssh-rsa\0\0\0\x03\x01\0\x01\0\0\0\x01\x05");
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, raw);
        let text =
            format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Credential::from_file(&path).unwrap_err(), CredentialError::Rsa { .. }));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Credential::from_file(Path::new("/nowhere/id")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/id"));
    }
}
