//! The rig: a CA, agents that can be killed, a controller's client, and content to replicate.

use base64::Engine as _;
use rackwright_data::config::{Config, TlsFiles};
use rackwright_data::fetch::Patience;
use rackwright_data::node::Node;
use rackwright_data::{hashing, listen, tls};
use rackwright_wire::manifest::{
    CHUNK_BYTES, File, Held, HeldVersion, MANIFEST_VERSION, Manifest, Peer, SignedManifest, Source, Wanted,
};
use rackwright_wire::report::{NodeReport, REPORT_VERSION};
use rackwright_wire::source::ScrubReport;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_mins(1);
pub(crate) const CONTROLLER: &str = "rackwright-serve";

/// A CA, a manifest key, and a folder for everything.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    pub(crate) signing: Ed25519KeyPair,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "data CA");
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let signing = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), issuer, ca_pem, signing }
    }

    /// Certificate files for a name.
    pub(crate) fn certificate(&self, name: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let folder = self.folder.path().join("pki").join(name);
        fs::create_dir_all(&folder).unwrap();
        let files = TlsFiles { ca: folder.join("ca"), cert: folder.join("cert"), key: folder.join("key") };
        fs::write(&files.ca, &self.ca_pem).unwrap();
        fs::write(&files.cert, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    pub(crate) fn public_pem(&self) -> String {
        spki_pem(self.signing.public_key().as_ref())
    }

    pub(crate) fn config(&self, name: &str) -> Config {
        Config {
            server: name.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: self.folder.path().join("data").join(name),
            known: ["data1", "ml1", "ml2", "liar"].map(str::to_owned).to_vec(),
            controllers: vec![CONTROLLER.to_owned()],
            reserve: Some(rackwright_wire::units::Bytes::new(0).unwrap()),
            in_flight: 2,
            scrub_every_h: 0,
            tls: self.certificate(name),
            clickhouse: None,
            s3: None,
            sets: None,
            load: None,
        }
    }

    pub(crate) fn start(&self, name: &str) -> Agent {
        Agent::start(self.config(name))
    }

    /// A client with this certificate name that reaches every given agent.
    pub(crate) fn client(&self, name: &str, agents: &[&Agent]) -> reqwest::Client {
        let tls = tls::client_config(&self.certificate(name)).unwrap();
        let mut builder = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().timeout(DEADLINE);
        for agent in agents {
            builder = builder.resolve(&agent.name, agent.address);
        }
        builder.build().unwrap()
    }

    pub(crate) fn controller(&self, agents: &[&Agent]) -> Controller {
        Controller { client: self.client(CONTROLLER, agents), public_pem: self.public_pem() }
    }

    pub(crate) fn sign(&self, manifest: &Manifest) -> SignedManifest {
        SignedManifest::sign(manifest, &self.signing).unwrap()
    }
}

pub(crate) fn spki_pem(key: &[u8]) -> String {
    let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    der.extend_from_slice(key);
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
}

/// One agent's data unit on a thread and runtime of its own, so that it can be killed like a process.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) data_dir: PathBuf,
    kill: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(config: Config) -> Self {
        let (name, data_dir) = (config.server.clone(), config.data_dir.clone());
        let kill = CancellationToken::new();
        let killed = kill.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let node = Arc::new(Node::open(config, patience()).unwrap());
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                listen::serve(node, listener, Arc::new(report), killed).await.unwrap();
            });
            // Everything that still runs is dropped where it stands, connections included.
            runtime.shutdown_timeout(DEADLINE);
        });
        let address = told.recv_timeout(DEADLINE).unwrap();
        Self { name, address, data_dir, kill, thread: Some(thread) }
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer { server: self.name.clone(), address: self.address.to_string() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", self.name, self.address.port())
    }

    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// The folder of a version.
    pub(crate) fn version(&self, manifest: &Manifest) -> PathBuf {
        self.data_dir.join("versions").join(&manifest.dataset).join(manifest.digest())
    }

    pub(crate) fn object(&self, file: &File) -> PathBuf {
        self.data_dir.join("objects").join(&file.blake3[..2]).join(&file.blake3)
    }

    fn end(&mut self) {
        self.kill.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// Short enough for tests, long enough for a busy machine.
pub(crate) fn patience() -> Patience {
    Patience {
        wait: Duration::from_millis(600),
        idle: Duration::from_secs(2),
        give_up: Duration::from_secs(3),
        ..Patience::default()
    }
}

fn report() -> NodeReport {
    NodeReport {
        version: REPORT_VERSION,
        server: "test".to_owned(),
        at_s: 0,
        load_1m: 0.0,
        memory_used_bytes: 0,
        memory_allowed_bytes: 0,
        steal_percent: 0.0,
        disks: Vec::new(),
    }
}

/// What `serve` does towards agents.
pub(crate) struct Controller {
    client: reqwest::Client,
    public_pem: String,
}

impl Controller {
    pub(crate) async fn trust(&self, agent: &Agent) {
        self.trust_key(agent, self.public_pem.clone()).await.unwrap();
    }

    pub(crate) async fn trust_key(&self, agent: &Agent, pem: String) -> Result<(), String> {
        answer(self.client.put(agent.url("/v1/trust")).body(pem)).await.map(|_none: String| ())
    }

    pub(crate) async fn want(&self, agent: &Agent, wanted: &Wanted) -> Result<Held, String> {
        let text: String = answer(self.client.put(agent.url("/v1/wanted")).json(wanted)).await?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    pub(crate) async fn held(&self, agent: &Agent) -> Held {
        let text = answer(self.client.get(agent.url("/v1/held"))).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn scrub(&self, agent: &Agent) -> ScrubReport {
        let text = answer(self.client.post(agent.url("/v1/scrub"))).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The held state of one version once `until` is true for it.
    pub(crate) async fn until(
        &self,
        agent: &Agent,
        manifest: &Manifest,
        until: impl Fn(&HeldVersion) -> bool,
    ) -> HeldVersion {
        let start = Instant::now();
        loop {
            let held = self.held(agent).await;
            let versions = held.datasets.get(&manifest.dataset).cloned().unwrap_or_default();
            let version = versions.into_iter().find(|version| version.digest == manifest.digest());
            if let Some(version) = version.clone().filter(|version| until(version)) {
                return version;
            }
            assert!(start.elapsed() < DEADLINE, "{}: {version:?}", agent.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn complete(&self, agent: &Agent, manifest: &Manifest) -> HeldVersion {
        self.until(agent, manifest, |version| version.complete).await
    }
}

/// The body of a successful answer, or status and body of another.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Result<String, String> {
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| error.to_string())?;
    if status.is_success() { Ok(text) } else { Err(format!("{} {text}", status.as_u16())) }
}

/// Bytes that differ from chunk to chunk: `chunks` whole ones and a tail of 1000 bytes.
pub(crate) fn content(seed: u8, chunks: u64) -> Vec<u8> {
    let len = usize::try_from(chunks * CHUNK_BYTES + 1000).unwrap();
    let mut reader = blake3::Hasher::new().update(&[seed]).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

/// Puts content into a store that is not running, as an export would have.
pub(crate) fn store_object(data_dir: &Path, path: &str, bytes: &[u8]) -> File {
    let store = rackwright_data::store::Store::open(data_dir, Some(0)).unwrap();
    let mut incoming = store.begin().unwrap();
    incoming.write(bytes).unwrap();
    incoming.commit(path, None).unwrap()
}

pub(crate) fn describe(path: &str, bytes: &[u8]) -> File {
    hashing::hash_reader(path, bytes).unwrap()
}

pub(crate) fn manifest(dataset: &str, generation: u64, files: Vec<File>) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        dataset: dataset.to_owned(),
        generation,
        source: Source { kind: "s3".to_owned(), name: "bucket".to_owned(), fingerprint: "f".to_owned() },
        files,
        columns: Vec::new(),
        rows: None,
    }
}

pub(crate) fn wanted(generation: u64, manifests: &[SignedManifest], dataset: &str, peers: &[Peer]) -> Wanted {
    Wanted {
        version: MANIFEST_VERSION,
        generation,
        datasets: BTreeMap::from([(dataset.to_owned(), manifests.to_vec())]),
        peers: peers.to_vec(),
    }
}
