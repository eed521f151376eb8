//! One HTTPS question to a server's own service, through its SSH session: is etcd healthy, is the API
//! ready, what are etcd's metrics. No port is opened anywhere, no proxy or redirect is followed.

use crate::pki::Issued;
use crate::session::{Session, SessionError};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// One question takes no longer than this.
const DEADLINE: Duration = Duration::from_secs(5);
/// An answer is not read further than this: etcd's metrics are some 300 KB.
const LONGEST_ANSWER: u64 = 4 << 20;

/// The identity that asks, and the authority that must have signed the other side.
#[derive(Clone)]
pub struct Asker {
    connector: TlsConnector,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The certificate or key cannot be used.
    #[error("use a certificate to ask with")]
    Certificate(#[source] rustls::Error),
    /// The certificate or key is no PEM.
    #[error("read a certificate to ask with")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The SSH session failed, or nothing listens.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// TLS or reading failed.
    #[error("ask https://{address}:{port}{path}")]
    Io {
        /// Where.
        address: Ipv4Addr,
        /// Where.
        port: u16,
        /// What.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The answer is not HTTP.
    #[error("understand the answer of https://{address}:{port}{path}")]
    NotHttp {
        /// Where.
        address: Ipv4Addr,
        /// Where.
        port: u16,
        /// What.
        path: String,
    },
}

impl Asker {
    /// Asks with this certificate, and trusts only the authority that issued it.
    pub fn new(identity: &Issued) -> Result<Self, ProbeError> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(identity.ca.as_bytes()).map_err(ProbeError::Pem)?;
        roots.add(ca).map_err(ProbeError::Certificate)?;
        let leaf = CertificateDer::from_pem_slice(identity.cert.as_bytes()).map_err(ProbeError::Pem)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(ProbeError::Pem)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ProbeError::Certificate)?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![leaf], key)
            .map_err(ProbeError::Certificate)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// `GET https://address:port/path`, as seen from the session's server.
    pub async fn get(
        &self,
        session: &Session,
        address: Ipv4Addr,
        port: u16,
        path: &str,
    ) -> Result<Response, ProbeError> {
        let failed = |source| ProbeError::Io { address, port, path: path.to_owned(), source };
        let late = || failed(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 5 s"));
        let ask = async {
            let tunnel = session.tcp(&address.to_string(), port).await?.into_stream();
            let name = ServerName::IpAddress(std::net::IpAddr::from(address).into());
            let mut stream = self.connector.connect(name, tunnel).await.map_err(failed)?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.map_err(failed)?;
            let mut answer = Vec::new();
            match (&mut stream).take(LONGEST_ANSWER).read_to_end(&mut answer).await {
                // Not every server says goodbye in TLS; a short answer fails to parse below.
                Err(cause) if cause.kind() != std::io::ErrorKind::UnexpectedEof => return Err(failed(cause)),
                Ok(_) | Err(_) => {}
            }
            parse(&answer).ok_or_else(|| ProbeError::NotHttp { address, port, path: path.to_owned() })
        };
        tokio::time::timeout(DEADLINE, Box::pin(ask)).await.unwrap_or_else(|_elapsed| Err(late()))
    }
}

/// Reads an HTTP/1.1 answer that ends with its connection.
fn parse(answer: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let chunked = lines.any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("transfer-encoding:") && line.contains("chunked")
    });
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Some(Response { status, body })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_read_and_half_ones_refused() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "ok"));
        let chunked =
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let chunked = parse(chunked).unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "abcde"));
        for half in
            [&b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n9\r\nab"]
        {
            assert!(parse(half).is_none(), "{half:?}");
        }
    }
}
