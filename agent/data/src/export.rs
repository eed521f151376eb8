//! Exporting a source once into the content store, and remembering what was exported.
//!
//! Facts are asked before and after: an export counts only when it is one state of the source. A bucket must not
//! change meanwhile; one SELECT of a table sees one moment.
//! The same state is never exported twice, whoever asks. A failure publishes and deletes nothing.

use crate::bucket::BucketSource;
use crate::config::{Clickhouse, Config, S3};
use crate::error::Error;
use crate::layout::{hash_of, read_json, write_json};
use crate::store::{Incoming, Store, blocking};
use crate::table::TableSource;
use bytes::{Bytes, BytesMut};
use rackwright_wire::manifest::{Column, File, is_dns_label};
use rackwright_wire::source::{Exported, SOURCE_VERSION, SourceFacts, SourceRequest, SourceSpec};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes gathered before they go to the disk.
const BLOCK_BYTES: usize = 1024 * 1024;
/// A source that changes while it is read is read again so often.
const TRIES: u32 = 3;

/// Reads this server's sources.
#[derive(Debug)]
pub struct Exporter {
    clickhouse: Option<Clickhouse>,
    s3: Option<S3>,
    store: Arc<Store>,
    /// One export of a dataset at a time; a second one finds it done.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What an export read.
pub(crate) struct Content {
    pub(crate) files: Vec<File>,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Option<u64>,
    pub(crate) read_bytes: u64,
    /// It was read at one moment, whatever has changed meanwhile.
    pub(crate) is_one_state: bool,
}

/// A source with its access, ready to read.
enum Source {
    Table(Box<TableSource>),
    Bucket(BucketSource),
}

impl Exporter {
    /// An exporter for what the configuration gives access to.
    pub fn new(config: &Config, store: Arc<Store>) -> Self {
        Self { clickhouse: config.clickhouse.clone(), s3: config.s3.clone(), store, locks: Mutex::default() }
    }

    /// The state of a source now.
    ///
    /// # Errors
    /// This server has no such source, or it does not answer as it should.
    pub async fn facts(&self, request: &SourceRequest) -> Result<SourceFacts, Error> {
        self.source(request)?.facts().await
    }

    /// Exports a source, unless this state was exported before.
    ///
    /// # Errors
    /// The source fails, or keeps changing, or there is no room: nothing is published or deleted.
    pub async fn export(&self, request: &SourceRequest) -> Result<Exported, Error> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(request.dataset.clone()).or_default())
        };
        let _one_at_a_time = lock.lock().await;
        let source = self.source(request)?;
        let mut read_bytes = 0;
        for _try in 0..TRIES {
            let before = source.facts().await?;
            if let Some(known) = self.known(&before) {
                return Ok(known);
            }
            let content = Box::pin(source.read(&self.store, &before)).await?;
            read_bytes += content.read_bytes;
            // What is written to all the time is never still. Its next state has other facts than these, and is exported
            // again.
            if content.is_one_state || source.facts().await?.source == before.source {
                let content = Content { read_bytes, ..content };
                return self.remember(before, content).await;
            }
        }
        Err(Error::source_text(format!(
            "read {} in one state: it changes while it is read",
            request.spec.name()
        )))
    }

    fn source(&self, request: &SourceRequest) -> Result<Source, Error> {
        if !is_dns_label(&request.dataset) {
            return Err(Error::refused("a source request", format!("dataset {:?}", request.dataset)));
        }
        let none =
            |kind: &str| Error::refused(request.spec.name(), format!("this server has no [{kind}] source"));
        match &request.spec {
            SourceSpec::Clickhouse { .. } => {
                let access = self.clickhouse.as_ref().ok_or_else(|| none("clickhouse"))?;
                TableSource::new(access, request).map(Box::new).map(Source::Table)
            }
            SourceSpec::S3 { .. } => {
                let access = self.s3.as_ref().ok_or_else(|| none("s3"))?;
                BucketSource::new(access, request).map(Source::Bucket)
            }
        }
    }

    fn known(&self, facts: &SourceFacts) -> Option<Exported> {
        let known: Exported = read_json(&self.path(&facts.dataset)).ok()?;
        let here = |file: &File| hash_of(&file.blake3).is_ok_and(|hash| self.store.has(hash));
        let same = known.source == facts.source && known.files.iter().all(here);
        same.then_some(Exported { read_bytes: 0, ..known })
    }

    async fn remember(&self, facts: SourceFacts, content: Content) -> Result<Exported, Error> {
        let path = self.path(&facts.dataset);
        let exported = Exported {
            version: SOURCE_VERSION,
            dataset: facts.dataset,
            source: facts.source,
            files: content.files,
            columns: content.columns,
            rows: content.rows,
            read_bytes: content.read_bytes,
            left_out: facts.left_out,
        };
        let written = exported.clone();
        blocking(move || write_json(&path, &written)).await?;
        Ok(exported)
    }

    fn path(&self, dataset: &str) -> std::path::PathBuf {
        self.store.layout().at("exports").join(format!("{dataset}.json"))
    }
}

impl Source {
    async fn facts(&self) -> Result<SourceFacts, Error> {
        match self {
            Self::Table(table) => table.facts().await,
            Self::Bucket(bucket) => bucket.facts().await,
        }
    }

    async fn read(&self, store: &Arc<Store>, facts: &SourceFacts) -> Result<Content, Error> {
        match self {
            Self::Table(table) => {
                store.admit(facts.bytes)?;
                table.read(store, facts).await
            }
            Self::Bucket(bucket) => Box::pin(bucket.read(store)).await,
        }
    }
}

/// Writes a stream of bytes into an [`Incoming`] in blocks, off the async thread.
pub(crate) struct BlockWriter {
    incoming: Option<Incoming>,
    block: BytesMut,
}

impl BlockWriter {
    pub(crate) async fn begin(store: &Arc<Store>) -> Result<Self, Error> {
        let store = Arc::clone(store);
        let incoming = blocking(move || store.begin()).await?;
        Ok(Self { incoming: Some(incoming), block: BytesMut::new() })
    }

    pub(crate) async fn write(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.block.extend_from_slice(bytes);
        if self.block.len() >= BLOCK_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Stores the object, which must hash to `expected` when that is given.
    pub(crate) async fn commit(mut self, path: &str, expected: Option<blake3::Hash>) -> Result<File, Error> {
        self.flush().await?;
        let incoming = self.incoming.take().ok_or_else(gone)?;
        let path = path.to_owned();
        blocking(move || incoming.commit(&path, expected)).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let block = self.block.split().freeze();
        let mut incoming = self.incoming.take().ok_or_else(gone)?;
        let back = blocking(move || {
            incoming.write(&block)?;
            Ok(incoming)
        });
        self.incoming = Some(back.await?);
        Ok(())
    }
}

fn gone() -> Error {
    Error::source_text("write on after a write failed")
}
