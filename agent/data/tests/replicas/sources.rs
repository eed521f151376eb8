//! Sources: a bucket whose listing lies, and the real services when they are at hand.

use axum::Router;
use axum::extract::RawQuery;
use axum::http::StatusCode;
use axum::routing::get;
use rackwright_data::config::{Clickhouse, S3};
use rackwright_data::export::Exporter;
use rackwright_data::store::Store;
use rackwright_wire::source::{SOURCE_VERSION, SourceRequest, SourceSpec};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

fn exporter(folder: &Path, endpoint: &str) -> (Arc<Store>, Exporter) {
    let rig = crate::rig::Rig::new();
    let secret = folder.join("secret");
    fs::write(&secret, "secret-key\n").unwrap();
    let mut config = rig.config("data1");
    config.s3 = Some(S3 {
        endpoint: endpoint.to_owned(),
        region: "us-east-1".to_owned(),
        access_key: "rackwright".to_owned(),
        secret_key_file: secret,
    });
    config.clickhouse =
        Some(Clickhouse { url: endpoint.to_owned(), user: "default".to_owned(), password_file: None });
    let store = Arc::new(Store::open(folder.join("store"), Some(0)).unwrap());
    let exporter = Exporter::new(&config, Arc::clone(&store));
    (store, exporter)
}

fn bucket() -> SourceRequest {
    let spec = SourceSpec::S3 { bucket: "indexes".to_owned(), prefix: String::new() };
    SourceRequest { version: SOURCE_VERSION, dataset: "indexes".to_owned(), spec }
}

fn page(keys: &[(&str, &str)], truncated: bool, next: Option<&str>) -> String {
    let mut contents = String::new();
    for (key, etag) in keys {
        let object = format!("<Key>{key}</Key><ETag>&quot;{etag}&quot;</ETag><Size>5</Size>");
        let modified = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>";
        contents.extend(["<Contents>", &object, modified, "</Contents>"]);
    }
    let next = next
        .map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>"))
        .unwrap_or_default();
    format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>indexes</Name><Prefix></Prefix><MaxKeys>1000</MaxKeys><IsTruncated>{truncated}</IsTruncated>{next}{contents}</ListBucketResult>"
    )
}

