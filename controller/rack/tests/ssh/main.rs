//! Connections against real SSH servers that run inside the test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop here")]

mod sshd;

use rackwright_rack::connect::{ConnectError, FirstUse, Rack, Target};
use rackwright_rack::credential::Credential;
use rackwright_rack::forward::Forward;
use rackwright_rack::ledger::{HostLedger, fingerprint};
use rackwright_rack::ramp::Patience;
use rackwright_rack::session::OpenError;
use rackwright_rack::state::StateDir;
use russh::keys::{PrivateKey, PublicKey};
use sshd::{Sshd, new_key};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

struct Place {
    _folder: tempfile::TempDir,
    state: StateDir,
    key: PrivateKey,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        Self { _folder: folder, state, key: new_key() }
    }

    fn target(&self, name: &str, port: u16, bastion: Option<&str>) -> Target {
        Target {
            server: name.to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
            user: "root".to_owned(),
            credential: Credential::Key(Arc::new(self.key.clone())),
            bastion: bastion.map(str::to_owned),
        }
    }

    fn pin(&self, server: &str, key: &PublicKey) {
        let mut ledger = HostLedger::open(&self.state).unwrap();
        ledger.learn_from_inventory(server, &fingerprint(key), "now").unwrap();
    }

    fn rack(&self, targets: Vec<Target>, first_use: FirstUse) -> Rack {
        let quick = Patience {
            tries: 3,
            first_pause: Duration::from_millis(2),
            longest_pause: Duration::from_millis(5),
        };
        Rack::new(targets, HostLedger::open(&self.state).unwrap(), first_use, quick)
    }
}

fn cause(result: Result<Arc<rackwright_rack::session::Session>, ConnectError>) -> OpenError {
    let error = result.err().unwrap();
    let ConnectError::Ssh { source, .. } = error else { panic!("{error:?}") };
    *source
}

#[tokio::test]
async fn a_pinned_server_runs_commands_with_both_streams_and_its_status() {
    let place = Place::new();
    let sshd = Sshd::start(place.key.public_key(), 0).await;
    place.pin("ml1", &sshd.host_key);
    let rack = place.rack(vec![place.target("ml1", sshd.address.port(), None)], FirstUse::Refuse);
    let session = rack.session("ml1").await.unwrap();
    let output = session.exec("cat; echo sorry >&2; exit 7", b"hello").await.unwrap();
    assert_eq!(
        (output.status, output.stdout.as_slice(), output.stderr.as_str()),
        (7, &b"hello"[..], "sorry\n")
    );
    rack.session("ml1").await.unwrap();
    assert_eq!(sshd.connections(), 1, "one connection carries everything");
}

#[tokio::test]
async fn a_changed_host_key_stops_before_authentication() {
    let place = Place::new();
    let sshd = Sshd::start(place.key.public_key(), 0).await;
    place.pin("ml1", new_key().public_key());
    let rack = place.rack(vec![place.target("ml1", sshd.address.port(), None)], FirstUse::Accept);
    let result = rack.session("ml1").await;
    assert!(result.as_ref().is_err_and(ConnectError::is_untrusted));
    assert!(result.as_ref().err().unwrap().help().unwrap().contains("nothing was sent"));
    assert!(matches!(cause(result), OpenError::HostKeyChanged { .. }));
    assert_eq!(sshd.connections(), 1, "an alarm is not tried again");
    assert_eq!(sshd.auth_attempts(), 0);
}

#[tokio::test]
async fn an_unknown_host_key_stops_before_authentication_unless_accepting_was_asked_for() {
    let place = Place::new();
    let sshd = Sshd::start(place.key.public_key(), 0).await;
    let target = || vec![place.target("ml1", sshd.address.port(), None)];
    let refused = place.rack(target(), FirstUse::Refuse).session("ml1").await;
    assert!(matches!(cause(refused), OpenError::HostKeyUnknown { .. }));
    assert_eq!(sshd.auth_attempts(), 0);
    place.rack(target(), FirstUse::Accept).session("ml1").await.unwrap();
    let recorded = place.state.read("hosts.toml").unwrap().unwrap();
    assert!(recorded.contains("source = \"accepted\""), "{recorded}");
    place.rack(target(), FirstUse::Refuse).session("ml1").await.unwrap();
}

