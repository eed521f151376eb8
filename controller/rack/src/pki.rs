//! The cluster's certificate authorities, kept on the operator's machine.
//!
//! Four CAs (kubernetes, etcd, front-proxy and the data plane's own), ECDSA on P-256, in `pki/` of the
//! cluster's state folder, keys 0600. **Custody**: whoever reads this folder can become anybody in the
//! cluster; keep it on an encrypted disk and back it up offline. Recovery: put the folder back; without it
//! the cluster runs on until its certificates end, but nothing can be renewed or added.
//!
//! Keys of servers are made on the servers and never come here. A request is compared with the plan's
//! step, and what is signed is taken from the plan, never from the request.

use crate::csr::{self, CsrError, Names};
use crate::state::{StateDir, StateError};
use rackwright_wire::step::CertificateStep;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, SubjectPublicKeyInfo,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// The CAs that every cluster has.
pub const AUTHORITIES: [&str; 4] = ["kubernetes", "etcd", "front-proxy", "data"];
/// A CA lives ten years.
const CA_LIFE_S: u64 = 10 * 365 * 86_400;
/// Certificates begin five minutes before they are made: clocks differ.
const BACKDATE_S: u64 = 300;
const RESTORE: &str = "put both files of this authority back from the backup of the state folder; without a backup the rack \
                       must become a new cluster";

/// A CA could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Its files could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Only one of key and certificate is there.
    #[error("open the {ca} authority: {} is there without {}", present.display(), missing.display())]
    Half {
        /// The authority.
        ca: String,
        /// The file that is there.
        present: PathBuf,
        /// The file that is missing.
        missing: PathBuf,
    },
    /// Key and certificate are of two authorities.
    #[error("open the {ca} authority: {} is not the key of {}", key.display(), cert.display())]
    Strangers {
        /// The authority.
        ca: String,
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// A file of it is damaged.
    #[error("open the {ca} authority: read {}", path.display())]
    Damaged {
        /// The authority.
        ca: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A key or certificate could not be made.
    #[error("{what} the {ca} authority")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// The authority.
        ca: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// No such authority.
    #[error("find a certificate authority named {0:?}")]
    Unknown(String),
    /// The operating system gave no random bytes.
    #[error("get random bytes for a serial number")]
    Entropy,
}

impl PkiError {
    /// What the operator can do, where the state folder is what is wrong.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Half { .. } => Some(
                "put both files back from the backup of the state folder, and never one alone; without a backup the \
                 rack must become a new cluster. Where nothing was ever applied, remove the one that is left",
            ),
            Self::Strangers { .. } | Self::Damaged { .. } => Some(RESTORE),
            // Bytes that are no text are damage too.
            Self::State(StateError::Io { source, .. }) if source.kind() == ErrorKind::InvalidData => {
                Some(RESTORE)
            }
            Self::State(_) | Self::Crypto { .. } | Self::Unknown(_) | Self::Entropy => None,
        }
    }
}

/// A request is refused.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It cannot be read.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// It differs from the step.
    #[error("sign: the request asks for {asked}, the plan grants {granted}")]
    Differs {
        /// The part that differs, as asked.
        asked: String,
        /// The same part, as granted.
        granted: String,
    },
    /// The authority failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// A signed certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The leaf.
    pub cert: String,
    /// The authority's certificate.
    pub ca: String,
}

/// A certificate with its key, made here for a tool on this machine, PEM.
#[derive(Clone)]
pub struct Issued {
    /// The leaf.
    pub cert: String,
    /// Its private key, PKCS#8.
    pub key: String,
    /// The authority's certificate.
    pub ca: String,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    sha256: String,
}

/// All authorities of one cluster.
pub struct Authorities {
    by_name: BTreeMap<String, Authority>,
}

