//! `certificate`: a key made on this server, and a certificate of one of our CAs for it.
//!
//! The private key never leaves the server: the controller gets a request and gives back a certificate,
//! which is held against the step before it is written.

use super::Found;
use super::attributes::Attributes;
use super::key_pair;
use crate::controller::Controller;
use crate::error::{Code, StepError};
use crate::hashes::hash_bytes;
use crate::host::Host;
use crate::pem;
use rackwright_wire::event::{Ask, Reply};
use rackwright_wire::step::CertificateStep;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The controller answers within a round trip; this is for one that is being started again.
const SIGN_LIMIT: Duration = Duration::from_mins(10);
const HOUR_S: i64 = 3600;

pub(super) fn check(host: &Host, wanted: &CertificateStep) -> Result<Option<Found>, StepError> {
    let (cert, ca) = (host.path(&wanted.cert), host.path(&wanted.ca_cert));
    let Ok(cert_pem) = std::fs::read(&cert) else {
        return Ok(Some(Found::new(format!("issue {}", wanted.cert))));
    };
    let ca_pem = std::fs::read(&ca).unwrap_or_default();
    let key = key_pair::read(&host.path(&wanted.key), &PKCS_ECDSA_P256_SHA256);
    let faults = faults(wanted, &cert_pem, &ca_pem, key.as_ref(), host.now_s());
    if let [Fault::Old { hours_left }] = faults.as_slice() {
        return Ok(Some(Found::new(format!("renew {} ({hours_left} h left)", wanted.cert))));
    }
    if !faults.is_empty() {
        let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
        return Ok(Some(Found::new(format!("issue {}", wanted.cert)).with_detail(lines.join("\n"))));
    }
    let mut lines = Attributes::resolve(host, "0600", &wanted.owner)?.differences(&host.path(&wanted.key))?;
    for path in [&cert, &ca] {
        lines.extend(Attributes::resolve(host, "0644", &wanted.owner)?.differences(path)?);
    }
    Ok((!lines.is_empty()).then(|| {
        Found::new(format!("change mode or owner of {}", wanted.cert)).with_detail(lines.join("\n"))
    }))
}

pub(super) fn apply(
    host: &Host,
    step: &str,
    wanted: &CertificateStep,
    controller: &dyn Controller,
) -> Result<(), StepError> {
    let key = key_pair::keep_or_make(host, &wanted.key, &wanted.owner, &PKCS_ECDSA_P256_SHA256)?;
    let public = Attributes::resolve(host, "0644", &wanted.owner)?;
    // When only modes or owners differ, there is nothing to sign.
    if let (Ok(cert), Ok(ca)) =
        (std::fs::read(host.path(&wanted.cert)), std::fs::read(host.path(&wanted.ca_cert)))
        && faults(wanted, &cert, &ca, Some(&key), host.now_s()).is_empty()
    {
        public.set(&host.path(&wanted.cert))?;
        return public.set(&host.path(&wanted.ca_cert));
    }
    let ask = Ask::Certificate { ca: wanted.ca.clone(), csr: request(wanted, &key)? };
    let (cert, ca) = match controller.ask(step, ask, SIGN_LIMIT)? {
        Reply::Certificate { cert, ca } => (cert, ca),
        Reply::Refused { reason, .. } => return Err(refused(wanted, &reason)),
        Reply::Reached => return Err(refused(wanted, "the answer is no certificate")),
    };
    let faults = faults(wanted, cert.as_bytes(), ca.as_bytes(), Some(&key), host.now_s());
    if !faults.is_empty() {
        let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
        return Err(refused(wanted, &format!("the certificate that came is wrong: {}", lines.join("; "))));
    }
    key_pair::write(&host.path(&wanted.ca_cert), ca.as_bytes(), public)?;
    key_pair::write(&host.path(&wanted.cert), cert.as_bytes(), public)
}

fn refused(wanted: &CertificateStep, reason: &str) -> StepError {
    StepError::new(Code::CertificateRefused, format!("get {} signed by {}: {reason}", wanted.cert, wanted.ca))
}

