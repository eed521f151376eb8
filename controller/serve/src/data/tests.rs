//! The publisher against real agents over mutual TLS, a bucket, and a real store; only the cluster's
//! nodes are a book of our own.

use super::labels::{NodeBook, NodeHas};
use super::{Config, DataPlane, Error, ServerConfig, SigningFiles, TlsFiles, now_ms};
use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rackwright_core::data::{Decision, NodeMarks};
use rackwright_data::config::{Config as AgentConfig, S3, TlsFiles as AgentTls};
use rackwright_data::fetch::Patience;
use rackwright_data::{listen, node::Node};
use rackwright_store::{SqliteOptions, SqliteStore};
use rackwright_wire::report::{NodeReport, REPORT_VERSION};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_mins(1);

/// Nodes of a cluster that is not there.
#[derive(Debug, Default)]
struct Book(Mutex<BTreeMap<String, NodeHas>>);

impl NodeBook for Book {
    fn nodes(&self) -> BoxFuture<'_, Result<BTreeMap<String, NodeHas>, Error>> {
        let nodes = self.0.lock().unwrap().clone();
        async move { Ok(nodes) }.boxed()
    }

    fn mark<'a>(&'a self, node: &'a str, marks: &'a NodeMarks) -> BoxFuture<'a, Result<(), Error>> {
        let mut nodes = self.0.lock().unwrap();
        let has = nodes.get_mut(node).unwrap();
        apply(&mut has.labels, &marks.labels);
        apply(&mut has.annotations, &marks.annotations);
        async { Ok(()) }.boxed()
    }
}

fn apply(has: &mut BTreeMap<String, String>, marks: &BTreeMap<String, Option<String>>) {
    for (key, value) in marks {
        match value {
            Some(value) => drop(has.insert(key.clone(), value.clone())),
            None => drop(has.remove(key)),
        }
    }
}

