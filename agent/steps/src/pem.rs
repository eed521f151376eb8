//! PEM in, DER out.

use std::io::BufReader;

/// The first certificate of a PEM text, as DER.
pub(crate) fn certificate(pem: &[u8]) -> Option<Vec<u8>> {
    let first = rustls_pemfile::certs(&mut BufReader::new(pem)).next()?;
    Some(first.ok()?.to_vec())
}
