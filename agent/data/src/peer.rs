//! Talking to other agents' data ports.
//!
//! Names are resolved from the controller's list only: no DNS, and a certificate must carry the name.

use crate::config::TlsFiles;
use crate::error::{Cause, Error};
use crate::tls;
use rackwright_wire::manifest::Peer;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response, StatusCode};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// How many bytes a peer has received since it started: sent with "not yet", so that the asker can tell
/// a peer that still receives from one that stands still.
pub const RECEIVED_HEADER: &str = "rackwright-received";
/// A peer that does not even accept a connection in this time is dead for now.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Answers without a body of content come in this time, beyond what was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for all peers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Peers {
    client: Client,
    book: Arc<AddressBook>,
}

/// What a peer says to a request for a chunk.
#[derive(Debug)]
pub enum ChunkReply {
    /// The bytes follow.
    Body(Response),
    /// It expects the chunk, and has received so many bytes since it started.
    NotYet(u64),
    /// It knows nothing of the object.
    Unknown,
}

#[derive(Debug, Default)]
struct AddressBook(RwLock<HashMap<String, IpAddr>>);

impl Resolve for AddressBook {
    fn resolve(&self, name: Name) -> Resolving {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name.as_str()).copied();
        Box::pin(async move {
            let address = known.ok_or_else(|| Cause::from("the name is not in the controller's list"))?;
            let addresses: Addrs = Box::new(std::iter::once(SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

impl Peers {
    /// A client with this server's certificate.
    ///
    /// # Errors
    /// The certificate files cannot be used.
    pub fn new(files: &TlsFiles) -> Result<Self, Error> {
        let book = Arc::new(AddressBook::default());
        let client = Client::builder()
            .use_preconfigured_tls(tls::client_config(files)?)
            .dns_resolver(Arc::clone(&book))
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(15))
            .tcp_nodelay(true)
            .build()
            .map_err(|cause| Error::setup("set up the client for peers", cause))?;
        Ok(Self { client, book })
    }

    /// Asks for bytes of a chunk from `from` on, letting the peer wait up to `wait` for it.
    ///
    /// # Errors
    /// No connection, no answer in time, or an answer that makes no sense.
    pub async fn chunk(&self, peer: &Peer, ask: &ChunkAsk, wait: Duration) -> Result<ChunkReply, Error> {
        let ChunkAsk { object, index, from } = ask;
        let path = format!("/v1/objects/{object}/chunks/{index}?from={from}&wait_ms={}", wait.as_millis());
        let request = self.client.get(self.url(peer, &path)?).send();
        let answer = tokio::time::timeout(wait + ANSWER_TIMEOUT, request).await;
        let response = answer.map_err(|late| failed(peer, late))?.map_err(|cause| failed(peer, cause))?;
        match response.status() {
            StatusCode::OK => Ok(ChunkReply::Body(response)),
            StatusCode::NOT_FOUND => Ok(ChunkReply::Unknown),
            StatusCode::SERVICE_UNAVAILABLE => {
                let received = response.headers().get(RECEIVED_HEADER).and_then(|value| value.to_str().ok());
                let received = received.and_then(|value| value.parse().ok());
                received.map(ChunkReply::NotYet).ok_or_else(|| failed(peer, "it is overloaded"))
            }
            _ => Err(refusal(peer, response).await),
        }
    }

    /// The URL by name; learns the address for the resolver on the way.
    fn url(&self, peer: &Peer, path: &str) -> Result<String, Error> {
        let address: SocketAddr = peer.address.parse().map_err(|cause| failed(peer, cause))?;
        let mut book = self.book.0.write().unwrap_or_else(PoisonError::into_inner);
        if book.get(&peer.server) != Some(&address.ip()) {
            book.insert(peer.server.clone(), address.ip());
        }
        Ok(format!("https://{}:{}{path}", peer.server, address.port()))
    }
}

/// Which bytes are asked for.
#[derive(Debug, Clone)]
pub struct ChunkAsk {
    /// BLAKE3 of the object.
    pub object: blake3::Hash,
    /// Chunk index.
    pub index: u64,
    /// First byte within the chunk.
    pub from: u64,
}

fn failed(peer: &Peer, cause: impl Into<Cause>) -> Error {
    Error::Peer { what: "talk to", peer: peer.server.clone(), source: cause.into() }
}

async fn refusal(peer: &Peer, response: Response) -> Error {
    let status = response.status();
    let text = tokio::time::timeout(ANSWER_TIMEOUT, response.text()).await;
    let text: String = text.ok().and_then(Result::ok).unwrap_or_default().chars().take(500).collect();
    failed(peer, format!("it answered {status}: {text}"))
}
