//! `[data]` and `[datasets.*]`.

use super::need_secret;
use crate::finding::Findings;
use crate::inventory::table::{Located, Table};
use crate::inventory::{Data, Dataset, DatasetSource, Role};
use std::path::{Path, PathBuf};

pub(super) fn data(root: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<Data> {
    let known = [
        "data_dir",
        "clickhouse_port",
        "clickhouse_user",
        "clickhouse_password",
        "s3_endpoint",
        "minio_port",
        "minio_access_key",
        "minio_secret_key",
    ];
    let Some(table) = root.table("data", "[data]", &known, findings) else {
        findings.add(&(0..0), "missing-key", "no [data] table", "see inventory/example.toml");
        return None;
    };
    let data_dir = table.need_text("data_dir", "\"/data/rackwright\"", findings);
    if let Some(dir) = &data_dir {
        folder(dir, findings);
    }
    let clickhouse_port = port(&table, "clickhouse_port", 8123, None, findings);
    let minio_port = port(&table, "minio_port", 9000, Some(("ClickHouse", clickhouse_port)), findings);
    let mut word = |key| plain_word(&table, key, "rackwright", findings);
    let (clickhouse_user, minio_access_key) = (word("clickhouse_user"), word("minio_access_key"));
    let s3_endpoint = endpoint(&table, findings);
    let clickhouse_password = need_secret(&table, "clickhouse_password", findings);
    let minio_secret_key = need_secret(&table, "minio_secret_key", findings);
    Some(Data {
        data_dir: PathBuf::from(data_dir?.value),
        clickhouse_port,
        clickhouse_user,
        clickhouse_password: clickhouse_password?,
        s3_endpoint,
        minio_port,
        minio_access_key,
        minio_secret_key: minio_secret_key?,
    })
}

/// Folders that are somebody else's: the operating system's, the kernel's, the agent's, Kubernetes'.
const FOREIGN: [&str; 18] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/containerd",
    "/var/lib/dpkg",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/rackwright",
    "/var/lib/systemd",
    "/var/run",
];

/// The store's folder: absolute, two deep at least, and neither inside nor around a foreign one.
fn folder(dir: &Located<&str>, findings: &mut Findings<'_>) {
    let path = Path::new(dir.value);
    let mut add = |message: &str, hint: &str| findings.add(&dir.at, "bad-path", message, hint);
    if !path.is_absolute() || dir.value.split('/').any(|part| part == "..") {
        add("`data_dir` is not an absolute path", "such as `/data/rackwright`");
        return;
    }
    let foreign = FOREIGN.iter().find(|other| path.starts_with(other) || Path::new(other).starts_with(path));
    // The root itself is one component.
    if path.components().count() < 3 {
        let hint = "a folder on the data disk, such as `/data/rackwright`: databases go beside it";
        add("`data_dir` lies in the root folder", hint);
    } else if let Some(other) = foreign {
        let hint = "a folder of its own on the data disk, such as `/data/rackwright`: databases go beside it";
        add(&format!("`data_dir` lies in or around {other}"), hint);
    }
}

/// What listens on a rack's servers besides the databases.
const TAKEN: [(u16, &str); 13] = [
    (22, "SSH"),
    (2379, "etcd"),
    (2380, "etcd"),
    (2381, "etcd"),
    (6443, "the Kubernetes API"),
    (7443, "the controller"),
    (7445, "the agent's proxy"),
    (7446, "the agent's data unit"),
    (10_248, "the kubelet"),
    (10_249, "kube-proxy"),
    (10_250, "the kubelet"),
    (10_256, "kube-proxy"),
    (10_257, "kube-controller-manager"),
];

/// A port that nobody else listens on.
fn port(
    table: &Table<'_, '_>,
    key: &str,
    default: u16,
    other: Option<(&str, u16)>,
    findings: &mut Findings<'_>,
) -> u16 {
    let Some(port) = table.integer(key, 1..=65_535, findings) else { return default };
    let ours = TAKEN.iter().find(|(taken, _)| *taken == port.value).map(|(_, by)| *by);
    let other = other.filter(|(_, taken)| *taken == port.value).map(|(by, _)| by);
    if let Some(by) = ours.or(other) {
        let message = format!("`{key} = {}` is the port of {by}", port.value);
        findings.add(&port.at, "port-clash", message, format!("another one, such as {default}"));
    }
    port.value
}

