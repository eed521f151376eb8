//! What a certificate request asks for, read strictly: anything that this project never asks for is an
//! error, so that a request cannot smuggle something past the comparison with the plan.

use std::collections::BTreeSet;
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The names and usages of a certificate: asked by a request, or granted by a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Subject common name.
    pub common_name: String,
    /// Subject organisation; empty for none.
    pub organization: String,
    /// DNS names and IP addresses.
    pub sans: BTreeSet<String>,
    /// Extended key usage server authentication.
    pub server: bool,
    /// Extended key usage client authentication.
    pub client: bool,
}

/// A request that was read and whose signature holds.
#[derive(Debug)]
pub struct Request {
    /// What it asks for.
    pub names: Names,
    /// The public key to certify, SPKI DER.
    pub public_key: Vec<u8>,
}

/// A request that is none of ours.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Not PEM, or another kind of PEM block.
    #[error("read the certificate request: it is no PEM block of that kind")]
    NotPem,
    /// Not PKCS#10.
    #[error("read the certificate request: it is no PKCS#10")]
    NotPkcs10,
    /// The key that signs is not the key that is to be certified.
    #[error("read the certificate request: its signature does not hold")]
    BadSignature,
    /// The key is not on P-256.
    #[error("read the certificate request: its key is not on P-256")]
    KeyType,
    /// It asks for something that no step can ask for.
    #[error("read the certificate request: it asks for {0}, which no step may")]
    Unexpected(String),
}

/// Reads a PEM request.
pub fn read(pem: &str) -> Result<Request, CsrError> {
    let mut bytes = pem.as_bytes();
    let Ok(Some(rustls_pemfile::Item::Csr(der))) = rustls_pemfile::read_one(&mut bytes) else {
        return Err(CsrError::NotPem);
    };
    let (rest, request) = X509CertificationRequest::from_der(der.as_ref()).or(Err(CsrError::NotPkcs10))?;
    if !rest.is_empty() {
        return Err(CsrError::NotPkcs10);
    }
    request.verify_signature().or(Err(CsrError::BadSignature))?;
    let info = &request.certification_request_info;
    require_p256(&info.subject_pki)?;
    let (common_name, organization) = subject(&info.subject)?;
    let mut names = Names { common_name, organization, sans: BTreeSet::new(), server: false, client: false };
    let mut requests = 0;
    for attribute in info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
            return Err(CsrError::Unexpected(format!("the attribute {}", attribute.oid)));
        };
        requests += 1;
        for extension in &asked.extensions {
            read_extension(extension.parsed_extension(), &extension.oid.to_string(), &mut names)?;
        }
    }
    if requests > 1 {
        return Err(CsrError::Unexpected("extensions twice".to_owned()));
    }
    Ok(Request { names, public_key: info.subject_pki.raw.to_vec() })
}

fn require_p256(key: &SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if curve.is_some_and(|oid| oid == OID_EC_P256) { Ok(()) } else { Err(CsrError::KeyType) }
}

fn subject(name: &x509_parser::x509::X509Name<'_>) -> Result<(String, String), CsrError> {
    let (mut common_name, mut organization) = (None, None);
    for part in name.iter_attributes() {
        let text = part.as_str().or(Err(CsrError::Unexpected("a subject that is no text".to_owned())))?;
        let slot = if *part.attr_type() == OID_X509_COMMON_NAME {
            &mut common_name
        } else if *part.attr_type() == OID_X509_ORGANIZATION_NAME {
            &mut organization
        } else {
            return Err(CsrError::Unexpected(format!("the subject attribute {}", part.attr_type())));
        };
        if slot.replace(text.to_owned()).is_some() {
            return Err(CsrError::Unexpected("a subject attribute twice".to_owned()));
        }
    }
    Ok((common_name.unwrap_or_default(), organization.unwrap_or_default()))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else exists or will exist is refused")]
fn read_extension(extension: &ParsedExtension<'_>, oid: &str, names: &mut Names) -> Result<(), CsrError> {
    let unexpected = |what: String| Err(CsrError::Unexpected(what));
    match extension {
        ParsedExtension::SubjectAlternativeName(asked) => {
            for name in &asked.general_names {
                names.sans.insert(san(name)?);
            }
            Ok(())
        }
        ParsedExtension::ExtendedKeyUsage(usage) => {
            let more = usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            if more {
                return unexpected("another usage than server and client authentication".to_owned());
            }
            names.server |= usage.server_auth;
            names.client |= usage.client_auth;
            Ok(())
        }
        ParsedExtension::KeyUsage(usage) => {
            // digitalSignature and keyEncipherment are what a TLS key does; they are granted anyway.
            if usage.key_cert_sign() || usage.crl_sign() {
                return unexpected("the right to sign certificates".to_owned());
            }
            Ok(())
        }
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            unexpected("the right to sign certificates".to_owned())
        }
        ParsedExtension::BasicConstraints(_) => Ok(()),
        _ => unexpected(format!("the extension {oid}")),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else exists or will exist is refused")]
fn san(name: &GeneralName<'_>) -> Result<String, CsrError> {
    let odd = || CsrError::Unexpected(format!("the alternative name {name}"));
    match name {
        GeneralName::DNSName(dns) => Ok((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
                _ => None,
            };
            address.map(|address| address.to_string()).ok_or_else(odd)
        }
        _ => Err(odd()),
    }
}
