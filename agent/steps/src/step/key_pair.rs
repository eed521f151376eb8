//! `key_pair`: a private key made on this server, and its public half. A key that is there is kept.

use super::Found;
use super::attributes::Attributes;
use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use rackwright_wire::step::KeyAlgorithm;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};
use std::path::Path;

/// A key pair as a step wants it.
pub(super) struct Wanted<'a> {
    pub(super) key: &'a str,
    pub(super) public: &'a str,
    pub(super) algorithm: KeyAlgorithm,
    pub(super) owner: &'a str,
}

impl Wanted<'_> {
    pub(super) fn check(&self, host: &Host) -> Result<Option<Found>, StepError> {
        let Some(key) = read(&host.path(self.key), algorithm(self.algorithm)) else {
            return Ok(Some(Found::new(format!("make key {}", self.key))));
        };
        let public = std::fs::read_to_string(host.path(self.public)).unwrap_or_default();
        if public.trim() != key.public_key_pem().trim() {
            return Ok(Some(Found::new(format!("write public key {}", self.public))));
        }
        let mut lines = Attributes::resolve(host, "0600", self.owner)?.differences(&host.path(self.key))?;
        lines.extend(Attributes::resolve(host, "0644", self.owner)?.differences(&host.path(self.public))?);
        Ok((!lines.is_empty()).then(|| {
            Found::new(format!("change mode or owner of {}", self.key)).with_detail(lines.join("\n"))
        }))
    }

    pub(super) fn apply(&self, host: &Host) -> Result<(), StepError> {
        let key = keep_or_make(host, self.key, self.owner, algorithm(self.algorithm))?;
        let attributes = Attributes::resolve(host, "0644", self.owner)?;
        write(&host.path(self.public), key.public_key_pem().as_bytes(), attributes)
    }
}

fn algorithm(algorithm: KeyAlgorithm) -> &'static SignatureAlgorithm {
    match algorithm {
        KeyAlgorithm::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
        KeyAlgorithm::Ed25519 => &PKCS_ED25519,
    }
}

/// The key in a PEM file, if it is one of this algorithm.
pub(super) fn read(path: &Path, algorithm: &SignatureAlgorithm) -> Option<KeyPair> {
    let key = KeyPair::from_pem(&std::fs::read_to_string(path).ok()?).ok()?;
    (key.algorithm() == algorithm).then_some(key)
}

/// The key at `path`, or a new one put there; mode 0600 either way.
pub(super) fn keep_or_make(
    host: &Host,
    path: &str,
    owner: &str,
    algorithm: &'static SignatureAlgorithm,
) -> Result<KeyPair, StepError> {
    let attributes = Attributes::resolve(host, "0600", owner)?;
    let place = host.path(path);
    if let Some(key) = read(&place, algorithm) {
        attributes.set(&place)?;
        return Ok(key);
    }
    let key = KeyPair::generate_for(algorithm)
        .map_err(|error| StepError::new(Code::Io, format!("make a key for {path}")).because(error))?;
    write(&place, key.serialize_pem().as_bytes(), attributes)?;
    Ok(key)
}

/// Writes a file of a key or certificate, making its folder when it is missing.
pub(super) fn write(place: &Path, content: &[u8], attributes: Attributes) -> Result<(), StepError> {
    place
        .parent()
        .map_or(Ok(()), |folder| durable::make_dir(folder, 0o755))
        .and_then(|()| durable::write(place, content, attributes.mode, Some(attributes.owner)))
        .map_err(|error| StepError::io("write", place, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_key_is_made_once_and_its_public_half_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let me = fs::metadata(dir.path()).unwrap();
        let owner = format!("{}:{}", me.uid(), me.gid());
        for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::Ed25519] {
            let key = format!("/pki/{algorithm:?}.key");
            let pair = Wanted { key: &key, public: "/pki/public", algorithm, owner: &owner };
            assert!(pair.check(&host).unwrap().is_some());
            pair.apply(&host).unwrap();
            assert_eq!(pair.check(&host).unwrap(), None);
            let first = fs::read(host.path(&key)).unwrap();
            fs::write(host.path("/pki/public"), "other").unwrap();
            fs::set_permissions(host.path(&key), fs::Permissions::from_mode(0o644)).unwrap();
            pair.apply(&host).unwrap();
            assert_eq!(fs::read(host.path(&key)).unwrap(), first);
            assert_eq!(pair.check(&host).unwrap(), None);
        }
    }
}
