//! The objects of an S3 bucket as a source.
//!
//! The listing is the truth, so it must be whole: a page that says "truncated" without saying how to
//! go on, a failed page or an odd key ends the export, and nothing is published or deleted. An `ETag`
//! says whether an object changed, never what it is.

use crate::config::{S3, read_secret};
use crate::error::Error;
use crate::export::{BlockWriter, Content};
use crate::layout::{hash_of, read_json, write_json};
use crate::store::{Store, blocking};
use axum::http::{HeaderMap, header};
use futures::StreamExt as _;
use rackwright_wire::manifest::{File, Source, check_files};
use rackwright_wire::source::{SOURCE_VERSION, SourceFacts, SourceRequest, SourceSpec};
use s3::creds::Credentials;
use s3::{Bucket, Region};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A listing page or an object that sends nothing for so long has failed.
const IDLE: Duration = Duration::from_secs(30);
const PAGE_KEYS: usize = 1000;

/// One bucket with its access.
#[derive(Debug)]
pub(crate) struct BucketSource {
    bucket: Box<Bucket>,
    dataset: String,
    spec: SourceSpec,
    prefix: String,
}

/// The version of [`Known`] that this build writes.
const KNOWN_VERSION: u32 = 1;

/// What the last export read (`exports/<dataset>.objects`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, KNOWN_VERSION>")]
    version: u32,
    /// By key: the object as it was listed, and what became of it.
    objects: BTreeMap<String, (Entry, File)>,
}

/// One object of the listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    bytes: u64,
    etag: String,
    modified: String,
}

impl BucketSource {
    pub(crate) fn new(access: &S3, request: &SourceRequest) -> Result<Self, Error> {
        let SourceSpec::S3 { bucket, prefix } = &request.spec else {
            return Err(Error::refused(request.spec.name(), "not a bucket"));
        };
        let secret = read_secret(&access.secret_key_file)?;
        let failed = |cause: s3::error::S3Error| Error::source_cause(format!("use bucket {bucket}"), cause);
        let credentials = Credentials::new(Some(&access.access_key), Some(&secret), None, None, None)
            .map_err(|cause| Error::source_cause("use the S3 credentials", cause))?;
        let region = Region::Custom { region: access.region.clone(), endpoint: access.endpoint.clone() };
        let mut opened = Bucket::new(bucket, region, credentials).map_err(failed)?.with_path_style();
        // The crate's time-out would cover a whole body; idle time is watched here instead.
        opened.set_request_timeout(None);
        Ok(Self {
            bucket: opened,
            dataset: request.dataset.clone(),
            spec: request.spec.clone(),
            prefix: prefix.clone(),
        })
    }

    pub(crate) async fn facts(&self) -> Result<SourceFacts, Error> {
        let entries = self.list().await?;
        let lines = serde_json::to_vec(&(&self.spec, &entries)).unwrap_or_default();
        Ok(SourceFacts {
            version: SOURCE_VERSION,
            dataset: self.dataset.clone(),
            source: Source {
                kind: "s3".to_owned(),
                name: self.spec.name(),
                fingerprint: blake3::hash(&lines).to_hex().to_string(),
            },
            rows: None,
            bytes: entries.iter().map(|entry| entry.bytes).sum(),
            parts: entries.len() as u64,
            software: "S3".to_owned(),
            left_out: Vec::new(),
        })
    }

    /// Reads what changed since the last export; objects with the key, size and `ETag` of then are
    /// taken from the store.
    pub(crate) async fn read(&self, store: &Arc<Store>) -> Result<Content, Error> {
        let entries = self.list().await?;
        let path = store.layout().at("exports").join(format!("{}.objects", self.dataset));
        // Not there, or of another version: then everything is read.
        let known = read_json(&path).map(|known: Known| known.objects).unwrap_or_default();
        let unchanged = |entry: &Entry| {
            let (before, file) = known.get(&entry.key)?;
            let here = hash_of(&file.blake3).is_ok_and(|hash| store.has(hash));
            (before == entry && here).then(|| file.clone())
        };
        let found: Vec<_> = entries.into_iter().map(|entry| (unchanged(&entry), entry)).collect();
        let changed = found.iter().filter(|(known, _)| known.is_none());
        let read_bytes = changed.map(|(_, entry)| entry.bytes).sum();
        store.admit(read_bytes)?;
        let mut now = BTreeMap::new();
        for (known, entry) in found {
            let file = match known {
                Some(file) => file,
                None => Box::pin(self.get(store, &entry)).await?,
            };
            now.insert(entry.key.clone(), (entry, file));
        }
        let files = now.values().map(|(_, file)| file.clone()).collect();
        let now = Known { version: KNOWN_VERSION, objects: now };
        blocking(move || write_json(&path, &now)).await?;
        Ok(Content { files, columns: Vec::new(), rows: None, read_bytes, is_one_state: false })
    }