/// `http(s)://host[:port]`: nothing that a configuration file would have to quote.
fn endpoint(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<String> {
    let text = table.text("s3_endpoint", findings)?;
    let host = text.value.strip_prefix("https://").or_else(|| text.value.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    if host.is_none_or(|host| host.is_empty() || !host.bytes().all(plain)) {
        let hint = "such as `https://s3.example.org:9000`, without a path";
        findings.add(&text.at, "bad-url", "`s3_endpoint` is no address of an object store", hint);
    }
    Some(text.value.to_owned())
}

/// A word that needs no quoting in any configuration file.
fn plain_word(table: &Table<'_, '_>, key: &str, default: &str, findings: &mut Findings<'_>) -> String {
    let Some(text) = table.text(key, findings) else {
        return default.to_owned();
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if text.value.is_empty() || !text.value.bytes().all(plain) {
        let hint = "letters, digits, `_`, `-` and `.`";
        findings.add(&text.at, "bad-name", format!("`{key}` has characters that need quoting"), hint);
    }
    text.value.to_owned()
}

pub(super) fn datasets(root: &Table<'_, '_>, findings: &mut Findings<'_>) -> Vec<Located<Dataset>> {
    let mut datasets = Vec::new();
    for (name, value) in root.entries("datasets", findings) {
        let title = format!("[datasets.{}]", name.value);
        let Some(inner) = value.get_ref().as_table() else {
            root.wrong_type("datasets", "a table", value, findings);
            continue;
        };
        let known = ["source", "table", "bucket", "prefix", "role", "min_nodes", "target_nodes"];
        let table = Table::new(&title, name.at.clone(), inner, &known, findings);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !name.value.bytes().all(plain) || name.value.is_empty() || name.value.len() > 40 {
            let hint = "lower-case letters, digits and `-`, at most 40 characters";
            findings.add(&name.at, "bad-name", format!("`{}` is no dataset name", name.value), hint);
        }
        if let Some(dataset) = dataset(&table, name.value, findings) {
            datasets.push(Located { value: dataset, at: name.at });
        }
    }
    datasets
}

fn dataset(table: &Table<'_, '_>, name: &str, findings: &mut Findings<'_>) -> Option<Dataset> {
    let source = dataset_source(table, findings);
    let role = table.need::<Role>("role", "unknown-role", "\"ml\"", findings);
    let mut count = |key| table.integer(key, 1..=10_000, findings);
    let (least, target) = (count("min_nodes"), count("target_nodes"));
    let min_nodes = least.map_or(1, |least| least.value);
    if let Some(target) = target.as_ref().filter(|target| target.value < min_nodes) {
        let message = format!("`target_nodes` is {}, `min_nodes` is {min_nodes}", target.value);
        findings.add(
            &target.at,
            "out-of-range",
            message,
            "`min_nodes` of `target_nodes` are enough: raise it",
        );
    }
    let target_nodes = target.map(|target| target.value);
    Some(Dataset { name: name.to_owned(), source: source?, role: role?.value, min_nodes, target_nodes })
}

fn dataset_source(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<DatasetSource> {
    let source = table.need_text("source", "\"clickhouse\"", findings)?;
    let (own, foreign) = match source.value {
        "clickhouse" => ("table", ["bucket", "prefix"].as_slice()),
        "s3" => ("bucket", ["table"].as_slice()),
        other => {
            let message = format!("unknown source `{other}`");
            findings.add(&source.at, "unknown-value", message, "one of `clickhouse` and `s3`");
            return None;
        }
    };
    for key in foreign {
        if let Some(value) = table.get(key) {
            let message = format!("`{key}` does not go with `source = \"{}\"`", source.value);
            findings.add(&value.span(), "unknown-key", message, format!("this source takes `{own}`"));
        }
    }
    let prefix = table.text("prefix", findings).map_or_else(String::new, |prefix| prefix.value.to_owned());
    if own == "bucket" {
        let bucket = bucket(table, findings)?;
        return Some(DatasetSource::S3 { bucket, prefix });
    }
    let name = table.need_text("table", "\"database.table\"", findings)?;
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if name.value.split('.').count() != 2 || !name.value.split('.').all(word) {
        let message = format!("`table = \"{}\"` is not `database.table`", name.value);
        findings.add(&name.at, "bad-name", message, "such as `apt.packages`");
    }
    Some(DatasetSource::ClickHouse { table: name.value.to_owned() })
}

/// By the rules of S3 for bucket names. A store on disk makes a folder of it.
fn bucket(table: &Table<'_, '_>, findings: &mut Findings<'_>) -> Option<String> {
    let name = table.need_text("bucket", "\"my-bucket\"", findings)?;
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let plain = name.value.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    let ends = [name.value.bytes().next(), name.value.bytes().last()];
    let framed = ends.into_iter().flatten().all(word);
    if !plain || !framed || !(3..=63).contains(&name.value.len()) || name.value.contains("..") {
        let message = format!("`bucket = \"{}\"` is no bucket name", name.value);
        let hint = "3 to 63 lower-case letters, digits, `-` and single `.`; a letter or digit at both ends";
        findings.add(&name.at, "bad-name", message, hint);
    }
    Some(name.value.to_owned())
}