/// An endpoint whose listing is what the test says at the moment; objects hold "hello", and every
/// read of one is counted.
async fn endpoint(listing: Arc<Mutex<Vec<(StatusCode, String)>>>, reads: Arc<AtomicU32>) -> String {
    let list = move |RawQuery(query): RawQuery| {
        let pages = listing.lock().unwrap().clone();
        let second = query.unwrap_or_default().contains("continuation-token=");
        async move { pages[usize::from(second).min(pages.len() - 1)].clone() }
    };
    let object = move || {
        reads.fetch_add(1, Ordering::Relaxed);
        async { "hello" }
    };
    let app = Router::new()
        .route("/indexes", get(list.clone()))
        .route("/indexes/", get(list))
        .route("/indexes/{*key}", get(object));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_failed_or_truncated_listing_exports_and_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let whole = vec![
        (StatusCode::OK, page(&[("a", "1")], true, Some("t"))),
        (StatusCode::OK, page(&[("b/c", "1")], false, None)),
    ];
    let (listing, reads) = (Arc::new(Mutex::new(whole.clone())), Arc::new(AtomicU32::new(0)));
    let (store, exporter) =
        exporter(folder.path(), &endpoint(Arc::clone(&listing), Arc::clone(&reads)).await);
    let first = exporter.export(&bucket()).await.unwrap();
    let paths: Vec<_> = first.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!((paths, first.read_bytes), (vec!["a", "b/c"], 10));

    let ok = |text: String| (StatusCode::OK, text);
    let lies = [
        vec![ok(page(&[("a", "1")], true, None))],
        vec![ok(page(&[("a", "1")], true, Some("t"))), (StatusCode::BAD_REQUEST, "no".to_owned())],
        vec![ok(page(&[("a", "1")], true, Some("t"))), ok(page(&[("b", "1")], true, Some("t")))],
        vec![ok(page(&[("a", "1")], false, Some("t")))],
        vec![ok("<html>sign in</html>".to_owned())],
        vec![ok(page(&[], false, None).replace("<Name>indexes", "<Name>other"))],
        vec![ok(page(&[("../up", "1")], false, None))],
        vec![ok(page(&[("a", "1"), ("a/b", "1")], false, None))],
    ];
    for lie in lies {
        *listing.lock().unwrap() = lie.clone();
        let error = exporter.export(&bucket()).await.unwrap_err();
        assert!(!error.chain().is_empty(), "{lie:?}");
    }
    assert_eq!(store.objects().unwrap().len(), 1, "both objects hold the same bytes, and they stay");
    *listing.lock().unwrap() = whole;
    let again = exporter.export(&bucket()).await.unwrap();
    assert_eq!((again.files, again.read_bytes), (first.files, 0), "the last good export still stands");
    assert_eq!(reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn only_objects_that_changed_are_read_again_and_a_short_body_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let listing = Arc::new(Mutex::new(vec![(StatusCode::OK, page(&[("a", "1"), ("b", "1")], false, None))]));
    let reads = Arc::new(AtomicU32::new(0));
    let (_store, exporter) =
        exporter(folder.path(), &endpoint(Arc::clone(&listing), Arc::clone(&reads)).await);
    exporter.export(&bucket()).await.unwrap();
    *listing.lock().unwrap() = vec![(StatusCode::OK, page(&[("a", "1"), ("b", "2")], false, None))];
    assert_eq!(exporter.export(&bucket()).await.unwrap().read_bytes, 5);
    assert_eq!(reads.load(Ordering::Relaxed), 3);
    let longer = page(&[("c", "1")], false, None).replace("<Size>5<", "<Size>6<");
    *listing.lock().unwrap() = vec![(StatusCode::OK, longer)];
    let error = exporter.export(&bucket()).await.unwrap_err().chain();
    assert!(error.contains("5 of 6 bytes"), "{error}");
}

/// Runs against a real server when `RACKWRIGHT_TEST_CLICKHOUSE` names one, such as Debian's 18.16
/// (`http://127.0.0.1:8123`).
#[tokio::test]
async fn a_real_table_is_exported_once_as_rows_that_numpy_can_map() {
    let Ok(url) = std::env::var("RACKWRIGHT_TEST_CLICKHOUSE") else {
        eprintln!("skipped: RACKWRIGHT_TEST_CLICKHOUSE names no server");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (store, exporter) = exporter(folder.path(), &url);
    let client = clickhouse::Client::default().with_url(&url).with_compression(clickhouse::Compression::None);
    let run = |sql: &'static str| {
        let query = client.query_raw(sql);
        async move { query.execute().await.unwrap() }
    };
    run("CREATE DATABASE IF NOT EXISTS rw_test").await;
    run("DROP TABLE IF EXISTS rw_test.packages").await;
    run("CREATE TABLE rw_test.packages (name FixedString(8), size UInt32, ratio Float64, day Date, note String) \
         ENGINE = MergeTree ORDER BY name").await;
    run("INSERT INTO rw_test.packages SELECT toFixedString(toString(number), 8), number, number / 4, toDate(number), 'x' \
         FROM system.numbers LIMIT 1000").await;
    let spec =
        SourceSpec::Clickhouse { table: "rw_test.packages".to_owned(), columns: vec![], order_by: vec![] };
    let request = SourceRequest { version: SOURCE_VERSION, dataset: "packages".to_owned(), spec };

    let facts = exporter.facts(&request).await.unwrap();
    assert_eq!(
        (facts.rows, facts.bytes, facts.left_out.as_slice()),
        (Some(1000), 22_000, &["note String".to_owned()][..])
    );
    let first = exporter.export(&request).await.unwrap();
    assert_eq!((first.rows, first.read_bytes, first.files[0].bytes), (Some(1000), 22_000, 22_000));
    let dtypes: Vec<_> = first.columns.iter().map(|column| column.dtype.as_str()).collect();
    assert_eq!(dtypes, ["|S8", "<u4", "<f8", "<u2"]);
    let rows =
        fs::read(store.layout().object(blake3::Hash::from_hex(&first.files[0].blake3).unwrap())).unwrap();
    // Text order: row 1 is "1", row 2 is "10".
    assert_eq!(
        (&rows[22..30], &rows[30..34], &rows[34..42]),
        (&b"1\0\0\0\0\0\0\0"[..], &1u32.to_le_bytes()[..], &0.25f64.to_le_bytes()[..])
    );
    assert_eq!(&rows[44..46], b"10");

    assert_eq!(
        exporter.export(&request).await.unwrap().read_bytes,
        0,
        "the same state is not exported again"
    );
    run("INSERT INTO rw_test.packages SELECT 'zz', 1, 1, toDate(1), 'x'").await;
    let second = exporter.export(&request).await.unwrap();
    assert_eq!((second.rows, second.read_bytes), (Some(1001), 22_022));
    assert_ne!(second.source.fingerprint, first.source.fingerprint);
    run("OPTIMIZE TABLE rw_test.packages FINAL").await;
    let merged = exporter.export(&request).await.unwrap();
    assert_eq!(merged.files, second.files, "a merge changes parts, not bytes");
    run("DROP TABLE rw_test.packages").await;
    assert!(exporter.facts(&request).await.is_err());
}