impl Authorities {
    /// Opens the authorities and makes those that are missing. `now_s` is in seconds since the epoch.
    pub fn open(state: &StateDir, cluster: &str, now_s: u64) -> Result<Self, PkiError> {
        let _turn = state.turn()?;
        let mut by_name = BTreeMap::new();
        for name in AUTHORITIES {
            by_name.insert(name.to_owned(), Authority::open(state, cluster, name, now_s)?);
        }
        Ok(Self { by_name })
    }

    /// SHA-256 (hex) over the DER of an authority's certificate.
    pub fn fingerprint(&self, ca: &str) -> Result<&str, PkiError> {
        Ok(&self.get(ca)?.sha256)
    }

    /// An authority's certificate, PEM.
    pub fn certificate(&self, ca: &str) -> Result<&str, PkiError> {
        Ok(&self.get(ca)?.certificate)
    }

    /// Names and fingerprints of all authorities: what a playbook's templates know about them.
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        self.by_name.iter().map(|(name, authority)| (name.clone(), authority.sha256.clone())).collect()
    }

    /// Signs a server's request if it asks for exactly what the step grants, with the step's names,
    /// usages and life.
    pub fn sign(&self, request: &str, step: &CertificateStep, now_s: u64) -> Result<Signed, SignError> {
        let request = csr::read(request)?;
        let granted = granted(step);
        if let Some((asked, granted)) = first_difference(&request.names, &granted) {
            return Err(SignError::Differs { asked, granted });
        }
        let authority = self.get(&step.ca)?;
        let key = SubjectPublicKeyInfo::from_der(&request.public_key).map_err(|source| PkiError::Crypto {
            what: "read a key for",
            ca: step.ca.clone(),
            source,
        })?;
        let life_s = u64::from(step.life_hours) * 3600;
        let cert = authority.certify(&step.ca, &granted, &key, life_s, now_s)?;
        Ok(Signed { cert, ca: authority.certificate.clone() })
    }

    /// Makes a key and a certificate for a tool on this machine.
    pub fn issue(&self, ca: &str, names: &Names, life_s: u64, now_s: u64) -> Result<Issued, PkiError> {
        let authority = self.get(ca)?;
        let crypto = |source| PkiError::Crypto { what: "make a key for", ca: ca.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let cert = authority.certify(ca, names, &key, life_s, now_s)?;
        Ok(Issued { cert, key: key.serialize_pem(), ca: authority.certificate.clone() })
    }

    /// A client certificate of the operator for one of the authorities, for a tool on this machine.
    pub fn client(
        &self,
        ca: &str,
        name: &str,
        group: &str,
        life_s: u64,
        now_s: u64,
    ) -> Result<Issued, PkiError> {
        let names = Names {
            common_name: name.to_owned(),
            organization: group.to_owned(),
            sans: std::collections::BTreeSet::new(),
            server: false,
            client: true,
        };
        self.issue(ca, &names, life_s, now_s)
    }

    fn get(&self, ca: &str) -> Result<&Authority, PkiError> {
        self.by_name.get(ca).ok_or_else(|| PkiError::Unknown(ca.to_owned()))
    }
}

impl Authority {
    fn open(state: &StateDir, cluster: &str, name: &str, now_s: u64) -> Result<Self, PkiError> {
        let (key_file, cert_file) = (format!("pki/{name}.key"), format!("pki/{name}.crt"));
        let at = |file: &str| state.path(file);
        let half = |present, missing| PkiError::Half { ca: name.to_owned(), present, missing };
        let load =
            |key: &str, certificate| Self::load(name, (at(&key_file), key), (at(&cert_file), certificate));
        match (state.read(&key_file)?, state.read(&cert_file)?) {
            (Some(key), Some(certificate)) => load(&key, certificate),
            (Some(_), None) => Err(half(at(&key_file), at(&cert_file))),
            (None, Some(_)) => Err(half(at(&cert_file), at(&key_file))),
            (None, None) => {
                let (key, certificate) = make(cluster, name, now_s)?;
                // Certificate first: a kill in between leaves a half that is reported, never a key
                // that signs under another certificate.
                state.write(&cert_file, &certificate)?;
                state.write(&key_file, &key)?;
                load(&key, certificate)
            }
        }
    }