struct Rig {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    /// Content of the bucket by key.
    bucket: Arc<Mutex<BTreeMap<String, String>>>,
    servers: Vec<ServerConfig>,
    book: Arc<Book>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Rig {
    async fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let mut rig = Self {
            folder: tempfile::tempdir().unwrap(),
            issuer,
            ca_pem,
            bucket: Arc::default(),
            servers: Vec::new(),
            book: Arc::default(),
            stop: CancellationToken::new(),
            tasks: Vec::new(),
        };
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let public = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        spki.extend_from_slice(public.public_key().as_ref());
        rig.write_pem("manifest.key", "PRIVATE KEY", document.as_ref());
        rig.write_pem("manifest.pub", "PUBLIC KEY", &spki);
        for (name, role) in [("data1", "data"), ("ml1", "ml"), ("ml2", "ml")] {
            rig.start(name, role).await;
        }
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_pem(&self, name: &str, tag: &str, der: &[u8]) {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        fs::write(self.path(name), format!("-----BEGIN {tag}-----\n{text}\n-----END {tag}-----\n")).unwrap();
    }

    fn certificate(&self, name: &str) -> AgentTls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.path(&format!("{name}.{end}"));
        let files = AgentTls { ca: path("ca"), cert: path("crt"), key: path("key") };
        fs::write(&files.ca, &self.ca_pem).unwrap();
        fs::write(&files.cert, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    async fn start(&mut self, name: &str, role: &str) {
        fs::write(self.path("secret"), "secret").unwrap();
        let s3 = if role == "data" { Some(self.bucket_endpoint().await) } else { None };
        let config = AgentConfig {
            server: name.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: self.path(&format!("{name}.data")),
            known: ["data1", "ml1", "ml2"].map(str::to_owned).to_vec(),
            controllers: vec!["rackwright-serve".to_owned()],
            reserve: Some(rackwright_wire::units::Bytes::new(0).unwrap()),
            in_flight: 2,
            scrub_every_h: 0,
            tls: self.certificate(name),
            clickhouse: None,
            s3,
            load: None,
            sets: None,
        };
        let node = Arc::new(Node::open(config, Patience::default()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = self.stop.clone();
        self.tasks.push(tokio::spawn(async move {
            Box::pin(listen::serve(node, listener, Arc::new(report), stop)).await.unwrap();
        }));
        self.book.0.lock().unwrap().insert(name.to_owned(), NodeHas::default());
        let server =
            ServerConfig { name: name.to_owned(), address, rack: "r1".to_owned(), role: role.to_owned() };
        self.servers.push(server);
    }

    async fn bucket_endpoint(&self) -> S3 {
        let listed = Arc::clone(&self.bucket);
        let read = Arc::clone(&self.bucket);
        let list = move || {
            let contents: String =
                listed.lock().unwrap().iter().map(|(key, text)| entry(key, text)).collect();
            async move {
                format!(
                    "<ListBucketResult><Name>indexes</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
                )
            }
        };
        let object = move |axum::extract::Path(key): axum::extract::Path<String>| {
            let text = read.lock().unwrap()[&key].clone();
            async move { text }
        };
        let app = Router::new()
            .route("/indexes", get(list.clone()))
            .route("/indexes/", get(list))
            .route("/indexes/{*key}", get(object));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(app.clone());
                let stream = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        });
        S3 {
            endpoint,
            region: "us-east-1".into(),
            access_key: "a".into(),
            secret_key_file: self.path("secret"),
        }
    }

    fn config(&self) -> Config {
        let AgentTls { ca, cert, key } = self.certificate("rackwright-serve");
        let dataset = "source = \"s3\"\nbucket = \"indexes\"\nrole = \"ml\"\n";
        Config {
            source: "data1".to_owned(),
            sets: "data1".to_owned(),
            uplink: Some("1gbit".to_owned()),
            sync_every_s: 0,
            tls: TlsFiles { ca, cert, key },
            signing: SigningFiles { private: self.path("manifest.key"), public: self.path("manifest.pub") },
            servers: self.servers.clone(),
            dataset: BTreeMap::from([("indexes".to_owned(), toml::from_str(dataset).unwrap())]),
        }
    }

    async fn plane(&self) -> DataPlane {
        let options = SqliteOptions::at(self.path("jobs.db"));
        let store = SqliteStore::open(options).unwrap();
        let book: Arc<dyn NodeBook> = Arc::clone(&self.book) as Arc<dyn NodeBook>;
        DataPlane::open_with(&self.config(), book, store).await.unwrap()
    }

    fn put(&self, key: &str, text: &str) {
        self.bucket.lock().unwrap().insert(key.to_owned(), text.to_owned());
    }
}

fn entry(key: &str, text: &str) -> String {
    let etag = blake3::hash(text.as_bytes()).to_hex();
    let size = text.len();
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents>"
    )
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

async fn done(plane: &DataPlane, id: u64) -> super::Operation {
    let start = Instant::now();
    loop {
        let operation = plane.state().operations[&id].clone();
        if operation.done {
            return operation;
        }
        assert!(start.elapsed() < DEADLINE, "{operation:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_exports_once_fills_the_chain_and_labels_the_nodes() {
    let rig = Rig::new().await;
    rig.put("main/Packages", "first");
    rig.put("Release", "same");
    let plane = rig.plane().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(plane.clone().run(stop.clone()));

    let first = done(&plane, plane.start_sync(Vec::new(), None)).await;
    assert_eq!(first.error, None);
    let row = &first.datasets[0];
    assert!(matches!(row.decision, Decision::Export { .. }));
    assert_eq!((row.generation, row.bytes, row.read_bytes), (1, 9, 9));
    assert!(row.bound.is_some() && row.took_ms.is_some());
    assert_eq!(row.nodes.keys().collect::<Vec<_>>(), ["ml1", "ml2"]);
    assert!(row.nodes.values().all(|version| version.as_ref().unwrap().complete));
    let sent = |name: &str| row.nodes[name].as_ref().unwrap().fetched.clone();
    assert_eq!(sent("ml1"), BTreeMap::from([("data1".to_owned(), 9)]));
    assert_eq!(sent("ml2"), BTreeMap::from([("ml1".to_owned(), 9)]));
    let key = "data.rackwright.dev/indexes";
    let digest = row.digest.clone();
    until("labels", || {
        let nodes = rig.book.0.lock().unwrap();
        ["ml1", "ml2"]
            .iter()
            .all(|name| nodes[*name].labels.get(key) == digest.get(..32).map(str::to_owned).as_ref())
    })
    .await;
    let nodes = rig.book.0.lock().unwrap().clone();
    assert_eq!(nodes["ml1"].annotations[key], format!("{digest}@1"));
    assert!(nodes["data1"].labels.is_empty(), "a dataset of the ml role marks no data server");
    assert_eq!(plane.newest("indexes"), Some((digest.clone(), 1)));

    let second = done(&plane, plane.start_sync(vec!["indexes".to_owned()], None)).await;
    assert_eq!(second.datasets[0].decision, Decision::Unchanged { generation: 1 });
    assert_eq!(second.datasets[0].read_bytes, 0);

    rig.put("main/Packages", "second");
    let third = done(&plane, plane.start_sync(Vec::new(), None)).await;
    let row = &third.datasets[0];
    assert_eq!((row.generation, row.read_bytes), (2, 6), "only the changed object is read");
    assert_eq!(row.nodes["ml1"].as_ref().unwrap().fetched["data1"], 6);

    let unknown = done(&plane, plane.start_sync(vec!["nope".to_owned()], None)).await;
    assert!(unknown.error.unwrap().contains("nope"));
    stop.cancel();
    running.await.unwrap();
    rig.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_controller_goes_on_where_it_was_and_a_failing_source_takes_nothing_away() {
    let rig = Rig::new().await;
    rig.put("Release", "one");
    let plane = rig.plane().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(plane.clone().run(stop.clone()));
    let first = done(&plane, plane.start_sync(Vec::new(), None)).await;
    let digest = first.datasets[0].digest.clone();
    stop.cancel();
    running.await.unwrap();
    drop(plane);

    let plane = rig.plane().await;
    assert_eq!(plane.newest_version("indexes"), Some(digest.clone()));
    let stop = CancellationToken::new();
    let running = tokio::spawn(plane.clone().run(stop.clone()));
    rig.put("../escape", "hostile");
    let failed = done(&plane, plane.start_sync(Vec::new(), None)).await;
    assert!(failed.error.as_ref().unwrap().contains("../escape"), "{failed:?}");
    assert_eq!(plane.newest_version("indexes"), Some(digest.clone()));
    until("agents are seen again", || plane.state().seen.len() == 3).await;
    let held = plane.state().seen["ml2"].held.clone().unwrap();
    assert!(held.datasets["indexes"].iter().any(|version| version.digest == digest && version.complete));
    let told = plane.state().wanted["ml2"].generation;
    assert_eq!((held.generation, told), (2, 2), "nothing new is wanted after a failed export");

    damage_one_object(&rig.path("ml1.data"));
    let scrub = done(&plane, plane.start_scrub(vec!["nobody".to_owned(), "ml1".to_owned()])).await;
    assert!(scrub.error.as_ref().is_some_and(|error| error.starts_with("nobody: failed to ")), "{scrub:?}");
    assert_eq!((scrub.scrubs[0].found(), scrub.scrubs[0].repaired()), (1, 1), "{scrub:?}");
    assert!(scrub.lines()[0].contains("1 damaged, 1 repaired"));

    assert!(plane.nodes_of("indexes", &digest, 0)["ml2"].is_some());
    assert!(plane.nodes_of("indexes", &digest, now_ms() + 60_000)["ml2"].is_none(), "said before, not now");
    plane.state().seen.get_mut("ml2").unwrap().error = Some("no answer".to_owned());
    assert!(plane.nodes_of("indexes", &digest, 0)["ml2"].is_none(), "what is dead holds nothing that counts");
    stop.cancel();
    running.await.unwrap();
    rig.stop.cancel();
}

fn damage_one_object(data_dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = fs::read_dir(data_dir.join("objects")).unwrap().next().unwrap().unwrap().path();
    let object = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&object, "eno").unwrap();
}