/// A PKCS#10 request with subject, SANs and usages of the step, and nothing else.
fn request(wanted: &CertificateStep, key: &KeyPair) -> Result<String, StepError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !wanted.organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, wanted.organization.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, wanted.common_name.as_str());
    let what = || format!("make a request for {}", wanted.cert);
    for san in &wanted.sans {
        params.subject_alt_names.push(match san.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                san.as_str()
                    .try_into()
                    .map_err(|error: rcgen::Error| StepError::new(Code::BadStep, what()).because(error))?,
            ),
        });
    }
    let usages = [
        (wanted.server, ExtendedKeyUsagePurpose::ServerAuth),
        (wanted.client, ExtendedKeyUsagePurpose::ClientAuth),
    ];
    params.extended_key_usages = usages.into_iter().filter_map(|(on, usage)| on.then_some(usage)).collect();
    params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(|error| StepError::new(Code::BadStep, what()).because(error))
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Unreadable(&'static str),
    ForeignCa,
    BadSignature,
    NoKey,
    OtherKey,
    Subject { is: String, wanted: String },
    Names { is: String, wanted: String },
    Usage,
    Old { hours_left: i64 },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(what) => write!(f, "{what} cannot be read"),
            Self::ForeignCa => f.write_str("it comes with another CA"),
            Self::BadSignature => f.write_str("the CA did not sign it"),
            Self::NoKey => f.write_str("its key is missing or of another kind"),
            Self::OtherKey => f.write_str("it belongs to another key"),
            Self::Subject { is, wanted } => write!(f, "subject {is} -> {wanted}"),
            Self::Names { is, wanted } => write!(f, "names {is} -> {wanted}"),
            Self::Usage => f.write_str("its extended key usage is another"),
            Self::Old { hours_left } => write!(f, "only {hours_left} h are left"),
        }
    }
}

/// Holds a certificate, its CA and its key against the step, at `now_s` seconds after the epoch.
fn faults(wanted: &CertificateStep, cert: &[u8], ca: &[u8], key: Option<&KeyPair>, now_s: u64) -> Vec<Fault> {
    let (Some(cert), Some(ca)) = (pem::certificate(cert), pem::certificate(ca)) else {
        return vec![Fault::Unreadable("certificate or CA")];
    };
    let (Ok((_, leaf)), Ok((_, issuer))) = (X509Certificate::from_der(&cert), X509Certificate::from_der(&ca))
    else {
        return vec![Fault::Unreadable("certificate or CA")];
    };
    let mut faults = Vec::new();
    if hash_bytes(&ca) != wanted.ca_sha256 {
        faults.push(Fault::ForeignCa);
    } else if leaf.verify_signature(Some(issuer.public_key())).is_err() {
        faults.push(Fault::BadSignature);
    }
    match key {
        None => faults.push(Fault::NoKey),
        Some(key) if key.subject_public_key_info() != leaf.public_key().raw => faults.push(Fault::OtherKey),
        Some(_) => {}
    }
    faults.extend(subject_fault(wanted, &leaf));
    faults.extend(names_fault(wanted, &leaf));
    let usage = leaf
        .extended_key_usage()
        .ok()
        .flatten()
        .map(|usage| (usage.value.server_auth, usage.value.client_auth));
    if usage.unwrap_or_default() != (wanted.server, wanted.client) {
        faults.push(Fault::Usage);
    }
    let hours_left =
        (leaf.validity().not_after.timestamp() - i64::try_from(now_s).unwrap_or(i64::MAX)) / HOUR_S;
    if hours_left < i64::from(wanted.renew_hours) {
        faults.push(Fault::Old { hours_left });
    }
    faults
}

fn subject_fault(wanted: &CertificateStep, leaf: &X509Certificate<'_>) -> Option<Fault> {
    let subject = leaf.subject();
    let text = |found: Option<&x509_parser::prelude::AttributeTypeAndValue<'_>>| {
        found.and_then(|value| value.as_str().ok()).unwrap_or_default().to_owned()
    };
    let is = (text(subject.iter_common_name().next()), text(subject.iter_organization().next()));
    let show = |name: &str, organization: &str| format!("CN={name} O={organization}");
    (is != (wanted.common_name.clone(), wanted.organization.clone())).then(|| Fault::Subject {
        is: show(&is.0, &is.1),
        wanted: show(&wanted.common_name, &wanted.organization),
    })
}

fn names_fault(wanted: &CertificateStep, leaf: &X509Certificate<'_>) -> Option<Fault> {
    let extension = leaf.subject_alternative_name().ok().flatten();
    let is: BTreeSet<String> =
        extension.iter().flat_map(|names| &names.value.general_names).map(name_text).collect();
    let want: BTreeSet<String> = wanted
        .sans
        .iter()
        .map(|san| san.parse::<IpAddr>().map_or_else(|_| san.clone(), |address| address.to_string()))
        .collect();
    let show = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    (is != want).then(|| Fault::Names { is: show(&is), wanted: show(&want) })
}

fn name_text(name: &GeneralName<'_>) -> String {
    if let GeneralName::DNSName(name) = name {
        return (*name).to_owned();
    }
    if let GeneralName::IPAddress(bytes) = name {
        if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
            return IpAddr::from(four).to_string();
        }
        if let Ok(sixteen) = <[u8; 16]>::try_from(*bytes) {
            return IpAddr::from(sixteen).to_string();
        }
    }
    // A kind of name that no step asks for is a difference by itself.
    format!("{name:?}")
}

#[cfg(test)]
mod tests;
