//! What the manifests and the docs promise: pure crates list no IO, one TLS stack, versions only in the root, a row in
//! docs/codes.md for every code.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a missing table is the failure that the test reports"
)]

use std::collections::{BTreeMap, BTreeSet};
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

/// Where codes are declared: what their anchors in docs/codes.md begin with, the sources, and what stands before a code
/// there, with the number of other texts in between.
struct Declared {
    section: &'static str,
    sources: &'static [&'static str],
    before: &'static [(&'static str, usize)],
}

const DECLARED: [Declared; 10] = [
    Declared {
        section: "http",
        sources: &["controller/serve/src"],
        before: &[("Problem::new(", 0), ("Self::new(StatusCode::", 0), ("invalid(", 0)],
    },
    Declared {
        section: "inventory",
        sources: &["controller/core/src/inventory"],
        before: &[("findings.add(", 0), ("table.need::<", 1), ("table.need(", 1), ("table.parse(key, ", 0)],
    },
    Declared {
        section: "playbook",
        sources: &["controller/core/src/playbook"],
        before: &[("findings.add(", 0), ("add_at(", 0), ("self.add(", 0), ("code: \"", 0)],
    },
    Declared {
        section: "check",
        sources: &["controller/rack/src/preflight.rs"],
        before: &[("add(", 0), ("code: \"", 0)],
    },
    Declared {
        section: "plan",
        sources: &["controller/core/src/lint.rs"],
        before: &[("code: \"", 0), ("(\"", 0)],
    },
    Declared {
        section: "agent",
        sources: &["agent/src"],
        before: &[("Failure::new(\"", 0), ("Self::new(\"", 0), ("code: \"", 0)],
    },
    Declared { section: "agent", sources: &["agent/steps/src/plans.rs"], before: &[("=> \"", 0)] },
    Declared { section: "step", sources: &["agent/steps/src/error.rs"], before: &[("=> \"", 0)] },
    Declared {
        section: "port",
        sources: &["agent/data/src/api.rs"],
        before: &[("(StatusCode::", 0), ("code: \"", 0)],
    },
    Declared { section: "job", sources: &["controller/core/src/job.rs"], before: &[("=> \"", 0)] },
];

impl Declared {
    fn codes(&self) -> BTreeSet<String> {
        let text: String = self.sources.iter().map(|path| product_code(&root().join(path))).collect();
        let is_code = |word: &&str| {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
            !word.is_empty() && word.bytes().all(fits)
        };
        let mut codes = BTreeSet::new();
        for (before, skipped) in self.before {
            // Texts alternate with what is between them; the opening quote may be the end of `before`.
            let nth = 2 * skipped + usize::from(!before.ends_with('"'));
            let words = text.split(*before).skip(1).filter_map(|rest| rest.split('"').nth(nth));
            let found: Vec<String> = words.filter(is_code).map(str::to_owned).collect();
            assert!(!found.is_empty(), "{}: no code stands after {before:?} any more", self.section);
            codes.extend(found);
        }
        codes
    }
}

/// Every Rust source at or below a path, each up to its tests.
fn product_code(path: &Path) -> String {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        return entries.map(|entry| product_code(&entry.unwrap().path())).collect();
    }
    if path.extension().is_none_or(|end| end != "rs") || path.ends_with("tests.rs") {
        return String::new();
    }
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

#[test]
fn every_code_has_a_row_in_the_docs() {
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for declared in &DECLARED {
        known.entry(declared.section).or_default().extend(declared.codes());
    }
    // 0 and 1 are Rust's own.
    let text = product_code(&root().join("controller/src"));
    let exits = text.split(": u8 = ").skip(1).filter_map(|rest| rest.split(';').next()).chain(["0", "1"]);
    known.insert("exit", exits.map(str::to_owned).collect());
    let page = std::fs::read_to_string(root().join("docs/codes.md")).unwrap();
    let mut declared = BTreeSet::new();
    for (section, codes) in &known {
        declared.extend(codes.iter().map(|code| format!("| <a id=\"{section}-{code}\"></a>`{code}` |")));
    }
    let written: BTreeSet<String> = page
        .lines()
        .filter(|line| line.starts_with("| <a id="))
        .filter_map(|line| Some(format!("{}` |", line.split_once("` |")?.0)))
        .collect();
    let missing: Vec<_> = declared.difference(&written).collect();
    assert!(missing.is_empty(), "docs/codes.md has no row for {missing:#?}");
    let invented: Vec<_> = written.difference(&declared).collect();
    assert!(invented.is_empty(), "docs/codes.md has rows for codes that nothing says: {invented:#?}");
}

#[test]
fn every_golden_file_stands_on_the_page_of_formats() {
    let page = std::fs::read_to_string(root().join("docs/formats.md")).unwrap();
    let named: BTreeSet<&str> =
        page.split('`').filter(|text| text.contains("/snapshots/") || text.contains("/golden/")).collect();
    for path in &named {
        assert!(root().join(path).is_file(), "docs/formats.md names {path}, which is not there");
    }
    for folder in ["agent/wire/golden", "controller/core/golden"] {
        for file in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = format!("{folder}/{}", file.unwrap().file_name().to_string_lossy());
            assert!(named.contains(path.as_str()), "{path} has no row in docs/formats.md");
        }
    }
}
