//! Peers that lie, stop or truncate; manifests that are forged, old or hostile; disks that are full.

use crate::rig::{Rig, answer, content, describe, manifest, spki_pem, store_object, wanted};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query};
use axum::routing::get;
use base64::Engine as _;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rackwright_data::{layout::Layout, partial::Partial, store::Store, tls};
use rackwright_wire::manifest::{CHUNK_BYTES, Peer, SIGNED_VERSION, SignedManifest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

#[tokio::test]
async fn corrupt_bytes_of_a_peer_are_never_visible_and_the_next_peer_is_asked() {
    let rig = Rig::new();
    let bytes = content(7, 1);
    let file = store_object(&rig.config("data1").data_dir, "big", &bytes);
    store_object(&rig.config("liar").data_dir, "big", &bytes);
    let version = manifest("big", 1, vec![file.clone()]);
    let (data1, liar, ml1) = (rig.start("data1"), rig.start("liar"), rig.start("ml1"));
    damage(&liar.object(&file), |rotten| rotten[5] ^= 1);
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    let signed = [rig.sign(&version)];
    controller.want(&ml1, &wanted(1, &signed, "big", &[liar.peer()])).await.unwrap();
    let held = controller.until(&ml1, &version, |held| held.blocked.is_some()).await;
    assert!(held.blocked.unwrap().contains("do not hash"));
    assert!(!ml1.version(&version).exists());

    controller.want(&ml1, &wanted(2, &signed, "big", &[liar.peer(), data1.peer()])).await.unwrap();
    let held = controller.complete(&ml1, &version).await;
    assert!(held.fetched["data1"] >= CHUNK_BYTES, "{:?}", held.fetched);
    assert_eq!(fs::read(ml1.version(&version).join("big")).unwrap(), bytes);
}

#[tokio::test]
async fn a_truncated_object_of_a_peer_is_completed_from_the_next() {
    let rig = Rig::new();
    let bytes = content(8, 1);
    let file = store_object(&rig.config("data1").data_dir, "big", &bytes);
    store_object(&rig.config("liar").data_dir, "big", &bytes);
    let version = manifest("big", 1, vec![file.clone()]);
    let (data1, liar, ml1) = (rig.start("data1"), rig.start("liar"), rig.start("ml1"));
    damage(&liar.object(&file), |rotten| rotten.truncate(4_000_000));
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    let peers = [liar.peer(), data1.peer()];
    controller.want(&ml1, &wanted(1, &[rig.sign(&version)], "big", &peers)).await.unwrap();
    let held = controller.complete(&ml1, &version).await;
    assert_eq!(held.fetched["liar"], 4_000_000);
    assert_eq!(held.fetched["data1"], version.bytes() - 4_000_000, "only the rest is fetched");
    assert_eq!(fs::read(ml1.version(&version).join("big")).unwrap(), bytes);
}

#[tokio::test]
async fn a_truncated_object_of_the_only_source_never_becomes_visible() {
    let rig = Rig::new();
    let file = store_object(&rig.config("data1").data_dir, "big", &content(14, 1));
    let version = manifest("big", 1, vec![file.clone()]);
    let (data1, ml1) = (rig.start("data1"), rig.start("ml1"));
    damage(&data1.object(&file), |rotten| rotten.truncate(4_000_000));
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    controller.want(&ml1, &wanted(1, &[rig.sign(&version)], "big", &[data1.peer()])).await.unwrap();
    let held = controller.until(&ml1, &version, |held| held.blocked.is_some()).await;
    assert!(!held.complete && held.bytes < version.bytes(), "{held:?}");
    assert!(!ml1.version(&version).exists());
}

#[tokio::test]
async fn a_stream_that_breaks_midway_goes_on_at_the_same_byte_from_the_next_peer() {
    let rig = Rig::new();
    let bytes = content(9, 1);
    let file = store_object(&rig.config("data1").data_dir, "big", &bytes);
    let version = manifest("big", 1, vec![file]);
    let (data1, ml1) = (rig.start("data1"), rig.start("ml1"));
    let breaking = breaking_peer(&rig, bytes.clone()).await;
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    let peers = [breaking, data1.peer()];
    controller.want(&ml1, &wanted(1, &[rig.sign(&version)], "big", &peers)).await.unwrap();
    let held = controller.complete(&ml1, &version).await;
    assert!(held.fetched["liar"] > 0);
    assert_eq!(held.fetched.values().sum::<u64>(), version.bytes(), "no byte twice: {:?}", held.fetched);
    assert_eq!(fs::read(ml1.version(&version).join("big")).unwrap(), bytes);
}

#[tokio::test]
async fn forged_old_and_hostile_manifests_are_refused_and_change_nothing() {
    let rig = Rig::new();
    let ml1 = rig.start("ml1");
    let controller = rig.controller(&[&ml1]);
    let file = describe("rows.bin", b"rows");
    let good = manifest("packages", 5, vec![file.clone()]);
    let refused = controller.want(&ml1, &wanted(1, &[rig.sign(&good)], "packages", &[])).await.unwrap_err();
    assert!(refused.contains("no manifest key"), "{refused}");
    controller.trust(&ml1).await;
    controller.trust(&ml1).await;

    let stranger = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let other_key = spki_pem(stranger.public_key().as_ref());
    assert!(controller.trust_key(&ml1, other_key).await.unwrap_err().starts_with("409"));
    let forged = SignedManifest::sign(&good, &stranger).unwrap();
    let refused = controller.want(&ml1, &wanted(1, &[forged], "packages", &[])).await.unwrap_err();
    assert!(refused.starts_with("422") && refused.contains("signature"), "{refused}");

    for path in ["../../etc/cron.d/x", "/etc/passwd", "a/../b", "a//b", "manifest.json"] {
        let mut hostile = good.clone();
        hostile.files[0].path = path.to_owned();
        assert!(SignedManifest::sign(&hostile, &rig.signing).is_err(), "{path:?} is signed");
        let signed = sign_unchecked(&rig, &serde_json::to_string(&hostile).unwrap());
        let refused = controller.want(&ml1, &wanted(1, &[signed], "packages", &[])).await.unwrap_err();
        assert!(refused.starts_with("422"), "{path:?}: {refused}");
    }
    let spoils: [fn(&mut String); 3] = [
        |text| text.truncate(100),
        |text| text.push(' '),
        |text| *text = text.replace("rows.bin", "rows.bim"),
    ];
    for spoil in spoils {
        let mut spoiled = rig.sign(&good);
        spoil(&mut spoiled.manifest);
        let refused = controller.want(&ml1, &wanted(1, &[spoiled], "packages", &[])).await.unwrap_err();
        assert!(refused.starts_with("422") && refused.contains("signature"), "{refused}");
    }
    let truncated = sign_unchecked(&rig, &serde_json::to_string(&good).unwrap()[..100]);
    assert!(controller.want(&ml1, &wanted(1, &[truncated], "packages", &[])).await.is_err());
    let misplaced = wanted(1, &[rig.sign(&good)], "indexes", &[]);
    assert!(controller.want(&ml1, &misplaced).await.unwrap_err().contains("signed for"));
    assert!(controller.held(&ml1).await.datasets.is_empty());

    controller.want(&ml1, &wanted(3, &[rig.sign(&good)], "packages", &[])).await.unwrap();
    let older = manifest("packages", 4, vec![file]);
    let refused = controller.want(&ml1, &wanted(4, &[rig.sign(&older)], "packages", &[])).await.unwrap_err();
    assert!(refused.contains("generation 5 already"), "{refused}");
    let refused = controller.want(&ml1, &wanted(2, &[rig.sign(&good)], "packages", &[])).await.unwrap_err();
    assert!(refused.contains("generation 3 was accepted"), "{refused}");
    let held = controller.held(&ml1).await;
    assert_eq!((held.generation, held.datasets["packages"][0].generation), (3, 5));
}

#[tokio::test]
async fn an_older_generation_is_refused_after_a_restart_and_when_the_memory_of_the_newer_is_spoilt() {
    let rig = Rig::new();
    let data_dir = rig.config("data1").data_dir;
    let newer = manifest("packages", 5, vec![store_object(&data_dir, "rows.bin", b"new")]);
    let older = manifest("packages", 4, vec![store_object(&data_dir, "rows.bin", b"old")]);
    let (data1, mut ml1) = (rig.start("data1"), rig.start("ml1"));
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    controller.want(&ml1, &wanted(7, &[rig.sign(&newer)], "packages", &[data1.peer()])).await.unwrap();
    controller.complete(&ml1, &newer).await;
    let memory = ml1.data_dir.join("wanted.json");
    let text = fs::read_to_string(&memory).unwrap();
    let corrupt = text.replace("rows.bin", "rows.bim");
    for spoilt in [text.as_str(), &text[..text.len() / 2], &corrupt, ""] {
        ml1.kill();
        fs::write(&memory, spoilt).unwrap();
        ml1 = rig.start("ml1");
        let controller = rig.controller(&[&ml1]);
        let rolled_back = wanted(8, &[rig.sign(&older)], "packages", &[data1.peer()]);
        let refused = controller.want(&ml1, &rolled_back).await.unwrap_err();
        assert!(refused.contains("generation 5 already"), "{refused}");
        assert!(!ml1.version(&older).exists());
        let current = fs::read_link(ml1.data_dir.join("versions/packages/current")).unwrap();
        assert_eq!(current.to_str(), Some(newer.digest().as_str()));
    }
    let controller = rig.controller(&[&ml1]);
    controller.want(&ml1, &wanted(9, &[rig.sign(&newer)], "packages", &[data1.peer()])).await.unwrap();
    assert!(controller.complete(&ml1, &newer).await.complete, "the version itself was never gone");
}

#[tokio::test]
async fn what_a_newer_controller_wants_is_refused_with_the_version() {
    let rig = Rig::new();
    let ml1 = rig.start("ml1");
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    let good = manifest("packages", 1, vec![describe("rows.bin", b"rows")]);
    let newer = |text: &str| text.replacen("{\"version\":1,", "{\"version\":2,\"added\":1,", 1);
    let signed = sign_unchecked(&rig, &newer(&serde_json::to_string(&good).unwrap()));
    let refused = controller.want(&ml1, &wanted(1, &[signed], "packages", &[])).await.unwrap_err();
    assert!(refused.contains("version 2, this build reads 1"), "{refused}");

    let text = newer(&serde_json::to_string(&wanted(1, &[rig.sign(&good)], "packages", &[])).unwrap());
    let client = rig.client(crate::rig::CONTROLLER, &[&ml1]);
    let request = client.put(ml1.url("/v1/wanted")).header("content-type", "application/json").body(text);
    let refused = answer(request).await.unwrap_err();
    assert!(refused.starts_with("422") && refused.contains("version 2, this build reads 1"), "{refused}");
    assert!(controller.held(&ml1).await.datasets.is_empty());
}

#[test]
fn a_store_of_a_newer_agent_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path(), Some(0)).unwrap());
    let mark = folder.path().join("layout.json");
    insta::assert_snapshot!(fs::read_to_string(&mark).unwrap());
    fs::write(&mark, "{\"version\": 2}").unwrap();
    let refused = Store::open(folder.path(), Some(0)).unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.starts_with("version 2, this build reads 1"), "{cause}");
}