#[tokio::test]
async fn a_key_that_the_server_does_not_take_is_said_once() {
    let place = Place::new();
    let sshd = Sshd::start(new_key().public_key(), 0).await;
    place.pin("ml1", &sshd.host_key);
    let rack = place.rack(vec![place.target("ml1", sshd.address.port(), None)], FirstUse::Refuse);
    let result = rack.session("ml1").await;
    assert!(matches!(cause(result), OpenError::Rejected { .. }));
    assert_eq!(sshd.connections(), 1);
}

#[tokio::test]
async fn an_unreachable_server_is_an_answer_and_not_a_hang() {
    let place = Place::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let rack = place.rack(vec![place.target("ml1", closed, None)], FirstUse::Refuse);
    let result = tokio::time::timeout(Duration::from_secs(20), rack.session("ml1")).await.unwrap();
    assert!(matches!(result.err().unwrap(), ConnectError::Unreachable { .. }));
}

#[tokio::test]
async fn a_connection_dropped_before_authentication_is_tried_again_a_few_times() {
    let place = Place::new();
    let sshd = Sshd::start(place.key.public_key(), 2).await;
    place.pin("ml1", &sshd.host_key);
    let target = place.target("ml1", sshd.address.port(), None);
    place.rack(vec![target], FirstUse::Refuse).session("ml1").await.unwrap();
    assert_eq!(sshd.connections(), 3);
    let hopeless = Sshd::start(place.key.public_key(), usize::MAX).await;
    let target = place.target("ml2", hopeless.address.port(), None);
    let result = place.rack(vec![target], FirstUse::Refuse).session("ml2").await;
    assert!(matches!(cause(result), OpenError::Dropped(_)));
    assert_eq!(hopeless.connections(), 3, "three tries, then an answer");
}

#[tokio::test]
async fn a_server_behind_a_bastion_is_reached_and_pinned_like_any_other() {
    let place = Place::new();
    let bastion = Sshd::start(place.key.public_key(), 0).await;
    let inner = Sshd::start(place.key.public_key(), 0).await;
    place.pin("bastion", &bastion.host_key);
    place.pin("ml1", &inner.host_key);
    let targets = || {
        vec![
            place.target("bastion", bastion.address.port(), None),
            place.target("ml1", inner.address.port(), Some("bastion")),
        ]
    };
    let rack = place.rack(targets(), FirstUse::Refuse);
    let output = rack.session("ml1").await.unwrap().exec("echo inside", b"").await.unwrap();
    assert_eq!(output.stdout, b"inside\n");
    let swapped = Sshd::start(place.key.public_key(), 0).await;
    let targets = vec![
        place.target("bastion", bastion.address.port(), None),
        place.target("ml1", swapped.address.port(), Some("bastion")),
    ];
    assert!(place.rack(targets, FirstUse::Refuse).session("ml1").await.err().unwrap().is_untrusted());
    assert_eq!(swapped.auth_attempts(), 0);
}

#[tokio::test]
async fn a_forwarded_port_reaches_what_the_server_reaches() {
    let place = Place::new();
    let sshd = Sshd::start(place.key.public_key(), 0).await;
    place.pin("ml1", &sshd.host_key);
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            let (mut read, mut write) = stream.split();
            let _hung_up = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let rack = place.rack(vec![place.target("ml1", sshd.address.port(), None)], FirstUse::Refuse);
    let forward = Forward::start(rack.session("ml1").await.unwrap(), "127.0.0.1", port).await.unwrap();
    for _ in 0..20 {
        // More connections than one session has channels, one after the other.
        let mut stream = TcpStream::connect(forward.address()).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "ping");
    }
}

#[tokio::test]
async fn a_command_that_ends_before_it_read_its_input_is_no_hang() {
    let place = Place::new();
    let sshd = Sshd::start(place.key.public_key(), 0).await;
    place.pin("ml1", &sshd.host_key);
    let rack = place.rack(vec![place.target("ml1", sshd.address.port(), None)], FirstUse::Refuse);
    let session = rack.session("ml1").await.unwrap();
    let much = vec![7_u8; 8 << 20];
    let early = session.exec("exit 3", &much);
    let output = tokio::time::timeout(Duration::from_secs(20), early).await.unwrap().unwrap();
    assert_eq!(output.status, 3);
    let whole = session.exec("wc -c", &much).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&whole.stdout).trim(), much.len().to_string());
}
