//! The proxy in front of real listeners on free ports.

use super::*;
use std::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server that says its name to whoever connects, then echoes.
async fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                client.write_all(name.as_bytes()).await.unwrap();
                let (mut read, mut write) = client.split();
                // Ends with the client.
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// An address that refuses connections.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

struct Running {
    address: SocketAddr,
    config: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

async fn proxy(upstreams: &[SocketAddr]) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("proxy.toml");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    write(&config, address, upstreams);
    let read = Config::read(&config).unwrap();
    let members = Arc::new(Upstreams::new(read.upstreams.clone()));
    tokio::spawn(serve(listener, members, Watched::new(&config, read)));
    Running { address, config, _dir: dir }
}

fn write(config: &Path, listen: SocketAddr, upstreams: &[SocketAddr]) {
    let names: Vec<String> = upstreams.iter().map(|address| format!("\"{address}\"")).collect();
    fs::write(config, format!("listen = \"{listen}\"\nupstreams = [{}]\n", names.join(", "))).unwrap();
}

/// Connects through the proxy and gives the name that it is greeted with; empty when nobody is there.
async fn greeting(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut name = [0; 1];
    let count = timeout(Duration::from_secs(20), stream.read(&mut name)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&name[..count]).into_owned()
}

#[tokio::test]
async fn bytes_go_both_ways_past_a_dead_control_plane() {
    let proxy = proxy(&[nobody().await, greeter("a").await]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 6];
    timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"ahello");
}

#[tokio::test]
async fn a_new_membership_is_taken_over_without_a_restart() {
    let (first, second) = (greeter("a").await, greeter("b").await);
    let proxy = proxy(&[first]).await;
    assert_eq!(greeting(proxy.address).await, "a");
    write(&proxy.config, proxy.address, &[second]);
    timeout(Duration::from_secs(20), async { while greeting(proxy.address).await != "b" {} }).await.unwrap();
    fs::write(&proxy.config, "upstreams = 7").unwrap();
    tokio::time::sleep(RELOAD_EVERY * 3).await;
    assert_eq!(greeting(proxy.address).await, "b", "a broken file changes nothing");
}

#[tokio::test]
async fn with_nobody_behind_it_a_connection_just_ends() {
    let proxy = proxy(&[nobody().await]).await;
    assert_eq!(greeting(proxy.address).await, "");
}

#[test]
fn a_file_of_no_use_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("proxy.toml");
    for (text, why) in [
        ("listen = \"127.0.0.1:7445\"\nupstreams = []\n", "names no upstream"),
        ("listen = \"127.0.0.1:7445\"\nupstreams = [\"api.example:6443\"]\n", "understand "),
        ("listen = \"127.0.0.1:7445\"\nupstreams = []\nbackends = []\n", "understand "),
    ] {
        fs::write(&config, text).unwrap();
        let error = Config::read(&config).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_proxy_reads_what_the_playbooks_write() {
    let files = crate::rendered::files("/etc/rackwright/proxy.toml");
    assert_eq!(files.len(), 4);
    for (_folder, file) in files {
        Config::read(&file).unwrap();
    }
}
