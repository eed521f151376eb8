//! Mutual TLS between agents, under the data plane's own CA.
//!
//! A server knows its clients by the certificate's common name; a client checks the server's name
//! among the certificate's DNS names. Ring only.

use crate::config::TlsFiles;
use crate::error::Error;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The server side: only certificates of our CA get past the handshake.
///
/// # Errors
/// A file cannot be read or used.
pub fn server_config(files: &TlsFiles) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&files.ca)?), Arc::clone(&provider))
            .build()
            .map_err(|cause| Error::setup("trust the data CA", cause))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::setup("set up TLS", cause))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)
        .map_err(|cause| Error::setup("use the data certificate", cause))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The client side.
///
/// # Errors
/// A file cannot be read or used.
pub fn client_config(files: &TlsFiles) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::setup("set up TLS", cause))?
        .with_root_certificates(roots(&files.ca)?)
        .with_client_auth_cert(certificates(&files.cert)?, private_key(&files.key)?)
        .map_err(|cause| Error::setup("use the data certificate", cause))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The common name of a verified peer certificate.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|cause| Error::setup("trust the data CA", cause))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = fs::read(path).map_err(Error::io("read", path))?;
    let parsed = rustls_pemfile::certs(&mut pem.as_slice()).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(Error::io("read", path))?;
    if parsed.is_empty() {
        return Err(Error::setup(format!("find a certificate in {}", path.display()), "the file has none"));
    }
    Ok(parsed)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = fs::read(path).map_err(Error::io("read", path))?;
    let key = rustls_pemfile::private_key(&mut pem.as_slice()).map_err(Error::io("read", path))?;
    key.ok_or_else(|| Error::setup(format!("find a private key in {}", path.display()), "the file has none"))
}

/// The 32 bytes of an Ed25519 public key in SPKI PEM.
///
/// # Errors
/// The text is something else.
pub fn ed25519_public(pem: &str) -> Result<[u8; 32], Error> {
    /// DER of `SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING (32 bytes) }` up to the key (RFC 8410).
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let bad = || Error::refused("the manifest key", "not an Ed25519 public key in PEM");
    let item = rustls_pemfile::read_one(&mut pem.as_bytes()).map_err(|_not_pem| bad())?;
    let Some(rustls_pemfile::Item::SubjectPublicKeyInfo(der)) = item else { return Err(bad()) };
    let key = der.as_ref().strip_prefix(PREFIX.as_slice()).ok_or_else(bad)?;
    key.try_into().map_err(|_length| bad())
}
