//! What the manifests promise: pure crates list no IO, one TLS stack, versions only in the root.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a missing table is the failure that the test reports"
)]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(path: &str) -> toml::Table {
    let path = root().join(path).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    text.parse().unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

fn members() -> Vec<String> {
    let list = manifest("")["workspace"]["members"].as_array().unwrap().clone();
    list.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

#[test]
fn deciding_crates_list_no_io() {
    const IO: [&str; 12] = [
        "tokio",
        "kube",
        "russh",
        "axum",
        "rand",
        "reqwest",
        "hyper",
        "rusqlite",
        "clickhouse",
        "rust-s3",
        "etcd-client",
        "rustix",
    ];
    for member in ["agent/wire", "controller/core"] {
        let manifest = manifest(member);
        let dependencies = manifest["dependencies"].as_table().unwrap();
        let found: Vec<_> = IO.iter().filter(|name| dependencies.contains_key(**name)).collect();
        assert!(found.is_empty(), "{member} lists {found:?}: what decides has no IO");
    }
}

#[test]
fn versions_stand_only_in_the_root_and_lints_everywhere() {
    for member in members() {
        let manifest = manifest(&member);
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{member} does not take the lints");
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest.get(kind).and_then(toml::Value::as_table).into_iter().flatten() {
                let from_root = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(from_root, "{member} gives {name} a version of its own");
            }
        }
    }
}

#[test]
fn one_tls_stack_is_linked() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for banned in ["openssl-sys", "native-tls", "aws-lc-rs"] {
        assert!(!lock.contains(&format!("name = \"{banned}\"")), "{banned} is in Cargo.lock; see deny.toml");
    }
}

#[test]
fn every_playbook_together_holds_at_most_eight_commands() {
    let mut commands = 0;
    for entry in std::fs::read_dir(root().join("playbooks")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        commands += text.lines().filter(|line| line.replace(' ', "").starts_with("kind=\"command\"")).count();
    }
    assert!(commands <= 8, "{commands} command steps: each one is a kind that is missing");
}
