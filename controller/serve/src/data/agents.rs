//! The agents' data ports, as the controller uses them: mutual TLS under the data plane's CA.

use super::settings::Config;
use super::{Error, TlsFiles};
use rackwright_wire::manifest::{Held, Wanted};
use rackwright_wire::sealed::SetList;
use rackwright_wire::source::{Exported, ScrubReport, SourceFacts, SourceRequest};
use reqwest::{Client, Method, RequestBuilder};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// State and commands: small answers.
const SHORT: Duration = Duration::from_secs(10);
/// Exports and scrubs read terabytes; TCP keep-alive notices a dead server long before.
const LONG: Duration = Duration::from_hours(24);

/// A client for all agents.
#[derive(Debug, Clone)]
pub(super) struct Agents {
    client: Client,
    ports: BTreeMap<String, u16>,
}

/// The part of an agent's problem that people read.
#[derive(Debug, Deserialize)]
struct Refusal {
    code: String,
    title: String,
}

impl Agents {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let mut builder = Client::builder()
            .use_preconfigured_tls(tls(&config.tls)?)
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_keepalive_interval(Duration::from_secs(5))
            .tcp_keepalive_retries(3)
            .pool_idle_timeout(Duration::from_secs(20));
        let mut ports = BTreeMap::new();
        for server in &config.servers {
            let address: SocketAddr = server.address.parse().map_err(|_not_an_address| {
                Error::Config(format!("{:?} of {} is not address:port", server.address, server.name))
            })?;
            // The certificate carries the server's name; the address comes from the inventory, not from DNS.
            builder = builder.resolve(&server.name, address);
            ports.insert(server.name.clone(), address.port());
        }
        let client = builder.build().map_err(|cause| Error::Config(cause.to_string()))?;
        Ok(Self { client, ports })
    }

    pub(super) async fn trust(&self, server: &str, public_pem: &str) -> Result<(), Error> {
        let request = self.request(Method::PUT, server, "/v1/trust")?.timeout(SHORT);
        send("give the manifest key to", server, request.body(public_pem.to_owned())).await.map(|_empty| ())
    }

    pub(super) async fn want(&self, server: &str, wanted: &Wanted) -> Result<Held, Error> {
        let request = self.request(Method::PUT, server, "/v1/wanted")?.timeout(SHORT);
        json("say what is wanted to", server, request.json(wanted)).await
    }

    pub(super) async fn held(&self, server: &str) -> Result<Held, Error> {
        json("ask", server, self.request(Method::GET, server, "/v1/held")?.timeout(SHORT)).await
    }

    pub(super) async fn facts(&self, server: &str, source: &SourceRequest) -> Result<SourceFacts, Error> {
        let request = self.request(Method::POST, server, "/v1/source/facts")?.timeout(LONG);
        json("ask for source facts", server, request.json(source)).await
    }

    pub(super) async fn export(&self, server: &str, source: &SourceRequest) -> Result<Exported, Error> {
        let request = self.request(Method::POST, server, "/v1/source/export")?.timeout(LONG);
        json("export on", server, request.json(source)).await
    }

    pub(super) async fn scrub(&self, server: &str) -> Result<ScrubReport, Error> {
        json("scrub", server, self.request(Method::POST, server, "/v1/scrub")?.timeout(LONG)).await
    }

    /// Sealed sets whose id begins with `prefix`.
    pub(super) async fn sets(&self, server: &str, filter: &[(&str, &str)]) -> Result<SetList, Error> {
        let request = self.request(Method::GET, server, "/v1/sets")?.query(filter).timeout(SHORT);
        json("list sealed sets of", server, request).await
    }

    fn request(&self, method: Method, server: &str, path: &str) -> Result<RequestBuilder, Error> {
        let port = self.ports.get(server).ok_or_else(|| Error::Unknown(format!("server {server:?}")))?;
        Ok(self.client.request(method, format!("https://{server}:{port}{path}")))
    }
}

async fn json<T: DeserializeOwned>(
    what: &'static str,
    server: &str,
    request: RequestBuilder,
) -> Result<T, Error> {
    let failed = |source| Error::Agent { what, server: server.to_owned(), source };
    let text = send(what, server, request).await?;
    serde_json::from_str(&text).map_err(|cause| failed(cause.into()))
}

async fn send(what: &'static str, server: &str, request: RequestBuilder) -> Result<String, Error> {
    let failed = |source| Error::Agent { what, server: server.to_owned(), source };
    let response = request.send().await.map_err(|cause| failed(cause.into()))?;
    let status = response.status();
    let text = response.text().await.map_err(|cause| failed(cause.into()))?;
    if status.is_success() {
        return Ok(text);
    }
    let title = serde_json::from_str::<Refusal>(&text)
        .map_or(text, |refusal| format!("{} [{}]", refusal.title, refusal.code));
    Err(failed(format!("it answered {}: {title}", status.as_u16()).into()))
}

fn tls(files: &TlsFiles) -> Result<rustls::ClientConfig, Error> {
    let wrong = |path: &Path, source: Box<dyn std::error::Error + Send + Sync>| Error::File {
        path: path.to_owned(),
        source,
    };
    let certificates = |path: &Path| {
        let pem = fs::read(path).map_err(|cause| wrong(path, cause.into()))?;
        let parsed = rustls_pemfile::certs(&mut pem.as_slice()).collect::<Result<Vec<_>, _>>();
        parsed.map_err(|cause| wrong(path, cause.into()))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).map_err(|cause| wrong(&files.ca, cause.into()))?;
    }
    let pem = fs::read(&files.key).map_err(|cause| wrong(&files.key, cause.into()))?;
    let key =
        rustls_pemfile::private_key(&mut pem.as_slice()).map_err(|cause| wrong(&files.key, cause.into()))?;
    let key = key.ok_or_else(|| wrong(&files.key, "no private key in PEM".into()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            let own = certificates(&files.cert).map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_root_certificates(roots).with_client_auth_cert(own, key)
        })
        .map_err(|cause| wrong(&files.cert, cause.into()))
}