    /// Key and certificate come with their files' paths, for errors.
    fn load(
        name: &str,
        (key_path, key): (PathBuf, &str),
        (cert_path, certificate): (PathBuf, String),
    ) -> Result<Self, PkiError> {
        let damaged =
            |path: &PathBuf, source| PkiError::Damaged { ca: name.to_owned(), path: path.clone(), source };
        let key = KeyPair::from_pem(key).map_err(|source| damaged(&key_path, source))?;
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        let issuer =
            Issuer::from_ca_cert_pem(&certificate, key).map_err(|source| damaged(&cert_path, source))?;
        let mut bytes = certificate.as_bytes();
        let Ok(Some(rustls_pemfile::Item::X509Certificate(der))) = rustls_pemfile::read_one(&mut bytes)
        else {
            return Err(damaged(&cert_path, rcgen::Error::CouldNotParseCertificate));
        };
        // A certificate holds its public key as that key itself is encoded.
        if !der.windows(public.len()).any(|part| part == public) {
            return Err(PkiError::Strangers { ca: name.to_owned(), key: key_path, cert: cert_path });
        }
        let sha256 = hex::encode(Sha256::digest(&der));
        Ok(Self { issuer, certificate, sha256 })
    }

    fn certify(
        &self,
        ca: &str,
        names: &Names,
        key: &impl rcgen::PublicKeyData,
        life_s: u64,
        now_s: u64,
    ) -> Result<String, PkiError> {
        let crypto = |source| PkiError::Crypto { what: "sign with", ca: ca.to_owned(), source };
        let sans: Vec<String> = names.sans.iter().cloned().collect();
        let mut params = CertificateParams::new(sans).map_err(crypto)?;
        params.distinguished_name = subject(&names.common_name, &names.organization);
        params.serial_number = Some(serial()?);
        set_life(&mut params, life_s, now_s);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if names.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if names.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer).map_err(crypto)?.pem())
    }
}

/// The key and the self-signed certificate of a new authority, PEM.
fn make(cluster: &str, name: &str, now_s: u64) -> Result<(String, String), PkiError> {
    let crypto = |source| PkiError::Crypto { what: "make", ca: name.to_owned(), source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("{name} authority"), &format!("rackwright {cluster}"));
    params.serial_number = Some(serial()?);
    set_life(&mut params, CA_LIFE_S, now_s);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(crypto)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

fn granted(step: &CertificateStep) -> Names {
    Names {
        common_name: step.common_name.clone(),
        organization: step.organization.clone(),
        sans: step.sans.iter().cloned().collect(),
        server: step.server,
        client: step.client,
    }
}

fn first_difference(asked: &Names, granted: &Names) -> Option<(String, String)> {
    let part = |label: &str, asked: &dyn std::fmt::Debug, granted: &dyn std::fmt::Debug| {
        Some((format!("{label} {asked:?}"), format!("{granted:?}")))
    };
    if asked.common_name != granted.common_name {
        return part("common name", &asked.common_name, &granted.common_name);
    }
    if asked.organization != granted.organization {
        return part("organisation", &asked.organization, &granted.organization);
    }
    if asked.sans != granted.sans {
        return part("names", &asked.sans, &granted.sans);
    }
    if (asked.server, asked.client) != (granted.server, granted.client) {
        return part(
            "usages (server, client)",
            &(asked.server, asked.client),
            &(granted.server, granted.client),
        );
    }
    None
}

fn subject(common_name: &str, organization: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !organization.is_empty() {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// 127 random bits: two certificates of one key must still differ (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .or(Err(PkiError::Entropy))?;
    // The first bit is the sign in DER.
    if let Some(first) = bytes.first_mut() {
        *first &= 0x7f;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_life(params: &mut CertificateParams, life_s: u64, now_s: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now_s.saturating_sub(BACKDATE_S));
    params.not_after = epoch + Duration::from_secs(now_s.saturating_add(life_s));
}

#[cfg(test)]
mod tests;
