//! Facts of recorded servers, held to golden files: what a plan is bound to must not move by accident.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use rackwright_steps::facts;
use rackwright_wire::facts::Facts;
use std::fs;
use std::path::Path;

/// Unpacks a recorded tree: `== /path` before each file's text, `== /path/` for a folder.
fn unpack(recorded: &str, root: &Path) {
    for entry in recorded.split("\n== ").skip(1) {
        let (path, text) = entry.split_once('\n').unwrap_or((entry, ""));
        let place = root.join(path.trim_start_matches('/'));
        if path.ends_with('/') {
            fs::create_dir_all(&place).unwrap();
        } else {
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, format!("{text}\n")).unwrap();
        }
    }
}

fn facts_of(recorded: &str) -> Facts {
    let dir = tempfile::tempdir().unwrap();
    unpack(recorded, dir.path());
    facts::read(dir.path(), 1_800_000_000).unwrap()
}

#[test]
fn a_lab_server_is_what_its_control_group_allows() {
    let facts = facts_of(include_str!("fixtures/lab.tree"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&facts).unwrap());
}

#[test]
fn a_rented_server_shows_no_pods_in_its_facts() {
    let facts = facts_of(include_str!("fixtures/metal.tree"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&facts).unwrap());
}

#[test]
fn this_machine_can_be_read_twice_with_the_same_digest() {
    let read = |now_s| facts::read(Path::new("/"), now_s).unwrap();
    assert_eq!(read(1).digest(), read(2).digest());
}