#[tokio::test]
async fn only_known_names_read_and_only_controllers_command() {
    let rig = Rig::new();
    let ml1 = rig.start("ml1");
    let known = rig.client("ml2", &[&ml1]);
    assert!(answer(known.get(ml1.url("/v1/held"))).await.is_ok());
    let set = wanted(1, &[], "packages", &[]);
    assert!(answer(known.put(ml1.url("/v1/wanted")).json(&set)).await.unwrap_err().starts_with("403"));
    assert!(answer(known.post(ml1.url("/v1/scrub"))).await.unwrap_err().starts_with("403"));
    let unknown = rig.client("mallory", &[&ml1]);
    assert!(answer(unknown.get(ml1.url("/v1/held"))).await.unwrap_err().starts_with("403"));
    let other_ca = Rig::new().client("ml2", &[&ml1]);
    assert!(answer(other_ca.get(ml1.url("/v1/held"))).await.is_err());
    let hash = "../".repeat(20);
    let refused =
        answer(known.get(ml1.url(&format!("/v1/objects/{}/chunks/0", hash.replace('/', "%2F"))))).await;
    assert!(refused.unwrap_err().starts_with("409"));
}

#[tokio::test]
async fn a_version_that_does_not_fit_is_refused_before_its_first_byte() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let rig = Rig::new();
    let file = store_object(&rig.config("data1").data_dir, "big", &content(10, 2));
    let version = manifest("big", 1, vec![file]);
    let data1 = rig.start("data1");
    let mut config = rig.config("ml1");
    config.data_dir = disk.path().join("store");
    let ml1 = crate::rig::Agent::start(config);
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    controller.want(&ml1, &wanted(1, &[rig.sign(&version)], "big", &[data1.peer()])).await.unwrap();
    let held = controller.until(&ml1, &version, |held| held.blocked.is_some()).await;
    assert!(held.blocked.unwrap().contains(&format!("find room for {} bytes", version.bytes())));
    assert!(held.fetched.is_empty());
    assert_eq!(fs::read_dir(ml1.data_dir.join("partial")).unwrap().count(), 0);
    drop(ml1);
}

