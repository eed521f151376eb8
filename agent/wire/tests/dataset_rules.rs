//! What a manifest may say, who may have said it, and the source formats as they are recorded.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use rackwright_wire::manifest::{
    CHUNK_BYTES, Column, File, MANIFEST_VERSION, Manifest, ManifestError, SignedManifest, Source,
    is_plain_relative_path,
};
use rackwright_wire::source::{
    Damage, Exported, SOURCE_VERSION, ScrubReport, SourceFacts, SourceRequest, SourceSpec,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::collections::BTreeMap;

#[path = "support/recorded.rs"]
mod recorded;
use recorded::golden;

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn file(path: &str, bytes: u64) -> File {
    let chunks = usize::try_from(bytes.div_ceil(CHUNK_BYTES)).unwrap();
    File { path: path.to_owned(), bytes, blake3: hash('a'), chunks: vec![hash('b'); chunks] }
}

fn source() -> Source {
    Source { kind: "clickhouse".to_owned(), name: "apt.packages".to_owned(), fingerprint: hash('c') }
}

fn table(rows: u64) -> Manifest {
    let column = Column {
        name: "size".to_owned(),
        clickhouse_type: "UInt64".to_owned(),
        dtype: "<u8".to_owned(),
        width: 8,
    };
    Manifest {
        version: MANIFEST_VERSION,
        dataset: "packages".to_owned(),
        generation: 1,
        source: source(),
        files: vec![file("rows.bin", rows * 8)],
        columns: vec![column],
        rows: Some(rows),
    }
}

#[test]
fn paths_that_leave_the_folder_or_hide_something_are_no_paths() {
    for good in ["a", "a/b.bin", "main/binary-amd64/Packages.xz", "..a", "a..", ".hidden", "ü"] {
        assert!(is_plain_relative_path(good), "{good:?}");
    }
    for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/./b", "a\0", "a\nb", "\u{7f}"] {
        assert!(!is_plain_relative_path(bad), "{bad:?}");
    }
    assert!(!is_plain_relative_path(&"a".repeat(256)));
}

#[test]
fn everything_wrong_with_a_manifest_is_said_at_once() {
    assert_eq!(table(5).check(), Vec::<String>::new());
    let mut wrong = table(5);
    wrong.version = 9;
    wrong.dataset = "Not A Label".to_owned();
    wrong.files[0].chunks.clear();
    wrong.files.extend([file("rows.bin", 0), file("a", 0), file("a/b", 0), file("manifest.json", 0)]);
    wrong.files[2].blake3 = "A".repeat(64);
    wrong.rows = Some(u64::MAX);
    assert_eq!(wrong.check().len(), 8, "{:#?}", wrong.check());
}

#[test]
fn only_the_key_that_signed_opens_and_only_the_signed_bytes() {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let other = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
    let signed = SignedManifest::sign(&table(5), &key).unwrap();
    assert_eq!(signed.open(key.public_key().as_ref()).unwrap(), table(5));
    assert!(matches!(signed.open(other.public_key().as_ref()), Err(ManifestError::Signature)));
    let mut changed = signed.clone();
    changed.manifest = changed.manifest.replace("\"generation\":1", "\"generation\":2");
    assert!(matches!(changed.open(key.public_key().as_ref()), Err(ManifestError::Signature)));
    let mut cut = signed;
    cut.signature.truncate(20);
    assert!(matches!(cut.open(key.public_key().as_ref()), Err(ManifestError::Signature)));
    let hostile = Manifest { files: vec![file("../x", 40)], ..table(5) };
    assert!(matches!(SignedManifest::sign(&hostile, &key), Err(ManifestError::Content(_))));
}

#[test]
fn source_formats_are_as_recorded() {
    let spec = SourceSpec::Clickhouse {
        table: "apt.packages".to_owned(),
        columns: vec!["size".to_owned()],
        order_by: Vec::new(),
    };
    let dataset = "packages".to_owned();
    golden(
        "source-request-table-v1",
        &SourceRequest { version: SOURCE_VERSION, dataset: dataset.clone(), spec },
    );
    let spec = SourceSpec::S3 { bucket: "apt-indexes".to_owned(), prefix: "main/".to_owned() };
    golden(
        "source-request-bucket-v1",
        &SourceRequest { version: SOURCE_VERSION, dataset: dataset.clone(), spec },
    );
    let left_out = vec!["description String".to_owned()];
    let facts = SourceFacts {
        version: SOURCE_VERSION,
        dataset: dataset.clone(),
        source: source(),
        rows: Some(5),
        bytes: 40,
        parts: 2,
        software: "ClickHouse 18.16.1".to_owned(),
        left_out: left_out.clone(),
    };
    golden("source-facts-v1", &facts);
    let Manifest { files, columns, rows, .. } = table(5);
    let exported = Exported {
        version: SOURCE_VERSION,
        dataset,
        source: source(),
        files,
        columns,
        rows,
        read_bytes: 40,
        left_out,
    };
    golden("exported-v1", &exported);
    let damage = Damage {
        blake3: hash('a'),
        chunks: vec![3],
        shared_by: vec![format!("packages/{}", hash('d'))],
        holders: vec!["pod-uid".to_owned()],
        fetched: BTreeMap::from([("ml2".to_owned(), CHUNK_BYTES)]),
        unrepaired: None,
    };
    let report = ScrubReport {
        version: SOURCE_VERSION,
        server: "ml1".to_owned(),
        objects: 2,
        bytes: 40,
        damaged: vec![damage],
    };
    golden("scrub-report-v1", &report);
}
