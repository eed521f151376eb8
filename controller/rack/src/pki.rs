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
use std::time::Duration;

/// The CAs that every cluster has.
pub const AUTHORITIES: [&str; 4] = ["kubernetes", "etcd", "front-proxy", "data"];
/// A CA lives ten years.
const CA_LIFE_S: u64 = 10 * 365 * 86_400;
/// Certificates begin five minutes before they are made: clocks differ.
const BACKDATE_S: u64 = 300;

/// A CA could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Its files could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Only one of key and certificate is there.
    #[error("open the {ca} authority: pki/{ca}.{present} is there without pki/{ca}.{missing}")]
    Half {
        /// The authority.
        ca: String,
        /// File suffix that is there.
        present: &'static str,
        /// File suffix that is missing.
        missing: &'static str,
    },
    /// Key and certificate are of two authorities.
    #[error("open the {ca} authority: pki/{ca}.key is not the key of pki/{ca}.crt")]
    Strangers {
        /// The authority.
        ca: String,
    },
    /// Key or certificate make no sense.
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
        let half = |present, missing| PkiError::Half { ca: name.to_owned(), present, missing };
        match (state.read(&key_file)?, state.read(&cert_file)?) {
            (Some(key), Some(certificate)) => Self::load(name, &key, certificate),
            (Some(_), None) => Err(half("key", "crt")),
            (None, Some(_)) => Err(half("crt", "key")),
            (None, None) => {
                let (key, certificate) = make(cluster, name, now_s)?;
                // Certificate first: a kill in between leaves a half that is reported, never a key
                // that signs under another certificate.
                state.write(&cert_file, &certificate)?;
                state.write(&key_file, &key)?;
                Self::load(name, &key, certificate)
            }
        }
    }

    fn load(name: &str, key: &str, certificate: String) -> Result<Self, PkiError> {
        let crypto = |source| PkiError::Crypto { what: "open", ca: name.to_owned(), source };
        let key = KeyPair::from_pem(key).map_err(crypto)?;
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(crypto)?;
        let mut bytes = certificate.as_bytes();
        let Ok(Some(rustls_pemfile::Item::X509Certificate(der))) = rustls_pemfile::read_one(&mut bytes)
        else {
            return Err(crypto(rcgen::Error::CouldNotParseCertificate));
        };
        // A certificate holds its public key as that key itself is encoded.
        if !der.windows(public.len()).any(|part| part == public) {
            return Err(PkiError::Strangers { ca: name.to_owned() });
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
mod tests {
    use super::*;
    use rcgen::CustomExtension;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    const NOW: u64 = 1_790_000_000;
    type Greed = (&'static str, fn(&mut CertificateParams));

    fn authorities() -> (tempfile::TempDir, Authorities) {
        let folder = tempfile::tempdir().unwrap();
        let authorities = Authorities::open(&StateDir::at(folder.path()).unwrap(), "lab", NOW).unwrap();
        (folder, authorities)
    }

    fn step() -> CertificateStep {
        CertificateStep {
            ca: "etcd".to_owned(),
            common_name: "control1".to_owned(),
            organization: String::new(),
            sans: vec!["10.77.0.11".to_owned(), "control1".to_owned()],
            server: true,
            client: true,
            cert: "/etc/x.crt".to_owned(),
            key: "/etc/x.key".to_owned(),
            ca_cert: "/etc/ca.crt".to_owned(),
            ca_sha256: String::new(),
            owner: "root:root".to_owned(),
            life_hours: 24,
            renew_hours: 8,
        }
    }

    /// What an honest agent asks for.
    fn honest(step: &CertificateStep) -> CertificateParams {
        let mut params = CertificateParams::new(step.sans.clone()).unwrap();
        params.distinguished_name = subject(&step.common_name, &step.organization);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn pem(params: &CertificateParams) -> String {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (folder, _authorities) = authorities();
        let pki = folder.path().join("pki");
        std::fs::copy(pki.join("data.key"), pki.join("etcd.key")).unwrap();
        let opened = Authorities::open(&StateDir::at(folder.path()).unwrap(), "lab", NOW);
        assert!(matches!(opened.err(), Some(PkiError::Strangers { ca }) if ca == "etcd"));
    }

    #[test]
    fn an_honest_request_gets_what_the_plan_grants() {
        let (_folder, authorities) = authorities();
        let signed = authorities.sign(&pem(&honest(&step())), &step(), NOW).unwrap();
        assert_eq!(signed.ca, authorities.certificate("etcd").unwrap());
        let der = rustls_pemfile::certs(&mut signed.cert.as_bytes()).next().unwrap().unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let ca = rustls_pemfile::certs(&mut signed.ca.as_bytes()).next().unwrap().unwrap();
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(leaf.subject().to_string(), "CN=control1");
        assert!(!leaf.is_ca());
        let life = leaf.validity();
        assert_eq!(life.not_before.timestamp(), i64::try_from(NOW - BACKDATE_S).unwrap());
        assert_eq!(life.not_after.timestamp(), i64::try_from(NOW + 24 * 3600).unwrap());
    }

    #[test]
    fn two_certificates_of_one_key_have_different_serials() {
        let (_folder, authorities) = authorities();
        let request = pem(&honest(&step()));
        let first = authorities.sign(&request, &step(), NOW).unwrap();
        let second = authorities.sign(&request, &step(), NOW).unwrap();
        assert_ne!(first.cert, second.cert);
    }

    #[test]
    fn a_request_that_asks_for_more_or_other_than_its_step_is_refused() {
        let (_folder, authorities) = authorities();
        let greedy: [Greed; 9] = [
            ("another name", |p| p.distinguished_name = subject("admin", "")),
            ("a group", |p| {
                p.distinguished_name = subject("control1", "system:masters");
            }),
            ("one more address", |p| {
                p.subject_alt_names.push(rcgen::SanType::IpAddress([10, 0, 0, 1].into()));
            }),
            ("fewer names", |p| p.subject_alt_names.clear()),
            ("no client usage", |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            ("code signing", |p| {
                p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning);
            }),
            ("to be an authority", |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            ("to sign certificates", |p| {
                p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            }),
            ("an extension of its own", |p| {
                let odd = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                p.custom_extensions.push(odd);
            }),
        ];
        for (what, change) in greedy {
            let mut params = honest(&step());
            change(&mut params);
            let refused = authorities.sign(&pem(&params), &step(), NOW);
            assert!(refused.is_err(), "a request for {what} was signed");
        }
    }

    #[test]
    fn a_request_whose_signature_was_changed_is_refused() {
        let (_folder, authorities) = authorities();
        let text = pem(&honest(&step()));
        let item = rustls_pemfile::read_one(&mut text.as_bytes()).unwrap();
        let Some(rustls_pemfile::Item::Csr(der)) = item else { panic!("{item:?}") };
        let mut der = der.to_vec();
        let at = der.windows(8).position(|window| window == b"control1").unwrap();
        der[at + 7] = b'2';
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        let forged =
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        let refused = authorities.sign(&forged, &step(), NOW).unwrap_err();
        assert!(matches!(refused, SignError::Csr(CsrError::BadSignature)), "{refused}");
    }

    #[test]
    fn authorities_stay_the_same_and_their_keys_are_private() {
        let (folder, first) = authorities();
        let state = StateDir::at(folder.path()).unwrap();
        let again = Authorities::open(&state, "lab", NOW + 999).unwrap();
        assert_eq!(first.fingerprints(), again.fingerprints());
        assert_eq!(first.fingerprints().len(), 4);
    }

    #[test]
    fn half_an_authority_is_reported_and_not_replaced() {
        let (folder, _first) = authorities();
        std::fs::remove_file(folder.path().join("pki/etcd.key")).unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        assert!(matches!(Authorities::open(&state, "lab", NOW), Err(PkiError::Half { .. })));
        assert!(folder.path().join("pki/etcd.crt").exists());
    }
}