    /// The whole listing, in key order, with keys that can be paths.
    async fn list(&self) -> Result<Vec<Entry>, Error> {
        let failed = |text: &str| Error::source_text(format!("list {} whole: {text}", self.spec.name()));
        let mut entries: Vec<Entry> = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.bucket.list_page(self.prefix.clone(), None, token.clone(), None, Some(PAGE_KEYS));
            let page = tokio::time::timeout(IDLE, page).await.map_err(|_late| failed("no answer in time"))?;
            let (page, status) =
                page.map_err(|cause| Error::source_cause(format!("list {}", self.spec.name()), cause))?;
            if status != 200 || page.name != self.bucket.name() {
                return Err(failed(&format!("status {status} for bucket {:?}", page.name)));
            }
            entries.extend(page.contents.into_iter().map(|object| Entry {
                key: object.key,
                bytes: object.size,
                etag: object.e_tag.unwrap_or_default(),
                modified: object.last_modified,
            }));
            match (page.is_truncated, page.next_continuation_token) {
                (false, None) => break,
                (true, Some(next)) if token.as_ref() != Some(&next) => token = Some(next),
                (truncated, next) => {
                    return Err(failed(&format!(
                        "a page says truncated={truncated} and goes on at {next:?}"
                    )));
                }
            }
        }
        // A key that ends in a slash is a console's way of showing an empty folder.
        entries.retain(|entry| !(entry.key.ends_with('/') && entry.bytes == 0));
        entries.sort_by(|left, right| left.key.cmp(&right.key));
        let findings = check_keys(&entries);
        if findings.is_empty() { Ok(entries) } else { Err(failed(&findings.join("; "))) }
    }

    async fn get(&self, store: &Arc<Store>, entry: &Entry) -> Result<File, Error> {
        let what = || format!("read object {:?} of {}", entry.key, self.spec.name());
        let failed = |cause: s3::error::S3Error| Error::source_cause(what(), cause);
        // The object must still be the one that was listed.
        let mut headers = HeaderMap::new();
        if let Ok(etag) = entry.etag.parse() {
            headers.insert(header::IF_MATCH, etag);
        }
        let bucket = self.bucket.with_extra_headers(headers).map_err(failed)?;
        let response = tokio::time::timeout(IDLE, bucket.get_object_stream(&entry.key)).await;
        let mut response = response.map_err(|late| Error::source_cause(what(), late))?.map_err(failed)?;
        if response.status_code != 200 {
            return Err(Error::source_text(format!("{}: status {}", what(), response.status_code)));
        }
        let mut writer = BlockWriter::begin(store).await?;
        let mut got = 0;
        loop {
            let next = tokio::time::timeout(IDLE, response.bytes().next()).await;
            let Some(bytes) = next.map_err(|late| Error::source_cause(what(), late))? else { break };
            let bytes = bytes.map_err(failed)?;
            got += bytes.len() as u64;
            writer.write(&bytes).await?;
        }
        if got != entry.bytes {
            return Err(Error::source_text(format!("{}: {got} of {} bytes came", what(), entry.bytes)));
        }
        writer.commit(&entry.key, None).await
    }
}

/// Keys become paths, so they obey the rules of a manifest.
fn check_keys(entries: &[Entry]) -> Vec<String> {
    let nothing = blake3::hash(b"").to_hex().to_string();
    let files: Vec<File> = entries
        .iter()
        .map(|entry| File { path: entry.key.clone(), bytes: 0, blake3: nothing.clone(), chunks: Vec::new() })
        .collect();
    check_files(&files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_like_this_and_a_newer_text_is_not_believed() {
        let entry = Entry {
            key: "main/Packages.xz".to_owned(),
            bytes: 3,
            etag: "\"900150983cd24fb0\"".to_owned(),
            modified: "2026-11-22T10:00:00.000Z".to_owned(),
        };
        let hash = "ab".repeat(32);
        let file = File { path: entry.key.clone(), bytes: 3, blake3: hash.clone(), chunks: vec![hash] };
        let objects = BTreeMap::from([(entry.key.clone(), (entry, file))]);
        let text = serde_json::to_string_pretty(&Known { version: KNOWN_VERSION, objects }).unwrap();
        insta::assert_snapshot!(text);
        let newer = serde_json::from_str::<Known>(&text.replace("\"version\": 1", "\"version\": 2"));
        assert!(newer.unwrap_err().to_string().starts_with("version 2, this build reads 1"));
    }
}
