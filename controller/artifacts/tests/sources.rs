//! What the cache, the bundle and a release server do when they are right, wrong and half there.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests may fail the test")]

use rackwright_artifacts::bundle::Bundle;
use rackwright_artifacts::cache::{Cache, Lookup};
use rackwright_artifacts::progress::{Event, Progress, Silent};
use rackwright_artifacts::{Artifacts, Error, Source};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A program, so that it can play the busybox of an image.
const BODY: &[u8] = b"#!/bin/sh\necho ash; echo sleep\n";

/// Serves `/good`, `/other` (other bytes), `/short` (closes early) and nothing else, on a port of its own.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
}

async fn serve() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut head = Vec::new();
            let mut buffer = [0; 1024];
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => head.extend_from_slice(&buffer[..n]),
                }
            }
            let path = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, body, length) = match path.as_str() {
                "/good" => ("200 OK", BODY, BODY.len()),
                "/other" => ("200 OK", &b"something else"[..], 14),
                "/short" => ("200 OK", BODY, BODY.len() + 100),
                _ => ("404 Not Found", &b""[..], 0),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _gone = stream.write_all(head.as_bytes()).await;
            let _gone = stream.write_all(body).await;
            let _gone = stream.shutdown().await;
        }
    });
    Server { address, requests }
}

/// Keeps every event as a line.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(event.to_string());
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn lock_file(dir: &Path, entries: &[(&str, String)]) -> PathBuf {
    let mut text = "version = 1\n[go]\ntoolchain = \"go1.26.8\"\n".to_owned();
    for (name, source) in entries {
        let entry = format!("[[artifact]]\nname = \"{name}\"\nversion = \"1\"\nusually_s = 1\n{source}");
        text += &entry;
    }
    let path = dir.join("artifacts.lock");
    std::fs::write(&path, text).unwrap();
    path
}

fn official(server: &Server, path: &str) -> String {
    let (address, sha256) = (&server.address, sha256(BODY));
    format!("[artifact.official]\nurl = \"http://{address}{path}\"\nsha256 = \"{sha256}\"\n")
}

fn reasons(error: &Error) -> String {
    let Error::NoSource { tried, .. } = error else { panic!("{error}") };
    let lines: Vec<String> = tried.iter().map(|(source, reason)| format!("{source}: {reason}")).collect();
    lines.join("\n")
}

#[tokio::test]
async fn a_release_with_the_pinned_hash_is_fetched_once_and_then_cached() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    let first = artifacts.ensure(&["thing"], &Silent).await.unwrap().remove(0);
    assert_eq!(std::fs::read(&first.path).unwrap(), BODY);
    assert_eq!((first.sha256.as_str(), first.size_bytes), (sha256(BODY).as_str(), BODY.len() as u64));
    assert!(matches!(first.source, Source::Official { .. }));
    let again = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    assert_eq!(again.ensure(&["thing"], &Silent).await.unwrap(), [first]);
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn other_bytes_truncated_bytes_and_a_missing_file_never_enter_the_cache() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    for (path, reason) in [("/other", "the lock pins"), ("/short", "download"), ("/nothing", "answered 404")]
    {
        let lock = lock_file(dir.path(), &[("thing", official(&server, path))]);
        let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
        let error = artifacts.ensure(&["thing"], &Silent).await.unwrap_err();
        assert!(reasons(&error).contains(reason), "{error}");
        assert_eq!(artifacts.lookup("thing").unwrap(), Lookup::Missing);
        assert_eq!(std::fs::read_dir(dir.path().join("cache/sha256")).unwrap().count(), 0, "{path}");
    }
}

#[tokio::test]
async fn a_silent_host_and_a_changed_go_sum_are_both_told_as_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { address: closed.local_addr().unwrap().to_string(), requests: Arc::default() };
    drop(closed);
    let set =
        "[artifact.module]\nset = \"s\"\npath = \"p\"\nversion = \"v1\"\npackage = \"p\"\nldflags = \"\"\n";
    let entry = official(&server, "/good") + set;
    let lock = lock_file(dir.path(), &[("one", entry)]);
    let text = std::fs::read_to_string(&lock).unwrap();
    let modules = format!(
        "[[modules]]\nname = \"s\"\ngo_mod = \"go.mod\"\ngo_sum_sha256 = \"{}\"\n",
        sha256(b"pinned")
    );
    std::fs::write(&lock, text + &modules).unwrap();
    std::fs::write(dir.path().join("go.sum"), "changed").unwrap();
    let told = Told::default();
    let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    let error = artifacts.ensure(&["one"], &told).await.unwrap_err();
    let reasons = reasons(&error);
    assert!(reasons.contains("official release: download http://"), "{reasons}");
    assert!(reasons.contains("module build: use ") && reasons.contains("go.sum: its sha256 is"), "{reasons}");
    assert!(told.0.lock().unwrap().iter().any(|line| line.contains("trying the next source")));
}

#[tokio::test]
async fn a_corrupt_cache_file_is_found_and_fetched_again() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    let path = artifacts.ensure(&["thing"], &Silent).await.unwrap().remove(0).path;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"#!/bin/sh\necho ash; echo sleeq\n").unwrap();
    assert!(matches!(artifacts.lookup("thing").unwrap(), Lookup::Corrupt { .. }));
    let told = Told::default();
    let again = artifacts.ensure(&["thing"], &told).await.unwrap().remove(0);
    assert_eq!(std::fs::read(&again.path).unwrap(), BODY);
    assert!(told.0.lock().unwrap().iter().any(|line| line.contains("was changed")));
    assert_eq!(server.requests.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn verify_finds_a_change_that_kept_size_and_time() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    let path = artifacts.ensure(&["thing"], &Silent).await.unwrap().remove(0).path;
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"#!/bin/sh\necho ash; echo sleeq\n").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert!(matches!(artifacts.lookup("thing").unwrap(), Lookup::Hit(_)), "only hashing can see it");
    assert!(matches!(artifacts.cache().verify().unwrap().as_slice(), [(_, Lookup::Corrupt { .. })]));
}