#[test]
fn a_disk_that_fills_up_leaves_nothing_half_written() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let layout = Layout::new(disk.path());
    fs::create_dir_all(disk.path().join("partial")).unwrap();
    let error = Partial::open(&layout, &describe("big", &content(11, 1))).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(fs::read_dir(disk.path().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn room_is_made_from_versions_that_nobody_wants_or_pins() {
    let Some(disk) = SmallDisk::mount(60) else { return };
    let rig = Rig::new();
    let data_dir = rig.config("data1").data_dir;
    let versions: Vec<_> = (1..=4u8)
        .map(|n| manifest("big", u64::from(n), vec![store_object(&data_dir, "big", &content(20 + n, 1))]))
        .collect();
    let data1 = rig.start("data1");
    let mut config = rig.config("ml1");
    config.data_dir = disk.path().join("store");
    let ml1 = crate::rig::Agent::start(config);
    let controller = rig.controller(&[&ml1]);
    controller.trust(&ml1).await;
    for (generation, version) in (1..).zip(&versions) {
        controller
            .want(&ml1, &wanted(generation, &[rig.sign(version)], "big", &[data1.peer()]))
            .await
            .unwrap();
        if generation == 1 {
            controller.complete(&ml1, version).await;
            let pins = ml1.data_dir.join("pins/big").join(version.digest());
            fs::create_dir_all(&pins).unwrap();
            fs::write(pins.join("pod-1"), "").unwrap();
        }
        if generation == 3 {
            // Fresh objects are kept for an hour in case an upload is under way: pretend it has passed.
            age_objects(&ml1.data_dir);
        }
        controller.complete(&ml1, version).await;
        age_objects(&ml1.data_dir);
    }
    assert!(ml1.version(&versions[0]).is_dir(), "the pinned version was evicted");
    assert!(!ml1.version(&versions[1]).is_dir(), "the oldest version without pin was kept");
    assert!(ml1.version(&versions[3]).is_dir());
    drop(ml1);
}

fn age_objects(data_dir: &std::path::Path) {
    let old = std::time::SystemTime::now() - std::time::Duration::from_hours(2);
    for folder in fs::read_dir(data_dir.join("objects")).unwrap() {
        for object in fs::read_dir(folder.unwrap().path()).unwrap() {
            fs::File::open(object.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
    }
}

/// Rewrites an object in place: what a bad disk does.
pub(crate) fn damage(object: &std::path::Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(object).unwrap();
    how(&mut bytes);
    fs::set_permissions(object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(object, bytes).unwrap();
}

/// Signs text that no honest controller would.
fn sign_unchecked(rig: &Rig, text: &str) -> SignedManifest {
    let signature = base64::engine::general_purpose::STANDARD.encode(rig.signing.sign(text.as_bytes()));
    SignedManifest { version: SIGNED_VERSION, manifest: text.to_owned(), signature }
}

/// A peer with the certificate of `liar` that breaks every chunk off after two thirds of what was asked.
async fn breaking_peer(rig: &Rig, bytes: Vec<u8>) -> Peer {
    let bytes = Bytes::from(bytes);
    let handler = move |Path((_, index)): Path<(String, u64)>,
                        Query(query): Query<HashMap<String, String>>| {
        let from: u64 = query.get("from").and_then(|from| from.parse().ok()).unwrap_or(0);
        let end = ((index + 1) * CHUNK_BYTES).min(bytes.len() as u64);
        let start = index * CHUNK_BYTES + from;
        let cut = start + (end - start) * 2 / 3;
        let range = usize::try_from(start).unwrap()..usize::try_from(cut).unwrap();
        let part = bytes.slice(range);
        async move {
            let broken: Result<Bytes, std::io::Error> = Err(std::io::ErrorKind::ConnectionReset.into());
            (
                [("content-length", (end - start).to_string())],
                Body::from_stream(futures::stream::iter([Ok(part), broken])),
            )
        }
    };
    let app = axum::Router::new().route("/v1/objects/{hash}/chunks/{index}", get(handler));
    let acceptor =
        tokio_rustls::TlsAcceptor::from(Arc::new(tls::server_config(&rig.certificate("liar")).unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let service = TowerToHyperService::new(app);
                let _broken = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Peer { server: "liar".to_owned(), address }
}

/// A file system of so many MiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounting needs root: without it the test says so and passes.
    fn mount(mib: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        assert!(std::env::var_os("CI").is_none(), "CI runs as root: a small file system must be mountable");
        eprintln!("skipped: mounting a small file system needs root");
        None
    }

    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _lazy = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}