#[tokio::test]
async fn a_bundle_brings_everything_to_a_machine_without_network() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let online = Artifacts::load_into(&lock, dir.path().join("online")).unwrap();
    let bundle = dir.path().join("bundle.tar");
    assert!(online.bundle(&["thing"], &bundle, &Silent).await.unwrap() > BODY.len() as u64);
    let offline = Artifacts::load_into(&lock, dir.path().join("offline")).unwrap().without_official();
    let offline = offline.with_bundle(Bundle::open(&bundle).unwrap());
    let resolved = offline.ensure(&["thing"], &Silent).await.unwrap().remove(0);
    assert_eq!(std::fs::read(&resolved.path).unwrap(), BODY);
    assert!(resolved.bundled);
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_image_is_made_of_its_busybox_and_travels_in_a_bundle_without_it() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let image = "[artifact.image]\nreference = \"docker.io/rackwright/box:1\"\nuser = \"65534:65534\"\nbusybox = \"thing\"\n";
    let lock = lock_file(dir.path(), &[("box", image.to_owned()), ("thing", official(&server, "/good"))]);
    let online = Artifacts::load_into(&lock, dir.path().join("online")).unwrap();
    let made = online.ensure(&["box"], &Silent).await.unwrap().remove(0);
    assert_eq!(made.reference.as_deref(), Some("docker.io/rackwright/box:1"));
    let bundle = dir.path().join("bundle.tar");
    online.bundle(&["box"], &bundle, &Silent).await.unwrap();
    let offline = Artifacts::load_into(&lock, dir.path().join("offline")).unwrap().without_official();
    let offline = offline.with_bundle(Bundle::open(&bundle).unwrap());
    assert_eq!(offline.ensure(&["box"], &Silent).await.unwrap().remove(0).sha256, made.sha256);
    assert_eq!(offline.lookup("thing").unwrap(), Lookup::Missing);
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_damaged_bundle_and_one_for_another_lock_are_refused() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let bundle = dir.path().join("bundle.tar");
    let online = Artifacts::load_into(&lock, dir.path().join("online")).unwrap();
    online.bundle(&["thing"], &bundle, &Silent).await.unwrap();
    let mut bytes = std::fs::read(&bundle).unwrap();
    let at = bytes.windows(BODY.len()).position(|window| window == BODY).unwrap();
    bytes[at] ^= 1;
    let damaged = dir.path().join("damaged.tar");
    std::fs::write(&damaged, bytes).unwrap();
    let offline = |bundle: &Path| {
        let artifacts = Artifacts::load_into(&lock, dir.path().join("offline")).unwrap();
        artifacts.without_official().with_bundle(Bundle::open(bundle).unwrap())
    };
    let error = offline(&damaged).ensure(&["thing"], &Silent).await.unwrap_err();
    assert!(reasons(&error).contains("bundle: accept sha256/"), "{error}");
    lock_file(dir.path(), &[("thing", official(&server, "/other"))]);
    let error = offline(&bundle).ensure(&["thing"], &Silent).await.unwrap_err();
    assert!(reasons(&error).contains("of this lock in the bundle"), "{error}");
    assert!(Bundle::open(&lock).is_err());
}

#[tokio::test]
async fn two_runs_at_once_fetch_once() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let run = || Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    let (one, two) = (run(), run());
    let (one, two) = tokio::join!(one.ensure(&["thing"], &Silent), two.ensure(&["thing"], &Silent));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_a_dead_run_left_half_done_is_cleared_and_what_it_finished_is_kept() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let entries = [("done", official(&server, "/good")), ("next", official(&server, "/other"))];
    let lock = lock_file(dir.path(), &entries);
    let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    artifacts.ensure(&["done", "next"], &Silent).await.unwrap_err();
    assert!(matches!(artifacts.lookup("done").unwrap(), Lookup::Hit(_)));
    let left = dir.path().join("cache/tmp/next");
    assert!(left.exists(), "the failed download lies there until the next run");
    drop(Cache::open(dir.path().join("cache")).unwrap().lock().unwrap());
    assert!(!left.exists());
}

#[tokio::test]
async fn unknown_names_are_all_reported_before_anything_is_done() {
    let (dir, server) = (tempfile::tempdir().unwrap(), serve().await);
    let lock = lock_file(dir.path(), &[("thing", official(&server, "/good"))]);
    let artifacts = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap();
    let error = artifacts.ensure(&["thing", "a", "b"], &Silent).await.unwrap_err();
    assert_eq!(error.to_string(), "find a, b in the artifact lock; it has thing");
    assert_eq!(server.requests.load(Ordering::Relaxed), 0);
}

#[test]
fn a_wrong_lock_names_the_file_and_the_lines() {
    let dir = tempfile::tempdir().unwrap();
    let lock = lock_file(dir.path(), &[("thing", String::new()), ("thing", String::new())]);
    let error = Artifacts::load_into(&lock, dir.path().join("cache")).unwrap_err().to_string();
    assert!(
        error.contains("artifacts.lock:") && error.contains("line 5:") && error.contains("line 9:"),
        "{error}"
    );
}
